"""The block ``artifacts`` of dvc.yaml: what others can get from a repository by name."""

from pathlib import Path

import pytest
import yaml
from dulwich import porcelain
from dvc.repo import Repo
from dvc.repo.artifacts import Artifacts

ROOT = Path(__file__).parents[2]
FILES = {
    "encoder": "results/demo/pretrain/lesion_contrastive/weights/encoder.safetensors",
    "grader": "results/demo/grade/lesion_contrastive/seed0/model/model.json",
}


@pytest.fixture
def repository(tmp_path, monkeypatch) -> Path:
    """A repository with the committed block, and of the stages those that make the artifacts."""
    folder = tmp_path / "repository"
    folder.mkdir()
    dvc = yaml.safe_load((ROOT / "dvc.yaml").read_text())
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    stages = {name: dvc["stages"][name] for name in ("pretrain", "grade")}
    for stage in stages.values():
        del stage["do"]["deps"], stage["do"]["params"]
        stage["foreach"] = {"lesion_contrastive": {}}
    text = yaml.safe_dump({"stages": stages, "artifacts": dvc["artifacts"]})
    (folder / "dvc.yaml").write_text(text)
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    (folder / ".gitignore").write_text("/results/\n")
    for name, file in FILES.items():
        (folder / file).parent.mkdir(parents=True)
        (folder / file).write_text(name)
    (folder / "results/demo/pretrain/lesion_contrastive/encoder.json").write_text("{}")
    monkeypatch.chdir(folder)
    porcelain.init(".")
    with Repo.init() as repo:
        repo.commit(force=True)
    porcelain.add(paths=["dvc.yaml", "dvc.lock", "params.yaml", ".gitignore", ".dvc/config"])
    porcelain.commit(message=b"models", author=b"a <a@b>", committer=b"a <a@b>")
    for name in FILES:
        porcelain.tag_create(".", f"{name}@v1.0.0".encode(), annotated=True, author=b"a <a@b>", message=b"a")
    return folder


def test_others_get_encoder_and_grader_by_name(repository, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, file in FILES.items():
        _, out = Artifacts.get(str(repository), name, out=str(tmp_path / name))
        found = [path for path in Path(out).rglob("*") if path.is_file()]
        assert [path.name for path in found] == [Path(file).name]
        assert found[0].read_text() == name
