import numpy as np
import pandas as pd
from scipy.special import softmax
from tests.evaluate.tables import predictions

from drgrade.evaluate import fitted
from drgrade.evaluate.calibration import fit_isotonic_grades, fit_temperature
from drgrade.evaluate.fits import NOTHING_VALIDATES, by_whose, fit_experiment
from drgrade.evaluate.predictions import PROBABILITIES
from drgrade.params import Calibrate
from drgrade.schema import PREDICTIONS, conform


def confident(split, seed, confidence, fold=None, photographs=60, dataset="own"):
    """Rows of one training whose grades are drawn from probabilities, then sharpened."""
    table = predictions("one", 0, split=split)
    table = pd.concat([table] * (photographs // 60))
    table["image_id"] = [f"im_{place:03d}" for place in range(len(table))]
    rng = np.random.default_rng([photographs, seed, len(split)])
    logits = rng.normal(scale=2, size=(len(table), 5))
    table["grade"] = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    table[PROBABILITIES] = softmax(confidence * logits, axis=1)
    score = table[PROBABILITIES].to_numpy() @ np.arange(5)
    return table.assign(score=score, predicted=np.floor(score + 0.5), seed=seed, fold=fold, dataset=dataset)


def joined(*tables):
    """One table of one experiment; all seeds are tested on the same grades."""
    table = conform(pd.concat(tables), PREDICTIONS)
    test = table["split"] == "test"
    truth = table[test].drop_duplicates("image_id").set_index("image_id")["grade"]
    table.loc[test, "grade"] = truth.loc[table.loc[test, "image_id"]].to_numpy()
    return table


def all_fits(table):
    """All that is fitted on the validation rows."""
    return by_whose(fit_experiment("one", table, Calibrate()))


def measured_on(table):
    """Test predictions with what is fitted on the validation rows."""
    return fitted.tested("one", table, all_fits(table))


def fit(table, method, **training):
    """A calibrator of the validation rows of one training, in whatever order they are."""
    val = table[(table["split"] == "val") & (table[list(training)] == pd.Series(training)).all(axis=1)]
    return method(val["grade"].to_numpy(int), val[PROBABILITIES].to_numpy(float))


def test_each_seed_is_calibrated_by_its_own_validation_photographs():
    table = joined(
        *(
            confident(split, seed, confidence, photographs=120)
            for seed, confidence in ((0, 3.0), (1, 0.3))
            for split in ("test", "val")
        )
    )
    measured = measured_on(table.sample(frac=1, random_state=0))
    assert measured.uncalibrated == {}
    for row, seed in enumerate((0, 1)):
        rows = table.query(f"split == 'test' and seed == {seed}").sort_values("image_id")
        raw = rows[PROBABILITIES].to_numpy(float)
        np.testing.assert_array_equal(measured.probabilities[row], raw)
        for name, method in (("temperature", fit_temperature), ("isotonic", fit_isotonic_grades)):
            expected = fit(table, method, seed=seed).apply(raw)
            np.testing.assert_allclose(measured.calibrated[name][row], expected, atol=1e-6)
    temperatures = [fit(table, fit_temperature, seed=seed).temperature for seed in (0, 1)]
    assert temperatures[0] > 2 > 0.5 > temperatures[1]


def test_each_fold_has_a_calibrator_and_external_photographs_the_mean_of_them():
    parts = [
        confident(split, 0, confidence, fold=fold).iloc[fold ^ (split == "val") :: 2]
        for fold, confidence in ((0, 3.0), (1, 0.5))
        for split in ("test", "val")
    ]
    table = joined(*parts, confident("external", 0, 1, dataset="site"))
    measured = measured_on(table)
    fits = [fit(table, fit_temperature, fold=fold) for fold in (0, 1)]
    assert abs(fits[0].temperature - fits[1].temperature) > 1
    for place, name in enumerate(measured.photographs["image_id"]):
        (row,) = table.query(f"split == 'test' and image_id == '{name}'").to_dict("records")
        expected = fits[row["fold"]].apply([[row[name] for name in PROBABILITIES]])
        np.testing.assert_allclose(measured.calibrated["temperature"][0, place], expected[0], atol=1e-9)
    assert measured.uncalibrated["isotonic"].startswith(
        "seed 0, fold 0: 30 validation photographs, needs 100"
    )
    (there,) = fitted.tested_externally("one", table, all_fits(table))
    expected = np.mean([one.apply(there.probabilities[0]) for one in fits], axis=0)
    np.testing.assert_allclose(there.calibrated["temperature"][0], expected, atol=1e-9)


def test_no_test_grade_moves_a_calibrator():
    table = joined(confident("test", 0, 3.0), confident("val", 0, 3.0))
    mirrored = table.assign(grade=table["grade"].mask(table["split"] == "test", 4 - table["grade"]))
    one, other = (measured_on(rows) for rows in (table, mirrored))
    assert (one.grades != other.grades).any()
    np.testing.assert_array_equal(one.calibrated["temperature"], other.calibrated["temperature"])


def test_where_nothing_validates_the_reason_is_given():
    table = joined(confident("test", 0, 1.0), confident("test", 1, 1.0), confident("val", 0, 1.0))
    measured = measured_on(table)
    assert measured.calibrated == {}
    assert measured.fitted is None
    assert measured.uncalibrated["temperature"] == f"seed 1: {NOTHING_VALIDATES}"
    assert measured.uncalibrated["isotonic"].startswith("seed 0: 60 validation photographs, needs 100")
