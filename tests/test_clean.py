import shutil
from pathlib import Path

import pytest
import yaml
from dvc.repo import Repo

from drgrade.cli import main

ROOT = Path(__file__).parents[1]
NAMED = {
    "datasets": {"demo": {}, "demo_site": {}},
    "roles": {"external": ["demo_site"]},
    "pretrain": {"mine": {"method": "simclr"}},
    "experiments": {"one": {"start": "mine"}, "two": {}},
    "features": {"of_two": {"experiment": "two"}},
    "explanations": {"cam": {"experiment": "one"}},
}
KEPT = [
    "README.md",
    "notes/mine.txt",
    "overlaps/overlaps.json",
    "splits/demo.csv",
    "splits/demo.json",
    "demo/download/manifest.tsv",
    "demo/index/index.parquet",
    "demo/crop/store/shard0.npy",
    "demo/grade/one/seed0/model/model.safetensors",
    "demo/grade/one/seed7/model/model.safetensors",
    "demo/grade/two/seed0/predictions.parquet",
    "demo/pretrain/mine/encoder.json",
    "demo/features/of_two/seed0/mean.npy",
    "demo/explain/cam/scores.json",
    "demo/explain/.snakemake_timestamp",
    "demo/patches/detector/patches.pkl",
    "demo/report/report.html",
    "demo_site/grade/one/seed0/predictions.parquet",
]
STALE = {
    "demo/grade/gone/seed0/predictions.parquet": "demo/grade/gone",
    "demo/pretrain/lesion_contrastive/encoder.json": "demo/pretrain/lesion_contrastive",
    "demo/features/of_gone/seed0/mean.npy": "demo/features/of_gone",
    "demo/explain/gradcam/scores.json": "demo/explain/gradcam",
    "demo_site/grade/gone/seed0/predictions.parquet": "demo_site/grade/gone",
    "idrid/download/manifest.tsv": "idrid",
    "idrid/grade/one/seed0/predictions.parquet": "idrid",
    "splits/idrid.csv": "splits/idrid.csv",
    "splits/idrid.json": "splits/idrid.json",
}
"""Files, and what is deleted with each."""


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(yaml.safe_dump(NAMED))
    for name in [*KEPT, *STALE]:
        path = Path("results", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 1000)
    Path("data/raw/idrid").mkdir(parents=True)
    Path("data/raw/idrid/photograph.jpg").write_bytes(b"x")
    return tmp_path


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_without_yes_it_only_lists(project, capsys):
    before = files(project)
    assert main(["clean"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert files(project) == before
    assert [line.split(":")[0] for line in lines] == [
        f"results/{name}" for name in dict.fromkeys(STALE.values())
    ]
    assert "results/idrid: not in datasets, 0.0 MB" in lines
    assert last == "0.0 MB; nothing is deleted without --yes"


def test_nothing_that_is_named_is_touched(project, capsys):
    assert main(["clean", "--yes"]) == 0
    assert files(project / "results") == set(KEPT)
    assert (project / "data/raw/idrid/photograph.jpg").exists()
    assert "deleted 0.0 MB" in capsys.readouterr().out
    assert main(["clean", "--yes"]) == 0
    assert capsys.readouterr().out == "results: all of it is named in params.yaml\n"


def test_what_another_params_file_names_is_kept(project):
    other = {"datasets": {"idrid": {}}, "roles": dict.fromkeys(("lesions", "pretrain", "grade"), "idrid")}
    Path("idrid.yaml").write_text(yaml.safe_dump({**other, "experiments": {"gone": {}}, "explanations": {}}))
    assert main(["clean", "params.yaml", "idrid.yaml", "--yes"]) == 0
    gone = {"demo/features/of_gone/seed0/mean.npy", "demo/explain/gradcam/scores.json"}
    assert files(project / "results") == {*KEPT, *STALE} - gone


def test_a_broken_params_file_deletes_nothing(project, capsys):
    before = files(project)
    Path("params.yaml").write_text("experiments: {one: {lr: fast}}")
    assert main(["clean", "--yes"]) == 2
    assert "lr" in capsys.readouterr().err
    assert files(project) == before


def test_a_link_is_removed_and_not_what_it_leads_to(project):
    shutil.move("results/idrid", "elsewhere")
    Path("results/idrid").symlink_to(project / "elsewhere")
    assert main(["clean", "--yes"]) == 0
    assert not Path("results/idrid").exists()
    assert Path("elsewhere/download/manifest.tsv").exists()


def test_current_outputs_of_dvc_are_kept(project, capsys):
    """Here another stage made what looks like an experiment, and a folder below that of a dataset."""
    Repo.init(".", no_scm=True).close()
    command = {"cmd": "true"}
    outputs = ["results/demo/grade/gone", "results/idrid/grade"]
    stages = {"other": command | {"outs": outputs}}
    stages["grade"] = {"foreach": "${experiments}", "do": command | {"outs": ["results/demo/grade/${key}"]}}
    Path("dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    assert main(["clean", "--yes"]) == 0
    kept = {name for name in STALE if name.startswith(("demo/grade/gone", "idrid/"))}
    assert files(project / "results") == set(KEPT) | kept
    assert "results/idrid: kept, as DVC tracks it" in capsys.readouterr().out


def test_a_pipeline_that_dvc_cannot_read_deletes_nothing(project, capsys):
    before = files(project / "results")
    Repo.init(".", no_scm=True).close()
    Path("dvc.yaml").write_text("stages: {grade: {cmd: echo, params: 3}}")
    assert main(["clean", "--yes"]) == 2
    assert "drgrade: error: dvc.yaml" in capsys.readouterr().err
    assert files(project / "results") == before
