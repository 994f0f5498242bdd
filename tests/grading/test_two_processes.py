"""Pretraining and grading, the whole stages, by two processes together as by one; only the first writes."""

import json
import os
import socket
import sqlite3
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tests.pipeline.fork_server import PYTHON

from drgrade.schema import PREDICTIONS, read_table

# children are forked from a process that has imported everything and computed nothing
SCRIPT = """
import json, multiprocessing, os, sys
from pathlib import Path
import torch
from drgrade.grading.finetune import Params
from drgrade.grading.stage import Inputs, grade
from drgrade.grading import regression
from drgrade.images.dataset import CroppedDataset
from drgrade.params import Crop, SimCLR
from drgrade.pretrain import simclr, stage
from drgrade import inference, tracking, training

small = {"encoder": "test_efficientnet", "input_size": 32, "epochs": 1, "batch_size": 4}
root = Path.cwd()

def run(name, environment):
    os.environ.update(environment)
    os.makedirs(name, exist_ok=True)
    os.chdir(name)
    changed = []
    def watch(event, arguments):
        if event == "open" and isinstance(arguments[0], str) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            changed.append(arguments[0])
        if event in ("os.rename", "os.mkdir", "os.remove", "shutil.rmtree"):
            changed.append(str(arguments[0]))
    sys.addaudithook(watch)
    data = CroppedDataset("own", root / "results/own")
    site = CroppedDataset("site", root / "results/site")
    stage.pretrain("simclr", SimCLR(**small, start="random").model_dump(), patch=16, by_fold=True, data=data,
        patches=None, manifest=Path("pretrain/encoder.json"), weights=Path("pretrain/weights"), name="mine")
    experiment = Params(**small, start="mine")
    grade("tuned", experiment, Crop(), Inputs(data, external=[site], start=Path("pretrain/weights")),
        seed=0, fold=1, out=Path("grade"))
    inside = [path for path in changed if not os.path.isabs(path) or str(root) in path]
    (root / f"{name}{os.environ.get('RANK', '')}.json").write_text(json.dumps(inside))

fork = multiprocessing.get_context("fork").Process
shared = {"TORCHELASTIC_RUN_ID": "t", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
          "MASTER_PORT": sys.argv[1]}
jobs = [fork(target=run, args=("two", shared | {"RANK": str(n), "LOCAL_RANK": str(n)})) for n in range(2)]
jobs.append(fork(target=run, args=("one", {})))
for job in jobs:
    job.start()
for job in jobs:
    job.join(200)
sys.exit(max(job.exitcode if job.exitcode is not None else 99 for job in jobs))
"""  # fmt: skip


@pytest.fixture
def stages(dataset, tmp_path: Path) -> Path:
    """A folder with what one process left in ``one`` and two processes in ``two``."""
    dataset("own", grades=[0, 1, 2, 3] * 9, folds=3)
    dataset("site", pixel_seed=4)
    alone = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "DRGRADE_DEV"))}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    tracked = {"DRGRADE_TRACKING": "on", "MLFLOW_TRACKING_URI": "sqlite:///mlflow.db"}
    command = [*PYTHON, "-c", SCRIPT, port]
    subprocess.run(command, cwd=tmp_path, env=alone | tracked, check=True, timeout=300)
    return tmp_path


def tracked_runs(folder: Path) -> list[tuple[str, str]]:
    """Name and status of MLflow's runs."""
    with sqlite3.connect(folder / "mlflow.db") as base:
        return sorted(base.execute("SELECT name, status FROM runs"))


def test_two_processes_leave_what_one_leaves(stages: Path) -> None:
    one, two = (
        sorted(
            str(path.relative_to(stages / name))
            for part in ("pretrain", "grade")
            for path in (stages / name / part).rglob("*")
        )
        for name in ("one", "two")
    )
    assert one == two
    assert "pretrain/weights/encoder_fold2.safetensors" in two
    manifests = [json.loads((stages / name / "pretrain/encoder.json").read_text()) for name in ("one", "two")]
    assert [sorted(manifest["weights"]) for manifest in manifests] == [
        [f"encoder_fold{fold}.safetensors" for fold in range(3)]
    ] * 2
    tables = [read_table(stages / name / "grade/predictions.parquet", PREDICTIONS) for name in ("one", "two")]
    known = ["dataset", "image_id", "split", "seed", "fold", "grade"]
    pd.testing.assert_frame_equal(tables[0][known], tables[1][known])
    scores = [table[[f"p{grade}" for grade in range(5)]].to_numpy(float) for table in tables]
    np.testing.assert_allclose(scores[1].sum(axis=1), 1, atol=1e-6)
    assert np.abs(scores[0] - scores[1]).max() < 0.3
    assert tracked_runs(stages / "two") == tracked_runs(stages / "one")
    assert {name for name, _ in tracked_runs(stages / "two")} >= {"mine encoder_fold2", "tuned seed0 fold1"}
    written = json.loads((stages / "two0.json").read_text())
    assert any("predictions.parquet" in path for path in written)
    assert json.loads((stages / "two1.json").read_text()) == []
