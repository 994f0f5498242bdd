"""Two processes take the step that one takes on the joined batch."""

import json
import os
import subprocess

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.pipeline.fork_server import PYTHON
from timm.layers import BatchNormAct2d
from torch import nn

from drgrade.distributed import Launch, launch, rank, synchronised
from drgrade.errors import UserError
from drgrade.training import Batches, share

# in double precision, so that rounding hides nothing
# children are forked from a process that has imported everything and computed nothing
SCRIPT = """
import json, multiprocessing, os, socket, sys
import numpy as np, pandas as pd, torch
from drgrade.pretrain.contrastive import SupCon
from torch import nn
from drgrade.gradient_cache import chunked_backward
from drgrade.grading.base import Photographs
from drgrade.params import LocalToGlobal
from drgrade.pretrain import collapse
from drgrade.pretrain.base import Graded, Material
from drgrade.pretrain.local_to_global import Network, SelfDistillation, parameter_groups, vision_transformer
from drgrade.seeding import seed_everything
from drgrade.tracking import NullRun
from drgrade.training import Batches, Loader, Module, fit

class Run(NullRun):
    def metrics(self, values, step=0):
        self.loss, self.values = values["loss"], values

class Small(Module):
    def __init__(self, kind):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.views = torch.randn((2, 24, 6), generator=generator, dtype=torch.float64)
        self.kind, self.automatic_optimization = kind, kind != "chunked"
        torch.manual_seed(1)
        middle = nn.BatchNorm1d(16) if kind == "norm" else nn.Tanh()
        self.network = nn.Sequential(nn.Linear(6, 16), middle, nn.Linear(16, 4)).double()
        self.criterion = SupCon(0.1)
        self.seen = []
    def train_dataloader(self):
        return Loader(Batches(24, 12, 3, self.current_epoch))
    def nt_xent(self, embeddings):
        return self.criterion(*embeddings.chunk(2))
    def training_step(self, items, step):
        self.seen.append(items.tolist())
        batch = torch.cat([self.views[0, items], self.views[1, items]])
        if self.kind in ("mean", "norm"):
            loss = self.network(batch).square().mean()
        elif self.kind == "contrastive":
            loss = self.nt_xent(self.network(batch))
        else:
            loss = chunked_backward(self.network, batch.split(5), self.nt_xent, backward=self.manual_backward)
            self.optimizers().step()
            self.optimizers().zero_grad()
        self.losses.append(loss.detach())
        return loss
    def configure_optimizers(self):
        return torch.optim.SGD(self.network.parameters(), lr=0.5, momentum=0.9)

# single precision: Adam would make steps of the rounding of gradients that are zero, plain descent does not
class Descent(SelfDistillation):
    def configure_optimizers(self):
        return torch.optim.SGD(parameter_groups(self.student), lr=0.1)

def graded(images, rows):
    return Photographs(images, pd.DataFrame({"grade": [row % 3 for row in rows], "row": list(rows)}))

def distil():
    collapse.GRACE = 9
    params = LocalToGlobal(encoder="test_vit", out_dim=32, global_size=32, local_size=16, local_crops=2,
        epochs=2, batch_size=4, lr=6.4, warmup_epochs=0, drop_path=0, freeze_last=0, teacher_momentum=0.9,
        teacher_temperature=0.3, knn_every=2)
    images = np.random.default_rng(0).integers(0, 256, (14, 40, 40, 3)).astype(np.uint8)
    watched = Graded(graded(images, range(8)), graded(images, range(8, 14)))
    material = Material(images, np.arange(8), [np.zeros((0, 4))] * 8, 16, graded=watched)
    seed_everything(1)
    student, teacher = (Network(vision_transformer(params, "random", 0.0), params) for _ in range(2))
    module, run = Descent(student, teacher, material, params), Run()
    start = {key: value.clone() for key, value in module.state_dict().items()}
    fit(module, name="distilled", epochs=2, seed=1, key=["d"], run=run)
    first = {key: value.flatten()[:200].tolist() for key, value in module.state_dict().items()}
    moved = {key: float((value - start[key]).abs().max()) for key, value in module.state_dict().items()}
    return {"weights": first, "moved": moved, "values": getattr(run, "values", None)}

def train(out, environment):
    os.environ.update(environment)
    # one training has checkpoints of its own, or the two processes may find them and resume
    folder = "two" if environment else "one"
    os.makedirs(folder, exist_ok=True)
    os.chdir(folder)
    found = {}
    for kind in ("mean", "contrastive", "chunked", "norm"):
        module, run = Small(kind), Run()
        fit(module, name=kind, epochs=2, seed=3, key=["k"], run=run)
        weights = [value.tolist() for value in module.network.state_dict().values()]
        found[kind] = {"weights": weights, "seen": module.seen, "loss": getattr(run, "loss", None)}
    found["distilled"] = distil()
    json.dump(found, open(f"../{out}", "w"))

fork = multiprocessing.get_context("fork").Process
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
shared = {"TORCHELASTIC_RUN_ID": "t", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
          "MASTER_PORT": str(port)}
two = [fork(target=train, args=(f"two{rank}.json", shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}))
       for rank in range(2)]
jobs = [*two, fork(target=train, args=("one.json", {}))]
for job in jobs:
    job.start()
for job in jobs:
    job.join(120)
sys.exit(max(job.exitcode if job.exitcode is not None else 99 for job in jobs))
"""  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[str, dict]:
    folder = tmp_path_factory.mktemp("two")
    alone = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "DRGRADE_DEV"))}
    subprocess.run([*PYTHON, "-c", SCRIPT], cwd=folder, env=alone, check=True, timeout=540)
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


@pytest.mark.parametrize("kind", ["mean", "contrastive", "chunked"])
def test_two_processes_take_the_steps_of_one_on_the_joined_batch(trained, kind):
    one, first, second = (trained[name][kind] for name in ("one", "two0", "two1"))
    assert first["loss"] == pytest.approx(one["loss"], rel=1e-12)
    assert second["loss"] is None  # only the first reports
    for whole, half, other in zip(one["weights"], first["weights"], second["weights"], strict=True):
        np.testing.assert_allclose(half, whole, rtol=0, atol=1e-12)
        np.testing.assert_array_equal(half, other)
    joined = [left + right for left, right in zip(first["seen"], second["seen"], strict=True)]
    assert joined == one["seen"]
    assert [len(items) for items in first["seen"]] == [6] * 4


def test_two_processes_distil_as_one_does_on_the_joined_batch(trained):
    """Local-to-global: student, teacher, centre and loss after four steps, and what a k-NN makes of them."""
    one, first, second = (trained[name]["distilled"] for name in ("one", "two0", "two1"))
    assert first["weights"] == second["weights"]
    for name in ("student.head.last_layer.weight_v", "teacher.encoder.cls_token", "criterion.center"):
        assert one["moved"][name] > 1e-3, name
    for name, expected in one["weights"].items():
        np.testing.assert_allclose(first["weights"][name], expected, rtol=0, atol=1e-5, err_msg=name)
    assert second["values"] is None
    assert first["values"].keys() == one["values"].keys() >= {"val_knn_qwk"}
    for name in ("loss", "val_knn_qwk", "teacher_entropy", "teacher_kl_uniform"):
        assert first["values"][name] == pytest.approx(one["values"][name], rel=1e-4, abs=1e-6), name


def test_statistics_that_are_not_synchronised_end_as_the_first_process_has_them(trained):
    first, second = trained["two0"]["norm"]["weights"], trained["two1"]["norm"]["weights"]
    assert first == second
    assert first != trained["one"]["norm"]["weights"]


def test_a_loss_in_chunks_is_the_loss_in_one(trained):
    for whole, chunked in zip(
        *(trained["one"][k]["weights"] for k in ("contrastive", "chunked")), strict=True
    ):
        np.testing.assert_allclose(chunked, whole, rtol=0, atol=1e-12)


@given(st.integers(1, 60), st.integers(1, 5), st.integers(1, 4), st.booleans(), st.integers(0, 3))
def test_shares_are_even_and_join_to_the_batches_of_one_process(rows, each, processes, drop, epoch):
    alone = Batches(rows, each * processes, 1, epoch, drop).batches
    if len(alone[0]) % processes:
        with pytest.raises(UserError, match=f"{processes} processes cannot share {len(alone[0])} evenly"):
            share(alone, 0, processes)
        return
    shares = [share(alone, place, processes) for place in range(processes)]
    joined = [np.concatenate(parts) for parts in zip(*shares, strict=True)]
    for parts in zip(*shares, strict=True):
        assert {len(part) for part in parts} == {len(parts[0])} != {0}
    kept = [batch[: len(batch) // processes * processes] for batch in alone]
    assert [list(batch) for batch in joined] == [list(batch) for batch in kept if len(batch)]


TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "RANK": "5", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}
SRUN = {
    "SLURM_STEP_NUM_TASKS": "6",
    "SLURM_STEP_NUM_NODES": "3",
    "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_PROCID": "4",
}


@pytest.mark.parametrize(("environment", "expected", "number"), [
    ({}, Launch(1, 1), 0),
    (TORCHRUN, Launch(4, 2, "torchrun"), 5),
    (SRUN, Launch(2, 3, "srun"), 4),
    ({"SLURM_NTASKS": "6", "SLURM_PROCID": "0"}, Launch(1, 1), 0),  # a batch script's own process
    ({"DRGRADE_DEVICES": "2", "LOCAL_RANK": "1"}, Launch(2, 1, "drgrade"), 1),
])  # fmt: skip
def test_the_start_is_read_from_the_environment(monkeypatch, environment, expected, number):
    for name in {*TORCHRUN, *SRUN, "LOCAL_RANK", "DRGRADE_DEVICES"}:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert (launch(), rank()) == (expected, number)


@pytest.mark.parametrize(("environment", "message"), [
    (TORCHRUN | {"WORLD_SIZE": "7"}, "torchrun: 7 processes, 4 of them here"),
    ({"SLURM_STEP_NUM_TASKS": "2"}, "say how many on each machine with --ntasks-per-node"),
    ({"DRGRADE_DEVICES": "many"}, "DRGRADE_DEVICES=many: give a number"),
    ({"DRGRADE_DEVICES": "0"}, "DRGRADE_DEVICES=0: give a number"),
])  # fmt: skip
def test_a_start_that_cannot_work_is_refused(monkeypatch, environment, message):
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        launch()


def test_synchronised_batchnorm_keeps_the_activation_of_timms_layers():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), BatchNormAct2d(4)).eval()
    pictures = torch.randn(2, 3, 8, 8)
    before = network(pictures)
    names = list(network.state_dict())
    synchronised(network)
    assert isinstance(network[1], nn.SyncBatchNorm)
    assert torch.equal(network(pictures), before)
    assert list(network.state_dict()) == names
    assert (before >= 0).all()
