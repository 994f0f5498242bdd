import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score, roc_curve
from tests.evaluate.tables import predictions, written
from tests.evaluate.test_decisions import decided, rows

from drgrade.errors import UserError
from drgrade.evaluate.curves import (
    LEARNING_COLUMNS,
    RELIABILITY_COLUMNS,
    ROC_COLUMNS,
    ROC_POINTS,
    learning_curves,
    reliability_bins,
    roc,
    roc_points,
)
from drgrade.evaluate.errors import COLUMNS, WORST, worst_errors
from drgrade.evaluate.reliability import BINS

BOTH = pd.concat([rows("test", 0, 7), rows("val", 0, 8)])


def area(points):
    return np.trapezoid(points[:, 1], points[:, 0])


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 20)), min_size=2, max_size=60))
def test_roc_against_scikit_learn(photographs):
    positive, score = np.array([p for p, _ in photographs]), np.array([s for _, s in photographs]) / 20
    if positive.all() or not positive.any():
        return
    points = roc_points(positive, score)
    theirs = np.stack(roc_curve(positive, score, drop_intermediate=False)[:2], axis=1)
    assert {tuple(point) for point in points} <= {tuple(point) for point in theirs}
    assert points[0].tolist() == [0, 0]
    assert points[-1].tolist() == [1, 1]
    assert (np.diff(points, axis=0) >= 0).all()
    assert area(points) == pytest.approx(roc_auc_score(positive, score))


def test_a_long_roc_curve_is_thinned():
    rng = np.random.default_rng(0)
    positive = rng.random(3000) < 0.4
    score = rng.normal(positive, 1)
    points = roc_points(positive, score)
    theirs = np.stack(roc_curve(positive, score, drop_intermediate=False)[:2], axis=1)
    assert len(points) == ROC_POINTS
    assert {tuple(point) for point in points} <= {tuple(point) for point in theirs}
    assert points[[0, -1]].tolist() == [[0, 0], [1, 1]]
    assert area(points) == pytest.approx(roc_auc_score(positive, score), abs=0.003)


def test_roc_of_an_experiment_is_that_of_its_calibrated_probability():
    found, _ = decided(BOTH)
    curve = roc([found])
    assert tuple(curve.columns) == ROC_COLUMNS
    assert set(curve["experiment"]) == {"one"}
    expected = roc_auc_score(found.grades >= 2, found.referable)
    assert area(curve[["false_positive_rate", "sensitivity"]].to_numpy()) == pytest.approx(expected)
    assert roc([replace(found, grades=np.full_like(found.grades, 3))]).empty


def test_reliability_before_and_after_calibration():
    found, _ = decided(BOTH)
    bins = reliability_bins([found])
    assert tuple(bins.columns) == RELIABILITY_COLUMNS
    for method, probabilities in (("none", found.probabilities), ("calibrated", found.calibrated)):
        here = bins[bins["method"] == method].set_index("bin")
        confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == found.grades
        place = np.ceil(confidence * BINS).astype(int)
        assert here.index.tolist() == sorted(set(place))
        for number, row in here.iterrows():
            inside = place == number
            assert row["n"] == inside.sum()
            assert row["confidence"] == pytest.approx(confidence[inside].mean())
            assert row["accuracy"] == pytest.approx(right[inside].mean())
    without, _ = decided(BOTH, method="none")
    assert set(reliability_bins([without])["method"]) == {"none"}


def test_learning_curves_of_all_trainings(tmp_path):
    first, second = written(tmp_path, predictions("net", 0.5, seeds=(0, 1)))
    (vote,) = written(tmp_path, predictions("vote", 0.5))
    first.with_name("history.csv").write_text("epoch,loss,lr,val_qwk\n1,0.5,0.1,\n2,0.25,0.1,0.75\n")
    vote.with_name("history.csv").write_text("epoch\n")
    curves = learning_curves([first, second, vote])
    assert tuple(curves.columns) == LEARNING_COLUMNS
    assert json.loads(curves.to_json(orient="values")) == [
        ["net", 0, None, 1, 0.5, None], ["net", 0, None, 2, 0.25, 0.75],
    ]  # fmt: skip
    assert tuple(learning_curves([second]).columns) == LEARNING_COLUMNS
    first.with_name("history.csv").write_text("loss\n1\n")
    with pytest.raises(UserError, match=r"history.csv: not a training's history .*train it again"):
        learning_curves([first])


def test_worst_errors_are_those_of_the_mean_of_the_seeds():
    both = predictions("net", 1.2, seeds=(0, 1))
    worst = worst_errors("net", pd.concat([both, predictions("net", 3.0, split="val")]))
    assert tuple(worst.columns) == COLUMNS
    assert len(worst) == WORST
    by_photograph = both.groupby("image_id")
    score, grade = by_photograph["score"].mean(), by_photograph["grade"].first()
    distance = (score - grade).abs().sort_values(ascending=False)
    assert (score[worst["image_id"]] - grade[worst["image_id"]]).abs().to_numpy() == pytest.approx(
        distance.head(WORST)
    )
    row = worst.iloc[0]
    assert row["predicted"] == np.floor(row["score"] + 0.5)
    assert row["probability"] == by_photograph[f"p{row['predicted']}"].mean()[row["image_id"]]
    assert worst_errors("net", predictions("net", 0.0)).empty
