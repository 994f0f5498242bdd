import json

import pandas as pd
import pytest
from tests.evaluate.tables import in_folds, predictions, written

from drgrade.errors import UserError
from drgrade.evaluate.calibrate import FILE, calibrate, read_calibration
from drgrade.evaluate.fits import fit_experiment
from drgrade.evaluate.predictions import gather
from drgrade.params import Calibrate


def validated():
    """Test and validation rows of one training."""
    return pd.concat([predictions("one", 0.6), predictions("one", 0.9, split="val", rng_seed=4)])


def test_every_digit_comes_back(tmp_path):
    factors = {(seed, fold): 0.7 + 0.1 * seed + 0.05 * fold for seed in (0, 1) for fold in (0, 1)}
    paths = in_folds(tmp_path / "one", factors) + written(tmp_path, predictions("plain", 0.6))
    params = Calibrate(alpha=0.3, score="lac", point="youden")
    calibrate(paths, params, tmp_path / "out")
    found = read_calibration(tmp_path / "out" / FILE)
    assert found.params == params
    for name, table in gather(paths).items():
        fits = fit_experiment(name, table, params)
        assert list(found.of(name).values()) == fits
    assert found.of("one")[None, None].points["youden"].sensitivity > 0


def test_the_same_predictions_give_the_same_bytes(tmp_path):
    paths = written(tmp_path, predictions("one", 0.6), predictions("two", 0.6, split="test"))
    for name in ("a", "b"):
        calibrate(paths, Calibrate(), tmp_path / name)
    assert (tmp_path / "a" / FILE).read_bytes() == (tmp_path / "b" / FILE).read_bytes()


def test_an_experiment_that_is_not_there(tmp_path):
    calibrate(written(tmp_path, predictions("one", 0.6)), Calibrate(), tmp_path)
    with pytest.raises(UserError, match=r"calibration\.json: lacks the experiment two; run the stage"):
        read_calibration(tmp_path / FILE).of("two")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[:-20], "Invalid JSON"),
        (lambda text: json.dumps(json.loads(text) | {"params": {"method": "platt"}}), "params.method"),
        (lambda text: text.replace('"temperature":', '"temperatur":'), "temperature"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, damage, message):
    calibrate(written(tmp_path, validated()), Calibrate(), tmp_path)
    path = tmp_path / FILE
    path.write_text(damage(path.read_text()))
    with pytest.raises(UserError, match=rf"calibration.json: .*{message}.*run the stage calibrate again"):
        read_calibration(path)


def test_a_missing_file_names_the_stage(tmp_path):
    with pytest.raises(UserError, match=r"calibration\.json: No such file .*; run the stage calibrate"):
        read_calibration(tmp_path / FILE)
