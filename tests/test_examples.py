"""Params that people start from: the committed files, and the YAML in README and docs."""

import re
import shutil
from pathlib import Path

import pytest
import yaml
from dvc.dependency import ParamsDependency
from dvc.repo import Repo

from drgrade.params import check, load

ROOT = Path(__file__).parents[1]
FILES = [ROOT / "params.yaml", *sorted((ROOT / "params").glob("*.yaml"))]
SNIPPETS = {
    f"{page.name}:{text[: found.start()].count(chr(10)) + 1}": found[1]
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    for text in [page.read_text()]
    for found in re.finditer(r"```yaml\n(.*?)```", text, re.S)
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder under DVC with the pipeline's stages."""
    folder = tmp_path_factory.mktemp("project")
    Repo.init(str(folder), no_scm=True).close()
    shutil.copy(ROOT / "dvc.yaml", folder)
    return folder


def params_that_dvc_reads(folder: Path) -> set[str]:
    """Keys of params.yaml that its stages depend on; DVC refuses a key that is not there."""
    with Repo(str(folder)) as repo:
        found = [
            one for stage in repo.index.stages for one in stage.deps if isinstance(one, ParamsDependency)
        ]
        return {key for one in found for key in one.get_hash().value}


def test_the_pages_have_snippets() -> None:
    assert len([name for name in SNIPPETS if name.startswith("README.md")]) == 3


@pytest.mark.parametrize("snippet", SNIPPETS.values(), ids=SNIPPETS)
def test_a_snippet_in_params_yaml_is_read_by_snakemake_and_dvc(snippet: str, project: Path) -> None:
    """Put into params.yaml as it stands: its blocks take the place of those that are there."""
    blocks = yaml.safe_load(snippet)
    if "pretrain" in blocks:  # experiments start from its encoders, no longer from those that were there
        blocks = {"experiments": {name: {"start": name} for name in blocks["pretrain"]}} | blocks
        blocks["explanations"] = {}
    values = yaml.safe_load((ROOT / "params.yaml").read_text()) | blocks
    check(values, "params.yaml")
    (project / "params.yaml").write_text(yaml.safe_dump(values))
    keys = params_that_dvc_reads(project)
    assert {"crop", "grade", "experiments"} <= keys


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_committed_file_as_params_yaml_is_read_by_snakemake_and_dvc(path: Path, project: Path) -> None:
    load(path)
    shutil.copy(path, project / "params.yaml")
    assert {"download", "detector", "evaluate"} <= params_that_dvc_reads(project)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_committed_file_is_short(path: Path) -> None:
    """What one would change and what differs from the defaults; the rest is in the schema."""
    rows = len(yaml.safe_load(path.read_text())["experiments"])
    assert len(path.read_text().splitlines()) - rows <= 40
