import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from drgrade.cli import main
from drgrade.errors import UserError
from drgrade.grading.finetune import Finetune, Params
from drgrade.params import Crop
from drgrade.predict import model as module
from drgrade.predict.files import predict_files, unique_names
from drgrade.predict.table import COLUMNS


@pytest.fixture
def model(tmp_path):
    """A network that has learnt nothing, with a head that makes its scores differ."""
    grader = Finetune(Params(input_size=32), Crop(size=48))
    grader.network = grader.new_network("imagenet")
    grader.save(tmp_path / "model")
    return tmp_path / "model"


def tagged(path: Path, pixels: np.ndarray) -> None:
    """A DICOM photograph."""
    from pydicom.dataset import Dataset, FileMetaDataset

    found = Dataset()
    found.file_meta = FileMetaDataset()
    found.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    found.SOPClassUID = "1.2.840.10008.5.1.4.1.1.77.1.5.1"  # ophthalmic photography, 8 bit
    found.SOPInstanceUID = "1.2.3"
    found.Rows, found.Columns, found.SamplesPerPixel = *pixels.shape[:2], 3
    found.PhotometricInterpretation, found.PlanarConfiguration, found.PixelRepresentation = "RGB", 0, 0
    found.BitsAllocated, found.BitsStored, found.HighBit = 8, 8, 7
    found.PixelData = pixels.tobytes()
    found.save_as(path, enforce_file_format=True)


def disc(red: int) -> Image.Image:
    y, x = np.mgrid[:120, :160]
    inside = (x - 80) ** 2 + (y - 60) ** 2 < 55**2
    return Image.fromarray((inside[..., None] * np.array([red, 60, 20])).astype(np.uint8))


def test_a_folder_with_a_broken_photograph_is_graded_all_the_same(model, tmp_path):
    folder = tmp_path / "photographs"
    folder.mkdir()
    disc(200).save(folder / "a.jpg")
    disc(120).save(folder / "b.png")
    (folder / "c.jpg").write_text("not a photograph")
    (folder / "d.jpg").write_bytes((folder / "a.jpg").read_bytes()[:900])
    (folder / "notes.txt").write_text("left alone")
    predict_files([folder], model, tmp_path / "grades.csv")
    table = pd.read_csv(tmp_path / "grades.csv", keep_default_na=False)
    assert [path.rsplit("/", 1)[1] for path in table["file"]] == ["a.jpg", "b.png", "c.jpg", "d.jpg"]
    assert list(table["status"]) == ["ok", "ok", "failed", "failed"]
    assert all(table["reason"][2:])
    assert list(table["score"][2:]) == ["", ""]
    assert set(table["use"]) == {"research only, not a diagnosis"}


def test_folders_are_searched_as_the_pipeline_does(model, tmp_path, caplog):
    folder, linked = tmp_path / "photographs", tmp_path / "elsewhere"
    (folder / "sub").mkdir(parents=True)
    linked.mkdir()
    for place in (
        folder / "a.jpg",
        folder / "sub/b.WEBP",
        folder / "._a.jpg",
        linked / "c.tif",
        folder / "d.bmp",
    ):
        disc(200).save(place, {".webp": "WEBP"}.get(place.suffix.lower()))
    tagged(folder / "e.dcm", np.asarray(disc(150)))
    (folder / "linked").symlink_to(linked)
    (folder / "linked/again").symlink_to(folder)
    (folder / ".hidden").mkdir()
    disc(90).save(folder / ".hidden/f.jpg")
    (folder / "gone.jpg").symlink_to(tmp_path / "nowhere")
    (folder / "notes.txt").write_text("left alone")
    predict_files([folder], model, tmp_path / "grades.csv")
    table = pd.read_csv(tmp_path / "grades.csv", keep_default_na=False)
    names = [str(Path(path).relative_to(folder)) for path in table["file"]]
    assert names == ["a.jpg", "d.bmp", "e.dcm", "gone.jpg", "linked/c.tif", "sub/b.WEBP"]
    assert list(table["status"]) == ["ok", "ok", "ok", "failed", "ok", "ok"]
    assert table["reason"][3] == "no such file or directory"
    assert "files that are not read: 1, such as" in caplog.text


def test_what_shows_no_retina_is_not_graded_unless_forced(model, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (120, 160, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    Image.fromarray(noise * 0 + 255).save(tmp_path / "white.png")
    disc(200).save(tmp_path / "eye.png")
    paths = [tmp_path / f"{name}.png" for name in ("eye", "noise", "white")]
    predict_files(paths, model, tmp_path / "grades.csv")
    table = pd.read_csv(tmp_path / "grades.csv")
    assert list(table["status"]) == ["ok", "no retina found", "no retina found"]
    assert table["grade"].notna().tolist() == [True, False, False]
    assert table["reason"][1] == "neither a field of view nor the colours of a retina"
    assert table["crop_rule"].tolist() == ["disc", "disc:fallback_square", "disc:fallback_square"]
    assert table["fov"].tolist() == [1, 0, 0]
    assert table["quality"][1:].tolist() == [0, 0]
    predict_files(paths, model, tmp_path / "forced.csv", force=True)
    forced = pd.read_csv(tmp_path / "forced.csv")
    assert list(forced["status"]) == list(table["status"])
    assert forced["grade"].notna().all()
    assert forced["score"][0] == table["score"][0]


def test_the_table_does_not_depend_on_the_workers(model, tmp_path, monkeypatch):
    for name, value in {"BATCH": 2, "CHUNK": 1, "WORTH": 1}.items():
        monkeypatch.setattr(module, name, value)
    for number in range(5):
        disc(90 + 30 * number).save(tmp_path / f"{number}.png")
    paths = [tmp_path / f"{number}.png" for number in range(5)]
    predict_files(paths, model, tmp_path / "one.csv")
    predict_files(paths, model, tmp_path / "two.csv", workers=2)
    assert (tmp_path / "one.csv").read_text() == (tmp_path / "two.csv").read_text()


def test_a_place_that_cannot_be_written_is_named_before_any_work(model, tmp_path):
    disc(200).save(tmp_path / "a.png")
    (tmp_path / "file").write_text("no folder")
    for out, why in ((tmp_path, "is a folder"), (tmp_path / "file/grades.csv", "cannot be written")):
        with pytest.raises(UserError, match=f"{out}: {why}"):
            predict_files([tmp_path / "none.png", tmp_path / "a.png"], model, out)


def test_a_model_is_named_by_its_folder_or_file_and_a_damaged_one_is_one_line(model, tmp_path):
    disc(200).save(tmp_path / "a.png")
    predict_files([tmp_path / "a.png"], model / "model.json", tmp_path / "o.csv")
    whole = (model / "model.json").read_text()
    for damage in ("{", "[]", whole.replace('"crop"', '"crib"'), whole.replace('"size": 48', '"size": "x"')):
        (model / "model.json").write_text(damage)
        with pytest.raises(UserError) as error:
            predict_files([tmp_path / "a.png"], model, tmp_path / "o.csv")
        assert "\n" not in str(error.value)
        assert "model.json" in str(error.value)
    (model / "model.json").write_text(whole)
    (model / "model.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(UserError, match=r"model\.safetensors: "):
        predict_files([tmp_path / "a.png"], model, tmp_path / "o.csv")


def test_one_photograph_gets_the_same_score_alone_and_in_company(model, tmp_path):
    disc(200).save(tmp_path / "a.png")
    disc(90).save(tmp_path / "b.png")
    predict_files([tmp_path / "a.png"], model, tmp_path / "alone.csv")
    predict_files([tmp_path / "b.png", tmp_path / "a.png"], model, tmp_path / "both.csv")
    alone, both = (pd.read_csv(tmp_path / name) for name in ("alone.csv", "both.csv"))
    assert alone.loc[0, "score"] == pytest.approx(both.loc[1, "score"], abs=2e-4)
    p = alone.loc[0, [f"p{grade}" for grade in range(5)]].astype(float)
    assert p.sum() == pytest.approx(1, abs=1e-3)
    assert (p * np.arange(5)).sum() == pytest.approx(alone.loc[0, "score"], abs=1e-3)


def test_what_is_missing_is_named(model, tmp_path):
    with pytest.raises(UserError, match=r"gone\.jpg: no such file"):
        predict_files([tmp_path / "gone.jpg"], model, tmp_path / "o.csv")
    disc(200).save(tmp_path / "a.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: no trained model there; name the folder of an experiment"):
        predict_files([tmp_path / "a.png"], tmp_path / "empty", tmp_path / "o.csv")
    with pytest.raises(UserError, match="holds no photographs"):
        predict_files([tmp_path / "empty"], model, tmp_path / "o.csv")
    assert json.loads((model / "model.json").read_text())["crop"]["size"] == 48


def test_batches_keep_the_eyes_of_a_patient_together(monkeypatch):
    monkeypatch.setattr(module, "BATCH", 3)
    names = ["a/1_left", "a/1_right", "a/2_left", "a/2_right", "b/1_left", "b/scan", "b/2_OD", "b/2_OS"]
    groups = module._groups([Path(f"{name}.png") for name in names])
    assert groups == [[0, 1], [2, 3, 4], [5, 6, 7]]


def test_heat_maps_are_drawn_of_what_is_graded(model, tmp_path):
    folder = tmp_path / "photographs"
    for name in ("one", "two"):
        (folder / name).mkdir(parents=True)
        disc(200).save(folder / name / "a.png")
    (folder / "two/b.png").write_text("no photograph")
    old = tmp_path / "grades_heat_maps"
    old.mkdir()
    (old / "of_before.png").touch()
    predict_files([folder], model, tmp_path / "grades.csv", explain="auto")
    table = pd.read_csv(tmp_path / "grades.csv", keep_default_na=False)
    columns = list(table)
    assert columns == [*columns[:17], "heat_map", *columns[18:]]
    assert [name for name in columns if name != "heat_map"] == list(COLUMNS)
    assert list(table["heat_map"]) == ["grades_heat_maps/a.png", "grades_heat_maps/a_2.png", ""]
    assert sorted(path.name for path in old.iterdir()) == ["a.png", "a_2.png"]
    assert not np.array_equal(np.asarray(Image.open(old / "a.png")), np.asarray(disc(200)))


def test_a_method_that_does_not_suit_the_network_is_refused(model, tmp_path):
    disc(200).save(tmp_path / "a.png")
    for method, why in {
        "attention": "attention needs a vision transformer",
        "segmentation": "reads the lesion stages",
        "a.png": "is the name spelled right",
    }.items():
        with pytest.raises(UserError, match=f"--explain {method}: .*{why}"):
            predict_files([tmp_path / "a.png"], model, tmp_path / "grades.csv", explain=method)


def test_an_interrupted_run_leaves_nothing(model, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BATCH", 1)
    for name in "ab":
        disc(200).save(tmp_path / f"{name}.png")
    out = tmp_path / "out/grades.csv"
    predict, calls = Finetune.predict, []

    def interrupted(self, photographs):
        calls.append(len(photographs))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return predict(self, photographs)

    monkeypatch.setattr(Finetune, "predict", interrupted)
    with pytest.raises(KeyboardInterrupt):
        predict_files([tmp_path / "a.png", tmp_path / "b.png"], model, out, explain="cam")
    assert calls == [1, 1]
    assert list(out.parent.iterdir()) == []


def test_every_photograph_has_a_file_name_of_its_own():
    names = ["a/1.png", "a/1.jpg", "b/1_2.png", "b/1.png", "b/A.png", "c/a.png"]
    found = unique_names([Path(name) for name in names])
    assert found == ["1.png", "1_2.png", "1_2_2.png", "1_3.png", "A.png", "a_2.png"]


def test_the_command_line(model, tmp_path, capsys):
    disc(200).save(tmp_path / "a.png")
    command = ["predict", str(tmp_path / "a.png"), "--model", str(model), "--out", str(tmp_path / "o.csv")]
    assert main([*command, "--workers", "1", "--explain"]) == 0
    table = pd.read_csv(tmp_path / "o.csv")
    assert table["heat_map"].tolist() == ["o_heat_maps/a.png"]
    assert table["referable"].isna().all()
    assert main([*command, "--workers", "1", "--point", "youden"]) == 2
    assert "drgrade: error: --point youden: not available" in capsys.readouterr().err
