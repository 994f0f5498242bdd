"""The container has the environment and no code: ``drgrade`` in it runs the clone that it is started in."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from drgrade import schema

ROOT = Path(__file__).parents[1]
COMMAND = ROOT / "envs/drgrade"


def steps(name: str) -> list[str]:
    """The arguments of each instruction of one kind in the Dockerfile."""
    text = (ROOT / "envs/Dockerfile").read_text().replace("\\\n", " ")
    return re.findall(rf"^{name} +(.+)$", text, re.M)


def test_the_image_holds_the_locked_environment_and_no_code():
    copied = [argument for step in steps("COPY") + steps("ADD") for argument in step.split()[:-1]]
    assert [path for path in copied if not path.startswith("--")] == [
        "pyproject.toml", "uv.lock", "envs/drgrade"
    ]  # fmt: skip
    assert all((ROOT / path).is_file() for path in copied if not path.startswith("--"))
    (sync,) = (step for step in steps("RUN") if "uv sync" in step)
    assert {"--frozen", "--no-dev", "--no-install-project"} <= set(sync.split())
    python = "{}.{}".format(*sys.version_info)
    assert steps("FROM") == [f"python:{python}-slim"]
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert wanted.startswith(f">={python},")


def test_the_rules_name_the_image_that_the_readme_builds():
    (image,) = re.findall(r'^container: "docker://(.+)"$', (ROOT / "Snakefile").read_text(), re.M)
    for file in ("envs/README.md", "envs/Dockerfile"):
        assert f"docker build -f envs/Dockerfile -t {image} ." in (ROOT / file).read_text()


@pytest.fixture
def container(tmp_path):
    """What the image holds: an environment with all libraries, without drgrade, and the lock file."""
    folder = tmp_path / "opt"
    venv.create(folder / ".venv")
    (packages,) = folder.glob(".venv/lib/python*/site-packages")
    # of a folder that is named here, files that name others are not read, as that of the editable drgrade
    (packages / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    shutil.copy(ROOT / "uv.lock", folder)
    return folder


@pytest.fixture
def clone(tmp_path):
    """A clone with the code alone."""
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "src", tmp_path / "clone/src", ignore=ignore)
    shutil.copy(ROOT / "uv.lock", tmp_path / "clone")
    return tmp_path / "clone"


def run(container: Path, clone: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command as in the container, in a folder."""
    variables = {
        "PATH": f"{container}/.venv/bin:{os.environ['PATH']}",
        "DRGRADE_DEMO_ROOT": str(clone / "raw"),
    }
    return subprocess.run(command, cwd=clone, env=variables, capture_output=True, text=True, check=False)


def test_a_rule_runs_the_code_of_the_clone(container, clone):
    alone = run(container, clone, "python", "-P", "-c", "import pandas, drgrade")
    assert "No module named 'drgrade'" in alone.stderr
    (clone / "raw").mkdir()
    Image.fromarray(np.full((60, 60, 3), 90, np.uint8)).save(clone / "raw/a.png")
    index = pd.DataFrame({"image_id": ["a"], "path": ["a.png"], "status": ["ok"], "reason": [""]})
    schema.write_table(index.reindex(columns=list(schema.INDEX)), clone / "index.parquet", schema.INDEX)
    source = clone / "src/drgrade/images/stage.py"
    text = source.read_text()
    source.write_text(text.replace('log.info("cropped', 'log.info("cropped by this clone'))
    cropped = run(
        container, clone, str(COMMAND), "crop", "--dataset", "demo", "--params", '{"size": 32}',
        "--index", "index.parquet", "--store", "store.json", "--table", "crops.parquet",
    )  # fmt: skip
    assert cropped.returncode == 0, cropped.stderr
    assert "cropped by this clone 1 of 1" in cropped.stderr
    assert schema.read_table(clone / "crops.parquet", schema.CROPS)["status"].tolist() == ["ok"]


def test_a_container_of_other_packages_is_refused(container, clone):
    for folder in (container, clone):
        lock = folder / "uv.lock"
        lock.write_text(lock.read_text() + "\n")
        refused = run(container, clone, str(COMMAND), "--help")
        lock.write_text(lock.read_text()[:-1])
        assert refused.returncode == 2
        assert re.fullmatch(r"drgrade: error: uv\.lock: .*; build it again \(.*\)\n", refused.stderr)
    assert run(container, clone, str(COMMAND), "--help").returncode == 0


def test_outside_a_clone_it_says_where_to_start(container, tmp_path):
    refused = run(container, tmp_path, str(COMMAND), "--help")
    assert refused.returncode == 2
    assert (
        refused.stderr
        == f"drgrade: error: {tmp_path}: no src/drgrade here; start the container in the folder of a clone\n"
    )
