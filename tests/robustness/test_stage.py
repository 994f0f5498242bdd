"""The stage on graders whose answers to corrupted photographs are known."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import cohen_kappa_score, roc_auc_score
from tests.robustness.conftest import GRADES, LEVELS

from drgrade.errors import UserError
from drgrade.grading.base import GRADERS
from drgrade.grading.majority import Majority
from drgrade.params import Crop, Robustness
from drgrade.robustness import stage
from drgrade.robustness.stage import CLEAN, Condition, measure_robustness, robustness_table

PARAMS = Robustness(corruptions=["darker", "blur"], severities=[5, 1], bootstrap=100)
TESTED = np.array(GRADES[:16])


@pytest.fixture
def measured(dataset, training, brightness, monkeypatch, tmp_path):
    """``robustness.csv`` of the brightness grader and of the majority baseline."""
    monkeypatch.setitem(GRADERS._parts, "brightness", type(brightness))
    folders = {"bright": training("bright", brightness), "majority": training("majority", majority())}
    measure_robustness(PARAMS, dataset, folders, tmp_path / "out")
    assert (tmp_path / "out/figures/robustness.png").stat().st_size > 5_000
    return pd.read_csv(tmp_path / "out/robustness.csv")


def majority() -> Majority:
    return Majority(Majority.Params(), Crop())


def test_a_row_for_each_condition_the_clean_one_first_and_the_mean_last(measured):
    for _, rows in measured.groupby("experiment", sort=False):
        assert rows["corruption"].tolist() == ["none", "darker", "darker", "blur", "blur", "mean"]
        assert rows["severity"].fillna(-1).tolist() == [0, 1, 5, 1, 5, -1]
        assert set(rows["n"]) == {16}  # the test photographs alone
        assert set(rows["patients"]) == {8}
    assert measured["experiment"].unique().tolist() == ["bright", "majority"]


def test_a_constant_prediction_loses_nothing(measured):
    rows = measured[measured["experiment"] == "majority"]
    assert (rows[["qwk", "drop", "drop_low", "drop_high"]] == 0).all(axis=None)
    assert (rows["referable_auc"] == 0.5).all()


def test_a_grader_by_brightness_loses_what_darkening_takes(measured):
    rows = measured[measured["experiment"] == "bright"].set_index(["corruption", "severity"])
    assert rows.loc[("none", 0), "qwk"] == 1
    for severity, gain in ((1, 0.80), (5, 0.25)):
        score = np.clip((np.rint(np.array(LEVELS)[TESTED] * gain) - LEVELS[0]) / 40, 0, 4)
        expected = cohen_kappa_score(TESTED, np.floor(score + 0.5), weights="quadratic", labels=range(5))
        row = rows.loc[("darker", severity)]
        assert row["qwk"] == pytest.approx(expected, abs=1e-6)
        assert row["drop"] == pytest.approx(1 - expected, abs=1e-6)
        assert row["drop_low"] <= row["drop"] <= row["drop_high"]
        assert row["referable_auc"] == pytest.approx(roc_auc_score(TESTED >= 2, score), abs=1e-6)
    assert (rows.loc["blur", "drop"] == 0).all()  # of a constant image nothing is lost
    kappas = rows.loc[["darker", "blur"], "qwk"]
    assert rows.loc["mean", "qwk"].item() == pytest.approx(kappas.mean(), abs=1e-6)


def test_drops_are_paired():
    """Both conditions have the same errors: the difference is 0 in each resample."""
    photographs = pd.DataFrame({"patient_id": [str(n // 2) for n in range(16)], "grade": TESTED})
    scores = np.stack([np.roll(TESTED, 1)] * 2).astype(float)
    table = robustness_table(photographs, [Condition(CLEAN, 0), Condition("blur", 1)], scores, PARAMS)
    assert table["qwk_low"].iloc[1] < table["qwk_high"].iloc[1]
    assert (table[["drop", "drop_low", "drop_high"]] == 0).all(axis=None)


def test_runs_are_identical(dataset, training, tmp_path):
    folders = {"majority": training("majority", majority())}
    for out in ("one", "other"):
        measure_robustness(PARAMS, dataset, folders, tmp_path / out)
    for name in ("robustness.csv", "figures/robustness.png"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_a_grader_that_needs_lesions_is_refused(dataset, training, monkeypatch, tmp_path):
    folder = training("majority", majority())
    monkeypatch.setattr(Majority, "needs", frozenset({"boxes"}))
    with pytest.raises(UserError, match="needs detected lesions, which are not searched for"):
        measure_robustness(PARAMS, dataset, {"majority": folder}, tmp_path / "out")


def test_a_training_without_test_photographs_is_refused(dataset, training):
    folder = training("majority", majority())
    graded = dataset.graded().set_index("image_id")
    with pytest.raises(UserError, match="i00 has no grade or crop any more"):
        stage._tested(folder / "predictions.parquet", graded.drop("i00"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"severities": [6]}, "less than or equal to 5"),
        ({"severities": [1, 1]}, "1 stands twice"),
        ({"corruptions": ["fog"]}, "'blur', 'jpeg'"),
        ({"corruptions": []}, "at least 1 item"),
    ],
)
def test_impossible_params_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Robustness(**values)
