import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tests.evaluate.tables import drawn, predictions, written
from tests.images.test_read import eye, save

from drgrade.errors import UserError
from drgrade.evaluate.calibrate import FILE, calibrate, read_calibration
from drgrade.evaluate.fits import NOTHING_VALIDATES
from drgrade.evaluate.operating import POINTS
from drgrade.grading.base import GRADERS, Grader, Output
from drgrade.images.crop import crop_photograph
from drgrade.params import Calibrate, Crop, Experiment
from drgrade.predict import model as module
from drgrade.predict.model import Model
from drgrade.predict.source import EXPORT, EXPORTED, Exported
from drgrade.predict.table import COLUMNS, set_text

CROP = Crop(size=32)
P = [f"p{grade}" for grade in range(5)]
SHIFTS = {"seed0": -0.5, "seed1": 0.25}


class Brightness(Grader):
    """The score is the crop's mean red in 0-4, plus a number that differs between trainings."""

    shift = 0.0

    def fit(self, job):
        raise NotImplementedError

    def predict(self, photographs):
        score = photographs.images[photographs.rows][..., 0].mean(axis=(1, 2)) / 255 * 4 + self.shift
        weights = np.exp(-((np.arange(5) - score[:, None]) ** 2))
        return Output(weights / weights.sum(axis=1, keepdims=True), score)

    def facts(self):
        return {"shift": self.shift}

    def rebuild(self, facts, shapes):
        self.shift = facts["shift"]


class Partner(Brightness):
    """The score is 1 where the other eye is there, else 0."""

    def predict(self, photographs):
        return Output(np.eye(5)[(photographs.partner() >= 0).astype(int)])


@pytest.fixture(autouse=True)
def graders(monkeypatch):
    monkeypatch.setitem(GRADERS._parts, "brightness", Brightness)
    monkeypatch.setitem(GRADERS._parts, "partner", Partner)


def trained(folder: Path, kind=Brightness, shift=0.0, crop=CROP) -> None:
    grader = kind(Experiment(grader=kind.__name__.lower()), crop)
    grader.shift = shift
    grader.save(folder / "model")


@pytest.fixture
def experiment(tmp_path):
    """An experiment of two seeds, in its place in the results."""
    folder = tmp_path / "results/own/grade/one"
    for label, shift in SHIFTS.items():
        trained(folder / label, shift=shift)
    trained(folder / "seed0_part1of2", shift=100)  # never a member
    return folder


def calibrated(experiment: Path, seeds=(0, 1), split="val", **params) -> Path:
    """What the stage calibrate writes for overconfident predictions."""
    grades, probabilities = drawn(60, confidence=2)
    tables = []
    for name in (split, "test"):
        table = predictions("one", 0, seeds=seeds, split=name)
        table["grade"] = np.tile(grades, len(seeds))
        table[P] = np.tile(probabilities, (len(seeds), 1))
        tables.append(table)
    out = experiment.parents[1] / "calibrate"
    calibrate(written(out, pd.concat(tables)), Calibrate(**params), out)
    return out / FILE


@pytest.fixture
def photographs(tmp_path):
    """Discs of rising brightness."""
    return [
        save(tmp_path / f"{number}.png", (eye(160, 120, 55) * (0.3 + 0.2 * number)).astype(np.uint8))
        for number in range(7)
    ]


def raw(photographs, labels=("seed0", "seed1")):
    """Mean probabilities and scores of the members, computed apart."""
    red = np.array([crop_photograph(path, CROP)[0][..., 0].mean() for path in photographs]) / 255 * 4
    scores = red[:, None] + np.array([SHIFTS[label] for label in labels])
    weights = np.exp(-((np.arange(5) - scores[..., None]) ** 2))
    return (weights / weights.sum(axis=2, keepdims=True)).mean(axis=1), scores.mean(axis=1)


def test_an_experiment_is_the_mean_of_its_trainings(experiment, photographs):
    model = Model.load(experiment)
    assert list(model.members) == ["seed0", "seed1"]
    table = model.grade(photographs)
    probabilities, score = raw(photographs)
    np.testing.assert_allclose(table[P], probabilities, rtol=1e-12)
    np.testing.assert_allclose(table["score"], score, rtol=1e-12)
    assert table["grade"].nunique() > 2
    assert table["grade"].tolist() == np.floor(score + 0.5).astype(int).tolist()
    assert list(table) == list(COLUMNS)
    assert set(table["calibration"]) == {"none"}


@pytest.mark.parametrize("named", ["seed1", "seed1/model", "seed1/model/model.json"])
def test_one_training_is_itself(experiment, photographs, named):
    table = Model.load(str(experiment / named)).grade(photographs)
    np.testing.assert_allclose(table["score"], raw(photographs, ["seed1"])[1], rtol=1e-12)


def test_decisions_are_those_of_the_fit_for_the_mean(experiment, photographs):
    file = calibrated(experiment, point="youden", alpha=0.3, max_grades=1)
    fit = read_calibration(file).of("one")[None, None]
    model = Model.load(experiment)
    assert model.fit == fit
    table = model.grade(photographs)
    probabilities, score = raw(photographs)
    np.testing.assert_allclose(table[P], fit.calibrated(probabilities), rtol=1e-12)
    assert np.abs(table[P] - probabilities).to_numpy().max() > 0.02
    np.testing.assert_allclose(table["score"], score, rtol=1e-12)
    np.testing.assert_allclose(table["p_referable"], table[["p2", "p3", "p4"]].sum(axis=1), rtol=1e-9)
    called = table["p_referable"] >= fit.points["youden"].threshold
    assert table["referable"].tolist() == called.tolist()
    assert called.nunique() == 2
    sets = fit.sets.sets(probabilities)
    assert table["grades"].tolist() == [set_text(row) for row in sets]
    assert table["abstain"].tolist() == (sets.sum(axis=1) > 1).tolist()
    assert set(table["calibration"]) == {"temperature"}


def test_one_training_has_its_own_fit(experiment):
    file = calibrated(experiment)
    assert Model.load(experiment / "seed1").fit == read_calibration(file).of("one")[1, None]


def test_another_operating_point_can_be_chosen(experiment, photographs):
    file = calibrated(experiment)
    points = read_calibration(file).of("one")[None, None].points
    model = Model.load(experiment)
    for point in POINTS:
        table = model.grade(photographs, point=point)
        assert table["referable"].tolist() == (table["p_referable"] >= points[point].threshold).tolist()
    with pytest.raises(UserError, match="--point often: unknown; use one of specificity_87, "):
        model.grade(photographs, point="often")


def test_without_calibration_one_warning_says_why(experiment, photographs, caplog):
    model = Model.load(experiment)
    table = model.grade(photographs)
    (warning,) = caplog.messages
    assert "probabilities are not calibrated and no photograph is called referable: " in warning
    assert f"{FILE}: no such file; run the stage calibrate" in warning
    assert table[["referable", "abstain", "grades"]].isna().all(axis=None)
    with pytest.raises(UserError, match=r"--point youden: not available: .*run the stage calibrate"):
        model.grade(photographs, point="youden")


def test_a_calibration_of_other_trainings_is_not_used(experiment, caplog):
    calibrated(experiment)
    trained(experiment / "seed2")
    assert Model.load(experiment).fit.n == 0
    assert "not fitted for these trainings of one; run the stage calibrate again" in caplog.text


def test_nothing_that_validates_is_the_reason(experiment, photographs, caplog):
    calibrated(experiment, split="external")
    model = Model.load(experiment)
    assert caplog.messages[0].endswith(NOTHING_VALIDATES)
    with pytest.raises(UserError, match=f"--point youden: not available: {NOTHING_VALIDATES[:30]}"):
        model.grade(photographs, point="youden")


def test_a_calibrated_model_warns_of_nothing(experiment, caplog):
    calibrated(experiment)
    Model.load(experiment)
    assert not caplog.messages


def test_members_of_different_crops_are_refused(experiment):
    trained(experiment / "seed2", crop=Crop(size=40))
    with pytest.raises(UserError, match=r"one: its trainings read different crops; run the stage grade"):
        Model.load(experiment)


def test_folders_without_a_model_are_refused(tmp_path):
    with pytest.raises(UserError, match="no trained model there; name the folder of an experiment"):
        Model.load(tmp_path)


def exported(experiment: Path, folder: Path, calibration) -> Path:
    for label in SHIFTS:
        shutil.copytree(experiment / label / "model", folder / "members" / label / "model")
    about = Exported("one", [f"members/{label}" for label in SHIFTS], calibration, Calibrate(max_grades=3))
    folder.joinpath(EXPORT).write_bytes(EXPORTED.dump_json(about))
    return folder


def test_an_exported_model_predicts_the_same(experiment, photographs, tmp_path):
    calibrated(experiment, max_grades=3)
    original = Model.load(experiment)
    copy = Model.load(exported(experiment, tmp_path / "copy", original.fit))
    assert copy.experiment == "one"
    pd.testing.assert_frame_equal(copy.grade(photographs), original.grade(photographs))


def test_an_exported_model_may_lack_a_calibration(experiment, tmp_path, caplog):
    folder = exported(experiment, tmp_path / "copy", None)
    assert Model.load(folder).fit.n == 0
    assert "exported without calibration" in caplog.text
    about = json.loads((folder / EXPORT).read_text()) | {"members": "seed0"}
    (folder / EXPORT).write_text(json.dumps(about))
    with pytest.raises(UserError, match=r"drgrade\.json: members: .*; export the model again"):
        Model.load(folder)


def test_a_registered_model_is_downloaded(experiment, photographs, tmp_path, monkeypatch):
    from mlflow import MlflowClient

    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    folder = tmp_path / "artifacts"
    exported(experiment, folder / "artifacts/drgrade", None)  # as in a pyfunc model
    client = MlflowClient(store, store)
    client.create_registered_model("eyes")
    client.create_model_version("eyes", folder.as_uri())
    client.set_registered_model_alias("eyes", "best", "1")
    for name in ("models:/eyes@best", "models:/eyes/1"):
        assert list(Model.load(name).members) == list(SHIFTS)
    with pytest.raises(UserError, match=r"models:/eyes@worst: .*`uv run mlflow ui` shows"):
        Model.load("models:/eyes@worst")
    with pytest.raises(UserError, match="models:/eyes: write models:/NAME@ALIAS or models:/NAME/VERSION"):
        Model.load("models:/eyes")


def test_eyes_of_a_patient_are_graded_together_whatever_their_order(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BATCH", 2)
    trained(tmp_path / "seed0", Partner)
    names = ["1_left", "2_left", "3_left", "lone", "2_right", "1_right", "4_OD"]
    paths = [save(tmp_path / f"{name}.png", eye(160, 120, 55)) for name in names]
    model = Model.load(tmp_path / "seed0")
    table = model.grade(paths)
    assert table["file"].tolist() == list(map(str, paths))
    assert table["score"].tolist() == [1, 1, 0, 0, 1, 1, 0]
    assert table["patient"][[0, 5]].tolist() == [str(tmp_path / "1")] * 2
    assert table["eye"].fillna("").tolist() == ["left", "left", "left", "", "right", "right", "right"]
    assert [sorted(batch.places) for batch in model.batches(paths)] == [[0, 5], [1, 4], [2, 3], [6]]


def test_images_are_graded_as_files_are(experiment, photographs):
    model = Model.load(experiment)
    contents = [path.read_bytes() for path in photographs]
    found = model.grade_images([*contents, b"no image"], [*map(str, photographs), "8_left.png"])
    pd.testing.assert_frame_equal(found.table[:-1], model.grade(photographs))
    last = found.table.iloc[-1]
    assert (last["status"], last["reason"], last["eye"]) == ("failed", "not an image", "left")
    assert pd.isna(last["grade"])
    assert model.grade_images(contents[:1]).table["file"].tolist() == ["image 0"]
    with pytest.raises(ValueError, match="7 images, 1 names"):
        model.grade_images(contents, ["a"])


def test_no_photographs_are_an_empty_table(experiment):
    model = Model.load(experiment)
    for table in (model.grade([]), model.grade_images([]).table):
        assert list(table) == list(COLUMNS)
        assert table.empty


def test_a_batch_of_bad_files_has_all_columns(experiment, tmp_path):
    (tmp_path / "a.png").write_text("no photograph")
    table = Model.load(experiment).grade([tmp_path / "a.png", tmp_path / "b.png"])
    assert list(table) == list(COLUMNS)
    assert table["reason"].tolist() == ["not an image", "no such file or directory"]
    assert table[["score", "grade", "p0", "p_referable", "fov"]].isna().all(axis=None)


@pytest.mark.parametrize(
    ("grades", "text"),
    [([], ""), ([3], "3"), ([1, 2], "1-2"), ([0, 1, 2, 3, 4], "0-4"), ([0, 2], "0 2"), ([0, 1, 3], "0 1 3")],
)
def test_sets_of_grades_as_text(grades, text):
    assert set_text(np.isin(np.arange(5), grades)) == text
