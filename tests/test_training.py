"""The shared training loop: a killed training ends as the undisturbed one, bit for bit."""

import gc
import json
import logging
import signal
import subprocess
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.pipeline.fork_server import PYTHON
from torch import nn

from drgrade import callbacks, training
from drgrade.errors import UserError
from drgrade.tracking import NullRun
from drgrade.training import CHECKPOINTS, Batches, Loader, Module, compile_network, fit

# each training is a child of one process that has imported everything, and kills itself where it is told to
SCRIPT = """
import json, multiprocessing, os, signal, sys
from pathlib import Path
import numpy as np, pandas as pd, torch
from drgrade import training
from drgrade.grading import finetune, regression
from drgrade.grading.base import Job, Photographs, Start
from drgrade.params import Crop
from drgrade.tracking import NullRun

PLACES = {"undisturbed": None, "step": (2, 1), "measured": (2,), "writing": (2,), "written": (3,)}

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

def train(folder, place, when):
    os.chdir(folder)
    class Run(NullRun):
        def metrics(self, values, step=0):
            with open("epochs", "a") as file:
                file.write(f"{step}\\n")
            if place == "measured" and (step,) == when:
                kill()
    step, save, remove = regression.FineTune.training_step, torch.save, training.shutil.rmtree
    def training_step(self, items, number):
        if place == "step" and (self.current_epoch, number) == when:
            kill()
        return step(self, items, number)
    def half(checkpoint, path):
        save(checkpoint, path)
        if place == "writing" and (checkpoint["epoch"],) == when:
            os.truncate(path, os.path.getsize(path) // 2)
            kill()
    regression.FineTune.training_step, torch.save = training_step, half
    if place == "written":
        training.shutil.rmtree = lambda *args, **options: kill()
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (12, 40, 40, 3), np.uint8)
    table = pd.DataFrame({"grade": np.arange(12) % 5, "row": np.arange(12)})
    params = finetune.Params(encoder="test_efficientnet", input_size=32, epochs=4, batch_size=4)
    grader = finetune.Finetune(params, Crop())
    part = lambda rows: Photographs(images, table.iloc[rows])
    start = Start("random")
    grader.fit(Job(part(slice(0, 8)), part(slice(8, 12)), start, 3, "test", "key", Run()))
    grader.save(Path("out"))

def run(*arguments):
    child = multiprocessing.get_context("fork").Process(target=train, args=arguments)
    child.start()
    child.join(120)
    return child.exitcode

codes = {}
for place, when in PLACES.items():
    os.makedirs(place)
    codes[place] = [run(place, place, when)]
    if when:
        with open(f"{place}/epochs", "a") as file:
            file.write("killed\\n")
        codes[place].append(run(place, "", None))
print(json.dumps(codes))
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    done = subprocess.run(
        [*PYTHON, "-c", SCRIPT], cwd=folder, check=True, capture_output=True, text=True, timeout=300
    )
    codes = json.loads(done.stdout)
    assert codes.pop("undisturbed") == [0], done.stderr
    assert set(map(tuple, codes.values())) == {(-signal.SIGKILL, 0)}, codes
    return folder


@pytest.mark.parametrize(("place", "epochs"), [
    ("step", "0 1 killed 2 3"),  # in the middle of epoch 2
    ("measured", "0 1 2 killed 2 3"),  # measured but not yet saved
    ("writing", "0 1 2 killed 2 3"),  # half a checkpoint is none, and the one before it is still there
    ("written", "0 1 2 3 killed"),  # nothing is left to do
])  # fmt: skip
def test_killed_anywhere_and_resumed_equals_undisturbed(killed, place, epochs):
    assert (killed / "undisturbed/epochs").read_text().split() == ["0", "1", "2", "3"]
    assert (killed / place / "epochs").read_text().split() == epochs.split()
    assert not any((killed / place / CHECKPOINTS).iterdir())
    one, two = (load_file(killed / name / "out/model.safetensors") for name in ("undisturbed", place))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.norm, self.out = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)

    def forward(self, batch):
        return self.out(self.norm(self.hidden(batch))).squeeze(1)


class Line(Module):
    """Least squares on 12 points or fewer, 4 a batch."""

    def __init__(self, rows: int = 12) -> None:
        super().__init__()
        self.rows = rows
        torch.manual_seed(0)
        self.network = Network()
        self.points = torch.randn(12, 4, generator=torch.Generator().manual_seed(1))
        self.stop_at: tuple[int, int] | None = None
        self.validated: list[list[torch.Tensor]] = []

    def train_dataloader(self):
        return Loader(Batches(self.rows, 4, 5, self.current_epoch))

    def training_step(self, items, step):
        if (self.current_epoch, step) == self.stop_at:
            raise InterruptedError
        loss = (self.network(self.points[items, :3]) - self.points[items, 3]).square().mean()
        self.losses.append(loss.detach())
        return loss

    def validate(self):
        self.validated.append([value.clone() for value in self.network.state_dict().values()])
        return {}

    def configure_optimizers(self):
        return torch.optim.SGD(self.network.parameters(), lr=0.1, momentum=0.9)


class Prepared(Line):
    """Its points are looked up in the background."""

    ahead, prepared = True, 0

    def train_dataloader(self):
        return Loader(Batches(self.rows, 4, 5, self.current_epoch), self.prepare, ahead=self.ahead)

    def prepare(self, items):
        self.prepared += 1
        if self.prepared == 5:
            raise OSError("disk gone")
        return self.points[torch.from_numpy(items)]

    def training_step(self, points, step):
        loss = (self.network(points[:, :3]) - points[:, 3]).square().mean()
        self.losses.append(loss.detach())
        return loss


class Remember(NullRun):
    def __init__(self) -> None:
        super().__init__()
        self.values: list[dict[str, float]] = []

    def metrics(self, values, step=0):
        self.values.append(values)


def trained(module: Line, epochs: int = 3, **options) -> Remember:
    run = Remember()
    fit(module, name="line", epochs=epochs, seed=5, key=["k"], run=run, **options)
    return run


def stepped(epochs: int, batches: int = 1, rows: int = 12) -> tuple[Line, list[dict[str, torch.Tensor]]]:
    """By hand: the network's states after each step of ``batches`` batches, every row weighing the same."""
    module = Line()
    optimizer, states = torch.optim.SGD(module.network.parameters(), lr=0.1, momentum=0.9), []
    for epoch in range(epochs):
        parts = Batches(rows, 4, 5, epoch).batches
        for start in range(0, len(parts), batches):
            optimizer.zero_grad()
            step = parts[start : start + batches]
            for items in step:
                points = module.points[items]
                loss = (module.network(points[:, :3]) - points[:, 3]).square().sum()
                (loss / sum(map(len, step))).backward()
            optimizer.step()
            states.append({key: value.clone() for key, value in module.network.state_dict().items()})
    return module, states


@pytest.mark.parametrize("ahead", [True, False])
def test_what_is_prepared_in_the_background_changes_nothing(tmp_path, monkeypatch, ahead):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Prepared, "ahead", ahead)
    plain, prepared = Line(), Prepared()
    prepared.prepared = 99
    trained(plain)
    trained(prepared)
    for key, value in plain.network.state_dict().items():
        assert torch.equal(value, prepared.network.state_dict()[key])


def test_an_error_in_the_background_ends_the_training_and_its_thread(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = threading.active_count()
    with pytest.raises(OSError, match="disk gone"):
        trained(Prepared())
    gc.collect()
    assert threading.active_count() == before


def test_batches_are_prepared_while_a_step_runs():
    """The second batch is ready, by another thread, before it is asked for; no more than three are."""
    made, second = [], threading.Event()

    def prepare(items):
        made.append(threading.get_ident())
        if len(made) == 3:
            second.set()
        return items

    batches = iter(Loader(Batches(12, 2, 5, 0), prepare))
    next(batches)
    assert second.wait(30)
    assert len(made) == 3
    assert threading.get_ident() not in made


@pytest.mark.parametrize(("accumulate", "rows", "steps"), [
    (3, 12, 1),  # an epoch is a step
    (2, 12, 2),  # the second step has one batch
    (2, 10, 2),  # and one of two
    (3, 10, 1),  # batches of four, four and two
])  # fmt: skip
def test_gradients_accumulate_over_batches(tmp_path, monkeypatch, accumulate, rows, steps):
    monkeypatch.chdir(tmp_path)
    module = Line(rows)
    trained(module, accumulate=accumulate)
    _, states = stepped(3, accumulate, rows)
    assert len(states) == 3 * steps
    for key, value in module.network.state_dict().items():
        torch.testing.assert_close(value, states[-1][key], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_averaged_weights_validate_survive_a_stop_and_are_what_is_left(tmp_path, monkeypatch, accumulate):
    monkeypatch.chdir(tmp_path)
    decay, (_, states) = 0.8, stepped(3, accumulate)
    options = {"weights_ema": decay, "accumulate": accumulate}
    average = {key: value.clone() for key, value in Line().network.state_dict().items()}
    averages = []
    for state in states:
        for key, value in state.items():
            moves = value.is_floating_point()
            average[key] = decay * average[key] + (1 - decay) * value if moves else value
        averages.append(dict(average))
    undisturbed, stopped, resumed = Line(), Line(), Line()
    trained(undisturbed, **options)
    stopped.stop_at = (2, 1)
    with pytest.raises(InterruptedError):
        trained(stopped, **options)
    trained(resumed, **options)
    assert len(resumed.validated) == 1
    for key, value in undisturbed.network.state_dict().items():
        torch.testing.assert_close(value, averages[-1][key], rtol=1e-5, atol=1e-6)
        assert torch.equal(value, resumed.network.state_dict()[key])
    each = len(states) // 3  # steps of an epoch
    for found, expected in zip(undisturbed.validated, averages[each - 1 :: each], strict=True):
        for value, other in zip(found, expected.values(), strict=True):
            torch.testing.assert_close(value, other, rtol=1e-5, atol=1e-6)


def test_dropout_after_a_stop_draws_what_it_would_have_drawn(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    undisturbed, stopped, resumed = Line(), Line(), Line()
    for module in (undisturbed, stopped, resumed):
        module.network.norm = nn.Dropout(0.5)
    trained(undisturbed)
    stopped.stop_at = (2, 1)
    with pytest.raises(InterruptedError):
        trained(stopped)
    trained(resumed)
    assert len(resumed.validated) == 1
    for key, value in undisturbed.network.state_dict().items():
        assert torch.equal(value, resumed.network.state_dict()[key])


def test_without_averaging_the_weights_are_those_of_the_last_step(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = Line()
    trained(module)
    _, states = stepped(3)
    assert all(torch.equal(value, states[-1][key]) for key, value in module.network.state_dict().items())


def test_each_epoch_reports_its_speed_and_the_time_left(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(callbacks, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    with caplog.at_level(logging.INFO, "drgrade.training"):
        run = trained(Line())
    lines = [record.getMessage() for record in caplog.records if "epoch" in record.getMessage()]
    # the clock goes on 10 s when it is read: at an epoch's start, for its speed, for what is left
    assert [values["images_per_s"] for values in run.values] == [1.2] * 3
    assert [line.split("  ")[-1] for line in lines] == ["0:00:40 left", "0:00:25 left", "0:00:00 left"]
    assert lines[0].startswith("line  epoch 1/3  loss ")


def test_each_epoch_reports_the_peak_of_memory_since_the_training_began(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    calls = []
    monkeypatch.setattr(training, "reset_peak_memory", lambda: calls.append("reset"))
    monkeypatch.setattr(training, "peak_memory_gb", lambda: calls.append("read") or len(calls))
    run = trained(Line())
    assert calls == ["reset", "read", "read", "read"]
    assert [values["peak_memory_gb"] for values in run.values] == [2, 3, 4]


def test_compiling_without_a_compiler_is_refused(monkeypatch):
    monkeypatch.setenv("CXX", "/nowhere/g++")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=r"^compile: needs a C\+\+ compiler"):
        compile_network(Network())


def test_chosen_networks_are_compiled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compile_ = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda function, dynamic: compile_(function, backend=backend, dynamic=dynamic)
    )
    plain, module = Line(), Line()
    trained(plain)
    compile_network(module.network)
    assert not graphs
    trained(module)
    assert graphs
    assert module.network.state_dict().keys() == plain.network.state_dict().keys()
    for key, value in module.network.state_dict().items():
        torch.testing.assert_close(value, plain.network.state_dict()[key])


@pytest.mark.parametrize(("gpu", "bfloat16", "expected"), [
    (False, False, "32-true"), (True, False, "16-mixed"), (True, True, "bf16-mixed"),
])  # fmt: skip
def test_precision_is_what_the_device_has(monkeypatch, gpu, bfloat16, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    # every GPU "supports" bfloat16 when emulation counts
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or bfloat16
    )
    assert training.precision() == expected


@pytest.mark.parametrize(("rows", "size", "drop", "sizes"), [
    (10, 4, False, [4, 4, 2]), (9, 4, False, [4, 4]), (10, 4, True, [4, 4]), (1, 4, False, [1]),
    (3, 8, True, [3]),
])  # fmt: skip
def test_batches_cover_an_epoch_once_and_never_hold_one_alone(rows, size, drop, sizes):
    batches = Batches(rows, size, seed=1, epoch=0, drop_last=drop)
    assert [len(batches[place]) for place in range(len(batches))] == sizes
    seen = np.concatenate(batches.batches)
    assert len(set(seen)) == len(seen)


def test_orders_differ_by_epoch_and_repeat_by_seed():
    first = np.concatenate(Batches(50, 8, 1, 0).batches)
    assert (first == np.concatenate(Batches(50, 8, 1, 0).batches)).all()
    assert (first != np.concatenate(Batches(50, 8, 1, 1).batches)).any()
    assert (first != np.concatenate(Batches(50, 8, 2, 0).batches)).any()
