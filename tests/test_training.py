"""The shared training loop: a killed training ends as the undisturbed one, bit for bit."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from drgrade.training import CHECKPOINTS, Batches

SCRIPT = """
import sys, time
from pathlib import Path
import numpy as np, pandas as pd
from drgrade.grading.base import Photographs, Training
from drgrade.grading.finetune import Finetune
from drgrade.params import Grade
from drgrade.tracking import NullRun

class Run(NullRun):
    def metrics(self, values, step=0):
        print("epoch", step, flush=True)
        time.sleep(float(sys.argv[2]))

rng = np.random.default_rng(0)
images = rng.integers(0, 256, (12, 40, 40, 3), np.uint8)
table = pd.DataFrame({"grade": np.arange(12) % 5, "row": np.arange(12)})
params = Grade(input_size=32, epochs=4, batch_size=4).model_dump()
grader = Finetune("tf_efficientnet_lite0", params)
part = lambda rows: Photographs(images, table.iloc[rows])
grader.fit(Training(part(slice(0, 8)), part(slice(8, 12)), "random", 3, "test", "key", Run()))
grader.save(Path(sys.argv[1]))
"""


def train(folder: Path, out: str, pause: str = "0") -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, out, pause], cwd=folder, stdout=subprocess.PIPE, text=True
    )  # fmt: skip


def test_killed_and_resumed_equals_undisturbed(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    undisturbed = train(tmp_path / "a", "out")
    assert undisturbed.communicate(timeout=120)[0].splitlines() == [f"epoch {epoch}" for epoch in range(4)]
    killed = train(tmp_path / "b", "out", "1.5")
    lines = [killed.stdout.readline().strip() for _ in range(3)]
    assert lines == ["epoch 0", "epoch 1", "epoch 2"]
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    resumed = train(tmp_path / "b", "out").communicate(timeout=120)[0].splitlines()
    # epoch 2 was measured but not yet saved: it is done again
    assert resumed == ["epoch 2", "epoch 3"]
    assert not any((tmp_path / "b" / CHECKPOINTS).iterdir())
    one, two = (load_file(tmp_path / name / "out/model.safetensors") for name in "ab")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)


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
