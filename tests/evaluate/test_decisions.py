import numpy as np
import pandas as pd
import pytest
from tests.evaluate.tables import drawn, predictions

from drgrade.bootstrap import resample_weights
from drgrade.evaluate.decisions import OPERATING_COLUMNS, SETS_COLUMNS, decide, decision_tables
from drgrade.evaluate.fits import by_whose, fit_experiment
from drgrade.evaluate.metrics import qwk
from drgrade.evaluate.predictions import PROBABILITIES
from drgrade.params import Calibrate, Evaluate
from drgrade.schema import PREDICTIONS, conform

PARAMS = Evaluate(bootstrap=150, seed=2)


def rows(split, seed, rng_seed, fold=None):
    grades, probabilities = drawn(60, 2.0, seed=rng_seed)
    table = predictions("one", 0, split=split).assign(grade=grades, seed=seed, fold=fold)
    noise = np.random.default_rng([seed, rng_seed]).dirichlet(np.ones(5), 60)
    table[PROBABILITIES] = 0.7 * probabilities + 0.3 * noise
    table["score"] = table[PROBABILITIES].to_numpy() @ np.arange(5)
    return table.assign(predicted=np.floor(table["score"] + 0.5))


@pytest.fixture(scope="module")
def table():
    """Two seeds, a hold-out."""
    parts = [rows(split, seed, place) for seed in (0, 1) for place, split in ((7, "test"), (8, "val"))]
    return conform(pd.concat(parts), PREDICTIONS)


def decided(table, **params):
    calibrate = Calibrate(**params)
    found = decide("one", table, by_whose(fit_experiment("one", table, calibrate)))
    return found, decision_tables([found], calibrate, PARAMS)


def test_decisions_are_made_on_the_mean_of_the_seeds(table):
    found, tables = decided(table)
    fit = by_whose(fit_experiment("one", table, Calibrate()))[None, None]
    test = table[table["split"] == "test"]
    by_seed = [test[test["seed"] == seed].sort_values("image_id") for seed in (0, 1)]
    mean = np.mean([one[PROBABILITIES].to_numpy(float) for one in by_seed], axis=0)
    grades = by_seed[0]["grade"].to_numpy(int)
    np.testing.assert_array_equal(found.grades, grades)
    np.testing.assert_allclose(found.referable, fit.calibrated(mean)[:, 2:].sum(axis=1), rtol=1e-9)
    operating = tables["operating"].set_index("point")
    assert OPERATING_COLUMNS[:2] == ("experiment", "point")
    for name, point in fit.points.items():
        called, positive = found.referable >= point.threshold, grades >= 2
        row = operating.loc[name]
        assert row["sensitivity"] == pytest.approx(called[positive].mean())
        assert row["specificity"] == pytest.approx((~called[~positive]).mean())
        assert row["ppv"] == pytest.approx(positive[called].mean(), nan_ok=True)
        assert row["npv"] == pytest.approx((~positive[~called]).mean(), nan_ok=True)
        assert row["val_sensitivity"] == pytest.approx(point.sensitivity)
        assert (row["n"], row["patients"], row["val_n"], row["calibration"]) == (60, 30, 60, "temperature")
        assert row["sensitivity_low"] <= row["sensitivity"] <= row["sensitivity_high"]


def test_the_interval_is_a_bootstrap_over_patients(table):
    found, tables = decided(table)
    names, place = np.unique(found.patients, return_inverse=True)
    called = found.called["youden"]
    draws = []
    for weights in resample_weights(len(names), PARAMS.bootstrap, PARAMS.seed):
        for one in weights:
            weight = one[place] * (found.grades >= 2)
            draws.append((weight * called).sum() / weight.sum())
    row = tables["operating"].set_index("point").loc["youden"]
    assert [row["sensitivity_low"], row["sensitivity_high"]] == pytest.approx(
        np.percentile(draws, [2.5, 97.5])
    )


def test_sets_and_what_leaving_photographs_to_a_clinician_gains(table):
    found, tables = decided(table, alpha=0.3, max_grades=2)
    (row,) = tables["sets"].to_dict("records")
    assert tuple(row) == SETS_COLUMNS
    held = found.sets[np.arange(60), found.grades]
    assert row["coverage"] == pytest.approx(held.mean())
    accepted = found.sets.sum(axis=1) <= 2
    assert 0 < accepted.sum() < 60
    assert row["accepted"] == pytest.approx(accepted.mean())
    assert row["qwk_accepted"] == pytest.approx(qwk(found.grades[accepted], found.predicted[accepted]))
    assert row["accuracy"] == pytest.approx((found.predicted == found.grades).mean())
    risks = tables["risk_coverage"]
    assert risks["coverage"].iloc[-1] == 1
    assert risks["risk"].iloc[-1] == pytest.approx(1 - row["accuracy"])
    surest = found.calibrated.max(axis=1).argsort()[::-1][:30]
    half = risks.set_index(risks["coverage"].round(2))["risk"][0.5]
    assert half == pytest.approx((found.predicted != found.grades)[surest].mean())


def test_with_folds_each_photograph_is_decided_by_its_own_fold():
    parts = [
        rows(split, 0, place, fold).iloc[fold ^ (split == "val") :: 2]
        for fold in (0, 1)
        for place, split in ((7 + fold, "test"), (17 + fold, "val"))
    ]
    table = conform(pd.concat(parts), PREDICTIONS)
    fits = by_whose(fit_experiment("one", table, Calibrate()))
    found = decide("one", table, fits)
    assert [fit.fold for fit in found.fits] == [0, 1]
    test = table[table["split"] == "test"].sort_values("image_id")
    for row, sets, referable in zip(test.to_dict("records"), found.sets, found.referable, strict=True):
        probabilities = [[row[name] for name in PROBABILITIES]]
        fit = fits[None, row["fold"]]
        np.testing.assert_array_equal(sets, fit.sets.sets(probabilities)[0])
        assert referable == pytest.approx(fit.referable(probabilities)[0])


def test_nothing_is_decided_where_nothing_validates(table):
    test = table[table["split"] == "test"]
    assert decide("one", test, by_whose(fit_experiment("one", test, Calibrate()))) is None
    empty = decision_tables([], Calibrate(), PARAMS)
    assert {name: len(rows) for name, rows in empty.items()} == {
        "operating": 0,
        "sets": 0,
        "risk_coverage": 0,
    }
