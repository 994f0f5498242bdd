"""One real run of the whole pipeline on a tiny painted dataset; each test works on a copy of it."""

import compileall
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from filelock import FileLock
from PIL import Image
from tests.pipeline import fork_server

ROOT = Path(__file__).parents[2]
TRACKED = (
    "Snakefile", "dvc.yaml", "workflow", "params", "profiles", "src", ".dvcignore", "uv.lock",
    "data/weights/README.md",
)  # fmt: skip

NEVER_CHANGED = ("/.git/objects/", "/.dvc/cache/files/", "/mlruns/")
"""Folders of files that are named by their content, or are uploaded once."""

TINY = {
    "download": {
        "demo": {"patients": 10, "segmentation": 4, "width": 320},
        "demo_site": {"patients": 5, "width": 320},
    },
    "index": {"val_fraction": 0.2, "test_fraction": 0.3},
    "crop": {"size": 96},
    "lesion_boxes": {"tile": 128, "scale": 1.0},
    "detector": {"epochs": 1},
    "lesions": {"min_score": 0.001},
    "segmentation": {"tile": 64, "scale": 0.5, "epochs": 1, "tiles_per_photograph": 2},
    "segmentation_metrics": {"bootstrap": 100, "examples": 1},
    "patches": {"size": 48, "min_score": 0.001, "border": 0},
    "pretrain": {"lesion_contrastive": {"epochs": 1, "batch_size": 4}},
    "grade": {"input_size": 48, "epochs": 1, "batch_size": 4},
    "evaluate": {"bootstrap": 100},
    "explanations": {"cam": {"images": 2}},
    "robustness": {"experiments": ["lesion_contrastive"], "severities": [3], "bootstrap": 100},
    "report": {"sheet": 4},
}
EXPERIMENTS = {
    "majority": {"grader": "majority", "seeds": [0]},
    "lesion_contrastive": {"grader": "finetune", "start": "lesion_contrastive"},
}


def merged(values: dict, changes: dict) -> dict:
    """``values`` with those of ``changes``, blocks within blocks too."""
    both = {key: merged(values[key], changes[key]) for key in values.keys() & changes.keys()
            if isinstance(changes[key], dict)}  # fmt: skip
    return values | changes | both


def tiny() -> dict:
    """The committed params.yaml at sizes for a test."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    return merged(params, TINY) | {"experiments": EXPERIMENTS}


class Project:
    """A checkout in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, *command: str, ok: bool = True, **environment: str) -> str:
        """Run a command in the folder; returns stdout and stderr together."""
        variables = {
            key: value for key, value in os.environ.items()
            if not key.startswith(("DRGRADE", "MLFLOW")) or key == "DRGRADE_THREADS"
        }  # fmt: skip
        variables["PYTHONPATH"] = str(self.folder / "src")  # before the installed code of the main checkout
        forked, variables = fork_server.client(command, variables | environment)
        result = subprocess.run(
            forked, cwd=self.folder, env=variables, text=True, timeout=540,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
        assert (result.returncode == 0) == ok, f"{command}\n{result.stdout[-6000:]}"
        return result.stdout

    def snakemake(self, *arguments: str, ok: bool = True, **environment: str) -> str:
        """Run Snakemake with two cores."""
        return self.run("snakemake", "--cores", "2", *arguments, ok=ok, **environment)

    def planned(self, *arguments: str) -> set[str]:
        """Rules that a run would execute now."""
        lines = self.snakemake("--dry-run", "--quiet", "rules", *arguments).splitlines()
        rules = [line.split()[0] for line in lines if len(line.split()) == 2 and line.split()[1].isdigit()]
        return set(rules) - {"total", "all"}

    @property
    def params(self) -> dict:
        """The params file as it stands."""
        return yaml.safe_load((self.folder / "params.yaml").read_text())

    def edit(self, change: dict) -> None:
        """Change values of params.yaml."""
        params = self.params
        for key, value in change.items():
            *path, last = key.split(".")
            block = params
            for part in path:
                block = block.setdefault(part, {})
            block[last] = value
        (self.folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))

    def clone(self, folder: Path) -> "Project":
        """A fresh Git clone of this project."""
        self.run("git", "clone", "-q", str(self.folder), str(folder))
        return Project(folder)

    def write_photographs(self, *grades: int) -> Path:
        """The dataset ``folder`` of random images, 0.png, 1.png and so on, with these grades; its place."""
        folder = self.folder / "data/raw/folder"
        (folder / "images").mkdir(parents=True, exist_ok=True)
        for number in range(len(grades)):
            pixels = np.random.default_rng(number).integers(0, 256, (64, 64, 3), np.uint8)
            if not (folder / f"images/{number}.png").exists():
                Image.fromarray(pixels).save(folder / f"images/{number}.png")
        rows = "".join(f"{number},{grade}\n" for number, grade in enumerate(grades))
        (folder / "labels.csv").write_text("image,grade\n" + rows)
        return folder

    def file(self, path: str) -> Path:
        """A file of the dataset's results."""
        return self.folder / "results/demo" / path


def start(folder: Path) -> Project:
    """A fresh checkout with tiny params, under Git and DVC."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in TRACKED:
        source = ROOT / name
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        ignore = shutil.ignore_patterns("__pycache__")
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=ignore)
        else:
            shutil.copy(source, folder / name)
    (folder / "params.yaml").write_text(yaml.safe_dump(tiny(), sort_keys=False))
    (folder / ".gitignore").write_text(
        "/results/\n/data/raw/\n/logs/\n/.snakemake/\n/.cache/\n/mlruns/\n/mlflow.db*\n__pycache__/\n"
    )
    compileall.compile_dir(folder / "src", quiet=1)  # once for all commands in all copies
    project = Project(folder)
    project.run("git", "init", "-q", "-b", "main")
    project.run("git", "config", "user.email", "test@example.org")
    project.run("git", "config", "user.name", "test")
    project.run("git", "config", "commit.gpgsign", "false")  # whatever the user's own settings ask for
    project.run("dvc", "init", "-q")
    shutil.copy(ROOT / ".dvc/config", folder / ".dvc/config")
    shutil.copytree(ROOT / ".dvc/plots", folder / ".dvc/plots")
    project.run("git", "add", "-A")
    project.run("git", "commit", "-q", "-m", "start")
    return project


def shared(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Project:
    """A project that the first process to ask for it makes, and all processes of the test run use."""
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder = root / name
    with FileLock(f"{folder}.lock"):
        if not (folder / "made").exists():
            assert not (folder / "run").exists(), f"{name} was not made: the first test that failed tells why"
            make(folder / "run")
            (folder / "made").touch()
    return Project(folder / "run")


def copy(project: Project, folder: Path) -> Project:
    """A copy of a project, yours to change; files that are never changed in their place are links."""

    def link_or_copy(source: str, target: str) -> None:
        (os.link if any(place in source for place in NEVER_CHANGED) else shutil.copy2)(source, target)

    shutil.copytree(project.folder, folder, symlinks=True, copy_function=link_or_copy)
    return Project(folder)


@pytest.fixture(scope="session")
def snakemade(started, tmp_path_factory) -> Project:
    """A finished Snakemake run. Do not change it: ask for ``finished``."""

    def make(folder: Path) -> None:
        project = copy(started, folder)
        (folder / "run.log").write_text(project.snakemake("--resources", "gpu=1"))

    return shared(tmp_path_factory, "snakemade", make)


@pytest.fixture(scope="session")
def started(tmp_path_factory) -> Project:
    """A checkout in which nothing has run yet. Do not change it: ask for ``fresh``."""
    return shared(tmp_path_factory, "started", start)


@pytest.fixture
def fresh(started, tmp_path) -> Project:
    """A checkout in which nothing has run yet, yours to change."""
    return copy(started, tmp_path / "fresh")


@pytest.fixture(scope="session")
def recorded(snakemade, tmp_path_factory) -> Project:
    """The finished run after ``dvc repro``. Do not change it: ask for ``versioned``."""

    def make(folder: Path) -> None:
        project = copy(snakemade, folder)
        (folder / "repro.log").write_text(project.run("dvc", "repro"))
        project.run("git", "add", "-A")
        project.run("git", "commit", "-q", "-m", "recorded")

    return shared(tmp_path_factory, "recorded", make)


@pytest.fixture
def finished(snakemade, tmp_path) -> Project:
    """A copy of the finished run, yours to change."""
    return copy(snakemade, tmp_path / "run")


@pytest.fixture
def versioned(recorded, tmp_path) -> Project:
    """A copy of the run that DVC has recorded, yours to change."""
    return copy(recorded, tmp_path / "run")
