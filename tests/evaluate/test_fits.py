import numpy as np
import pandas as pd
import pytest
from tests.evaluate.tables import drawn, predictions

from drgrade.errors import UserError
from drgrade.evaluate.calibration import fit_temperature
from drgrade.evaluate.conformal import fit_sets
from drgrade.evaluate.fits import NOTHING_VALIDATES, by_whose, fit_experiment
from drgrade.evaluate.operating import POINTS, choose
from drgrade.evaluate.predictions import PROBABILITIES
from drgrade.evaluate.probabilities import at_least
from drgrade.evaluate.thresholds import fit_thresholds
from drgrade.params import Calibrate
from drgrade.schema import PREDICTIONS, conform

PARAMS = Calibrate(alpha=0.2)


def validated(seeds=(0,), folds=(None,), confidence=2.0):
    """Validation rows whose grades are drawn from probabilities, and a test row for each training."""
    grades, probabilities = drawn(60, confidence)
    parts = []
    for seed in seeds:
        for fold in folds:
            noise = np.random.default_rng([seed, fold or 0]).dirichlet(np.ones(5), 60)
            mixed = 0.8 * probabilities + 0.2 * noise
            val = predictions("one", 0, split="val").assign(grade=grades, seed=seed, fold=fold)
            val[PROBABILITIES], val["score"] = mixed, mixed @ np.arange(5)
            val = val.iloc[slice(None) if fold is None else slice(fold, None, len(folds))]
            parts += [val, predictions("one", 0).head(1).assign(seed=seed, fold=fold)]
    return conform(pd.concat(parts), PREDICTIONS)


def val_rows(table, **where):
    chosen = table[(table["split"] == "val") & (table[list(where)] == pd.Series(where)).all(axis=1)]
    return chosen.sort_values("image_id")


def test_all_that_is_fitted_on_one_training_and_on_the_mean_of_its_seeds():
    table = validated(seeds=(0, 1))
    found = by_whose(fit_experiment("one", table.sample(frac=1, random_state=0), PARAMS))
    assert list(found) == [(0, None), (1, None), (None, None)]
    first, second = (val_rows(table, seed=seed) for seed in (0, 1))
    grades, patients = first["grade"].to_numpy(int), first["patient_id"].to_numpy(str)
    of_seeds = [rows[PROBABILITIES].to_numpy(float) for rows in (first, second)]
    for whose, probabilities in (((0, None), of_seeds[0]), ((None, None), np.mean(of_seeds, axis=0))):
        fit = found[whose]
        assert (fit.n, fit.patients, fit.method) == (60, 30, "temperature")
        temperature = fit_temperature(grades, probabilities)
        assert fit.calibrators["temperature"].temperature == pytest.approx(temperature.temperature, rel=1e-6)
        calibrated = temperature.apply(probabilities)
        np.testing.assert_allclose(fit.calibrated(probabilities), calibrated, rtol=1e-6)
        points = choose(grades >= 2, at_least(calibrated)[:, 1])
        assert tuple(fit.points) == POINTS
        for name, point in points.items():
            assert fit.points[name].sensitivity == point.sensitivity
            assert fit.points[name].threshold == pytest.approx(point.threshold, abs=1e-6)
            called = fit.called(probabilities, name)
            assert called[grades >= 2].mean() == point.sensitivity
            assert (~called[grades < 2]).mean() == point.specificity
        sets = fit_sets(grades, probabilities, 0.2, patients=patients)
        assert fit.sets.quantile == pytest.approx(sets.quantile, rel=1e-9)
        np.testing.assert_allclose(
            fit.thresholds, fit_thresholds(probabilities @ np.arange(5), grades), rtol=1e-9
        )
        assert fit.reasons == {"isotonic": fit.reasons["isotonic"]}
        assert fit.reasons["isotonic"].startswith("60 validation photographs, needs 100")


def test_with_folds_the_mean_over_them_has_every_photograph():
    table = validated(seeds=(0, 1), folds=(0, 1, 2))
    found = by_whose(fit_experiment("one", table, PARAMS))
    trainings = [(seed, fold) for seed in (0, 1) for fold in (0, 1, 2)]
    assert list(found) == [*trainings, (None, 0), (None, 1), (None, 2), (None, None)]
    assert [found[None, fold].n for fold in (0, 1, 2, None)] == [20, 20, 20, 60]
    rows = (
        table[table["split"] == "val"]
        .groupby("image_id")
        .agg(dict.fromkeys(PROBABILITIES, "mean") | {"grade": "first"})
    )
    temperature = fit_temperature(rows["grade"].to_numpy(int), rows[PROBABILITIES].to_numpy(float))
    assert found[None, None].calibrators["temperature"].temperature == pytest.approx(
        temperature.temperature, rel=1e-6
    )


@pytest.mark.parametrize("method", ["none", "isotonic"])
def test_probabilities_stay_where_no_calibrator_is_asked_for_or_fits(method):
    table = validated()
    (fit, _) = fit_experiment("one", table, Calibrate(method=method))
    assert fit.method == "none"
    raw = val_rows(table)[PROBABILITIES].to_numpy(float)
    np.testing.assert_allclose(fit.calibrated(raw), raw, rtol=1e-12)
    np.testing.assert_allclose(fit.referable(raw), raw[:, 2:].sum(axis=1), rtol=1e-9)


def test_where_a_training_has_no_validation_photographs_it_says_so():
    table = validated(seeds=(0, 1))
    table = table[(table["split"] == "test") | (table["seed"] == 0)]
    found = by_whose(fit_experiment("one", table, PARAMS))
    assert found[0, None].n == 60
    for whose in ((1, None), (None, None)):
        fit = found[whose]
        assert (fit.n, fit.thresholds, fit.sets, fit.calibrators, fit.points) == (0, None, None, {}, {})
        assert set(fit.reasons.values()) == {NOTHING_VALIDATES}
        assert set(fit.reasons) == {"temperature", "isotonic", "points"}


def test_operating_points_need_both_kinds_of_photographs():
    table = validated()
    table.loc[table["split"] == "val", "grade"] = np.arange(60) % 2
    (fit, _) = fit_experiment("one", table, PARAMS)
    assert fit.points == {}
    assert fit.reasons["points"].startswith("0 of 60 validation photographs are referable, needs both kinds")


def test_an_impossible_validation_row_is_named():
    table = validated()
    table.loc[table.index[3], "p0"] = np.nan
    with pytest.raises(UserError, match=r"one: .*p0 to p4"):
        fit_experiment("one", table, PARAMS)
