"""Full and read-only disks: each stage ends with one line, leaves no part of an output, and can be rerun."""

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.disks import disk, fill, make_read_only
from tests.pipeline.conftest import Project

from drgrade.cli import main

OUTPUTS = {
    "crop": "crop",
    "patches_detector": "patches/detector",
    "grade_lesion_contrastive_seed0": "grade/lesion_contrastive/seed0",
    "grade_majority_seed0": "grade/majority/seed0",
}
"""Stages by the name of their log, and where they write."""
OF_A_RUN = {"cost.json"}
"""Files that tell of a run's time and memory."""


@pytest.fixture
def project(snakemade: Project, tmp_path: Path) -> Project:
    """The finished project to read from, with a cache of its own; a copy would cost more than the tests."""
    folder = tmp_path / "project"
    shutil.copytree(snakemade.folder / ".cache", folder / ".cache")
    for name in ("results", "data", "logs", "uv.lock"):
        (folder / name).symlink_to(snakemade.folder / name)
    return Project(folder)


@pytest.fixture
def run(project: Project, monkeypatch: pytest.MonkeyPatch, caplog, capsys) -> Callable:
    """Runs a command in the project, in this process; returns its status and what it logs."""
    monkeypatch.chdir(project.folder)
    monkeypatch.setenv("DRGRADE_TRACKING", "off")

    def run(arguments: list[str]) -> tuple[int, str]:
        caplog.clear()
        with caplog.at_level("INFO"):
            status = main(arguments)
        said = caplog.text + capsys.readouterr().err
        assert "Traceback" not in said
        return status, said

    return run


def command(project: Project, stage: str, out: Path) -> list[str]:
    """The command of a stage, from its log, writing to ``out``."""
    first = (project.folder / f"logs/demo/{stage}.log").read_text().splitlines()[0]
    place = f"results/demo/{OUTPUTS[stage]}"
    words = shlex.split(first.partition(" INFO drgrade ")[2])
    return [str(out) + word.removeprefix(place) if word.startswith(place) else word for word in words]


def contents(folder: Path) -> dict[str, bytes]:
    """Files of a folder by relative path; hidden ones are not outputs."""
    files = [path for path in folder.rglob("*") if path.is_file() and "/." not in str(path)]
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in files
        if path.name not in {*OF_A_RUN, "ballast"}
    }  # fmt: skip


def error(said: str) -> str:
    """The last line, which says what is wrong."""
    return said.splitlines()[-1].removeprefix("drgrade: error: ")


@pytest.mark.parametrize(
    ("stage", "left"),
    [
        ("crop", 2**17),
        ("patches_detector", 2**14),
        ("grade_lesion_contrastive_seed0", 2**20),
    ],
)
def test_a_stage_runs_again_once_the_full_disk_has_room(stage, left, project, run, tmp_path):
    expected = contents(project.file(OUTPUTS[stage]))
    with disk(tmp_path / "small", "32m") as small:
        ballast, out = fill(small, left), small / "out"
        # of raw crops the size is known before; of others it is the workers that meet the full disk
        as_png = [word.replace('"format": "raw"', '"format": "png"') for word in command(project, stage, out)]
        status, said = run(as_png)
        assert status == 2
        assert re.match(rf"{out}.*: the disk is full \(.* free\); make room", error(said))
        assert contents(out).items() <= expected.items()
        assert contents(out) != expected
        ballast.unlink()
        assert run(command(project, stage, out))[0] == 0
        assert contents(out) == expected


def test_predictions_appear_once_there_is_room_for_all(project, run, tmp_path):
    photographs = sorted((project.folder / "data/raw/demo").rglob("*.jpg"))[:4]
    model = "results/demo/grade/lesion_contrastive"
    words = ["predict", *map(str, photographs), "--model", model, "--workers", "1", "--out"]
    assert run([*words, str(tmp_path / "undisturbed.csv")])[0] == 0
    with disk(tmp_path / "small", "1m") as small:
        ballast = fill(small)
        status, said = run([*words, str(small / "out.csv")])
        assert (status, error(said).partition(" (")[0]) == (2, f"{small / 'out.csv'}: the disk is full")
        assert list(small.iterdir()) == [ballast]
        ballast.unlink()
        assert run([*words, str(small / "out.csv")])[0] == 0
        assert (small / "out.csv").read_bytes() == (tmp_path / "undisturbed.csv").read_bytes()


def test_a_checkpoint_without_room_stops_the_training(project, run, tmp_path):
    shutil.rmtree(project.folder / ".cache")
    with disk(project.folder / ".cache", "32m") as cache:
        ballast = fill(cache, 2**20)
        status, said = run(command(project, "grade_lesion_contrastive_seed0", tmp_path / "out"))
        assert status == 2
        assert re.match(r"\S*\.cache/drgrade/training/\w+/last\.ckpt: the disk is full", error(said))
        assert not any(path.stat().st_size for path in cache.rglob("*.ckpt*"))
        assert contents(tmp_path / "out") == {}
        assert ballast.exists()


def test_a_full_disk_under_mlflow_only_warns(project, run, snakemade, tmp_path, monkeypatch):
    with disk(tmp_path / "small", "4m") as small:
        shutil.copy(snakemade.folder / "mlflow.db", small)
        monkeypatch.setenv("DRGRADE_TRACKING", "on")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{small / 'mlflow.db'}")
        fill(small)
        status, said = run(command(project, "grade_majority_seed0", tmp_path / "out"))
    assert status == 0
    assert re.search(r"MLflow: .*database or disk is full; this job goes on untracked", said)
    assert contents(tmp_path / "out") == contents(project.file("grade/majority/seed0"))


@pytest.mark.parametrize("stage", ["crop", "patches_detector"])
def test_a_read_only_disk_is_one_line_and_keeps_what_is_there(stage, project, run, tmp_path):
    with disk(tmp_path / "small", "4m") as small:
        out = shutil.copytree(project.file(OUTPUTS[stage]), small / "out")
        before = contents(out)
        make_read_only(small)
        status, said = run(command(project, stage, out))
        assert status == 2
        assert re.match(rf"{out}\S*: the disk is read-only; mount it for writing", error(said))
        assert contents(out) == before
