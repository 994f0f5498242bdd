from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax
from sklearn import metrics as sk

from drgrade.bootstrap import resample_weights
from drgrade.evaluate.measures import count, measure
from drgrade.evaluate.predictions import Measured
from drgrade.params import Evaluate

PARAMS = Evaluate(bootstrap=100, seed=5)
PATIENTS, SEEDS = 20, 2
PAIRED_METRICS = {"qwk": "quadratic", "linear_kappa": "linear", "unweighted_kappa": None}


def experiment(**changes):
    """Both eyes of patients, graded by the probabilities of two seeds."""
    rng = np.random.default_rng(0)
    grades = np.repeat(np.arange(PATIENTS) % 5, 2)
    logits = 1.5 * np.eye(5)[grades] + rng.normal(size=(SEEDS, len(grades), 5))
    probabilities = softmax(logits, axis=-1)
    score = probabilities @ np.arange(5)
    photographs = pd.DataFrame(
        {
            "image_id": [f"im_{place:02d}" for place in range(len(grades))],
            "patient_id": [f"p{place // 2:02d}" for place in range(len(grades))],
            "grade": grades,
        }
    )
    values = {
        "calibrated": {"temperature": softmax(logits / 2, axis=-1)},
        "uncalibrated": {"isotonic": "seed 0: no graded validation photographs"},
    }
    predicted = np.floor(score + 0.5).astype(int)
    return Measured("one", "own", [3, 4], photographs, predicted, score, probabilities, **values | changes)


def expected(measured, rows=slice(None)):
    """Every metric by scikit-learn, mean over seeds, on some photographs."""
    y = measured.grades[rows]
    found = []
    for seed in range(SEEDS):
        predicted, score = measured.predicted[seed, rows], measured.score[seed, rows]
        probabilities = measured.probabilities[seed, rows]
        values = {
            name: sk.cohen_kappa_score(y, predicted, labels=range(5), weights=weights)
            for name, weights in PAIRED_METRICS.items()
        }
        for name, lowest in (("referable", 2), ("sight_threatening", 3)):
            values[f"{name}_auc"] = sk.roc_auc_score(y >= lowest, score)
            values[f"{name}_auprc"] = sk.average_precision_score(y >= lowest, score)
        present = np.unique(y)
        values |= {
            "accuracy": sk.accuracy_score(y, predicted),
            "balanced_accuracy": sk.recall_score(y, predicted, labels=present, average="macro"),
            "macro_f1": sk.f1_score(y, predicted, average="macro"),
            "mae": sk.mean_absolute_error(y, predicted),
            "macro_auroc": np.mean([sk.roc_auc_score(y == one, probabilities[:, one]) for one in present]),
            "brier": sk.brier_score_loss(y, probabilities, labels=range(5), scale_by_half=False),
            "temperature_brier": sk.brier_score_loss(
                y, measured.calibrated["temperature"][seed, rows], labels=range(5), scale_by_half=False
            ),
        }
        found.append(values)
    return {name: np.mean([values[name] for values in found]) for name in found[0]}


@pytest.fixture(scope="module")
def entry():
    return measure(experiment(), PARAMS).entry


def test_every_metric_is_scikit_learns(entry):
    wanted = expected(experiment())
    assert entry["brier_calibrated"] == pytest.approx(wanted.pop("temperature_brier"), abs=1e-9)
    for name, value in wanted.items():
        assert entry[name] == pytest.approx(value, abs=1e-9), name


def test_intervals_are_those_of_repeated_patients(entry):
    measured = experiment()
    draws = []
    for weights in np.concatenate(list(resample_weights(PATIENTS, PARAMS.bootstrap, PARAMS.seed))):
        patient = np.arange(PATIENTS).repeat(weights.astype(int))
        draws.append(expected(measured, np.r_[2 * patient, 2 * patient + 1]))
    ends = {row["metric"]: (row["low"], row["high"]) for row in entry["intervals"]}
    none, temperature, _ = entry["calibration"]
    ends["brier"] = none["brier_low"], none["brier_high"]
    ends["temperature_brier"] = temperature["brier_low"], temperature["brier_high"]
    for name in draws[0]:
        low_high = np.percentile([one[name] for one in draws], [2.5, 97.5])
        assert ends[name] == pytest.approx(low_high, abs=1e-9), name
    assert (entry["qwk_low"], entry["qwk_high"]) == ends["qwk"]


def test_what_has_an_interval(entry):
    """All metrics but the expected calibration error, whose resamples lie above it."""
    points = [
        f"{one}_at_{other}_{percent}"
        for percent in (87, 95)
        for one, other in (("sensitivity", "specificity"), ("specificity", "sensitivity"))
    ]
    assert {row["metric"] for row in entry["intervals"]} == {
        *PAIRED_METRICS, "accuracy", "balanced_accuracy", "macro_f1", "mae", "macro_auroc",
        "referable_sensitivity", "referable_specificity",
        *(f"referable_{name}" for name in ("auc", "auprc", *points)),
        *(f"sight_threatening_{name}" for name in ("auc", "auprc", *points)),
    }  # fmt: skip
    assert all(row["low"] <= entry[row["metric"]] <= row["high"] for row in entry["intervals"])
    assert not [
        key for row in entry["calibration"] for key in row if key.startswith(("ece_", "referable_ece_"))
    ]


def test_recall_of_each_grade(entry):
    measured = experiment()
    recalls = [sk.recall_score(measured.grades, predicted, average=None) for predicted in measured.predicted]
    assert [row["recall"] for row in entry["grades"]] == pytest.approx(np.mean(recalls, axis=0))
    assert [row["n"] for row in entry["grades"]] == [8] * 5
    graded = [sk.confusion_matrix(measured.grades, predicted) for predicted in measured.predicted]
    assert [row["predicted"] for row in entry["grades"]] == np.mean(graded, axis=0).tolist()
    assert all(row["recall_low"] <= row["recall"] <= row["recall_high"] for row in entry["grades"])


def test_methods_of_calibration_and_the_reason_where_one_is_missing(entry):
    none, temperature, isotonic = entry["calibration"]
    assert [row["method"] for row in entry["calibration"]] == ["none", "temperature", "isotonic"]
    assert (none["ece"], temperature["ece"]) == (entry["ece"], entry["ece_calibrated"])
    assert none["reason"] is temperature["reason"] is None
    assert isotonic["reason"] == "seed 0: no graded validation photographs"
    assert all(np.isnan(value) for key, value in isotonic.items() if key not in ("method", "reason"))
    alone = measure(experiment(calibrated={}), PARAMS).entry
    assert np.isnan([alone["ece_calibrated"], alone["brier_calibrated"]]).all()
    assert alone["ece"] == entry["ece"]


def test_calibration_changes_no_other_metric(entry):
    """Areas under curves are computed before calibration, grades from the score."""
    alone = measure(experiment(calibrated={}), PARAMS).entry
    assert alone["intervals"] == entry["intervals"]


def test_values_have_a_row_for_each_resample_and_a_column_for_each_seed():
    values = count(experiment()).values(np.ones((7, PATIENTS)))
    assert {value.shape for value in values.values()} == {(7, SEEDS)}


def test_one_seed_has_no_spread():
    measured = experiment()
    first = {name: getattr(measured, name)[:1] for name in ("seeds", "predicted", "score", "probabilities")}
    one = replace(measured, calibrated={}, **first)
    assert np.isnan(measure(one, PARAMS).entry["qwk_sd"])
    wanted = measure(measured, PARAMS).entry
    assert wanted["seeds"][0] == measure(one, PARAMS).entry["seeds"][0]
    assert wanted["qwk_sd"] == pytest.approx(np.std([row["qwk"] for row in wanted["seeds"]], ddof=1))
