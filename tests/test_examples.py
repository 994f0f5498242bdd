"""Params that people start from: the committed files, and the YAML in README and docs."""

import re
import shutil
from pathlib import Path

import pytest
import yaml
from dvc.dependency import ParamsDependency
from dvc.repo import Repo

from drgrade.cli import main
from drgrade.params import check, load

ROOT = Path(__file__).parents[1]
FILES = [ROOT / "params.yaml", *sorted((ROOT / "params").glob("*.yaml"))]
OTHER_FILES = ("# partitions.yaml", "apiVersion:", "set-scatter:")
"""How snippets for other files than params.yaml begin: of SLURM's plugin, Kubernetes, a profile."""
SNIPPETS = {
    f"{page.name}:{text[: found.start()].count(chr(10)) + 1}": found[1]
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    for text in [page.read_text()]
    for found in re.finditer(r"```yaml\n(.*?)```", text, re.S)
    if not found[1].startswith(OTHER_FILES)
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
    assert len(path.read_text().splitlines()) - rows <= 42


def test_the_ablation_of_deepmt_is_checked_and_says_what_it_costs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """18 rows of three seeds; nothing is missing but the weights that its first lines name."""
    monkeypatch.chdir(tmp_path)
    path = ROOT / "params/deepmt_ablation.yaml"
    assert main(["check", str(path)]) == 2
    said = capsys.readouterr()
    weights = "data/weights/resnet18.tv_in1k.safetensors"
    assert weights in path.read_text()
    (line,) = said.err.splitlines()
    assert f"{weights}: no such file" in line
    # of 14,430 photographs 6,835 in 13,673 train, for 10, 10 and 5 epochs, in pairs in the outer phases
    passes = 3 * (17 * (2 * 10 + 10 + 2 * 5) + 10 + 2 * 5) * 14_430 * 6_835 / 13_673
    assert f"grade: 54 runs, {passes:.0f} photograph passes" in said.out
    assert round(passes / 1e6) == 15  # as its first lines say
    assert "15 million passes" in path.read_text()
