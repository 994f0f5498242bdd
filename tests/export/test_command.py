import json

import pytest

from drgrade.cli import main
from drgrade.export import command
from drgrade.export.errors import UnsuitableError
from drgrade.predict.model import Model
from drgrade.predict.source import EXPORT


@pytest.fixture(autouse=True)
def writers(monkeypatch):
    """Quick writers in place of those that their own tests try; timm is not possible."""

    def writer(kind, model, portable):
        def write(folder):
            if kind == "timm":
                raise UnsuitableError("the encoder is of no kind that it knows")
            folder.mkdir()
            (folder / "file").write_text(str(len(list(portable.rglob("model.json")))))
            return "a file"

        return write

    monkeypatch.setattr(command, "_writer", writer)


def export(results, out, *options) -> int:
    return main(["export", "--model", str(results), "--out", str(out), *options])


def test_all_that_is_possible_is_written(results, tmp_path, capsys):
    assert export(results, tmp_path / "new/exported") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == [
        "members: seed0, seed1 of net",
        "onnx: a file",
        "timm: left out; the encoder is of no kind that it knows",
        "mlflow: a file",
    ]
    folder = tmp_path / "new/exported"
    assert {path.name for path in folder.iterdir()} == {
        "drgrade.json", "provenance.json", "LICENSE", "members", "onnx", "mlflow",
    }  # fmt: skip
    assert (folder / "mlflow/file").read_text() == "2"
    assert list(Model.load(folder).members) == ["seed0", "seed1"]
    assert [path.name for path in folder.parent.iterdir()] == ["exported"]


def test_an_older_export_is_replaced(results, tmp_path):
    assert export(results, tmp_path / "exported") == 0
    assert export(results / "seed1", tmp_path / "exported", "--onnx") == 0
    assert json.loads((tmp_path / "exported" / EXPORT).read_text())["members"] == ["members/seed1"]
    assert not (tmp_path / "exported/mlflow").exists()


@pytest.mark.parametrize("present", [["notes.txt"], [EXPORT, "notes.txt"], ["members"]])
def test_what_no_export_wrote_stays(results, tmp_path, present, capsys):
    (tmp_path / "mine").mkdir()
    for name in present:
        (tmp_path / "mine" / name).write_text("mine")
    assert export(results, tmp_path / "mine") == 2
    assert "mine: holds something other than an export; name a new folder" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == sorted(present)


def test_an_empty_folder_is_taken_and_a_file_is_not(results, tmp_path):
    (tmp_path / "empty").mkdir()
    assert export(results, tmp_path / "empty", "--onnx") == 0
    (tmp_path / "file").write_text("mine")
    assert export(results, tmp_path / "file", "--onnx") == 2
    assert (tmp_path / "file").read_text() == "mine"


def test_what_is_asked_for_and_not_possible_is_an_error(results, tmp_path, capsys):
    assert export(results, tmp_path / "exported", "--mlflow", "--timm") == 2
    assert "drgrade: error: --timm: the encoder is of no kind" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


def test_an_export_of_an_export_is_refused(results, tmp_path, capsys):
    assert export(results, tmp_path / "exported") == 0
    for model in (tmp_path / "exported", "models:/drgrade@champion"):
        assert export(model, tmp_path / "again") == 2
        assert "is an export already; name the folder of an experiment" in capsys.readouterr().err
