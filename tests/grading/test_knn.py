"""The grader of nearest neighbours: which k it takes, and what it remembers."""

import json

import numpy as np
import pandas as pd
import pytest

from drgrade.grading import features as feature_module
from drgrade.grading.base import Photographs
from drgrade.grading.knn import Knn, Params
from drgrade.grading.models import load_model
from drgrade.params import Crop


def angles(*degrees) -> np.ndarray:
    radians = np.deg2rad(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


@pytest.fixture
def fit(monkeypatch, fitted):
    """A grader fitted on points of the unit circle in place of photographs' features.

    Training: grade 0 about 0 degrees, grade 4 about 90, and in the midst of each a photograph of the other.
    """
    points = angles(-8, -4, 4, 8, 0, 82, 86, 94, 98, 90, 1, 91)
    table = pd.DataFrame({"grade": [0, 0, 0, 0, 4, 4, 4, 4, 4, 0, 0, 4], "row": range(12)})
    monkeypatch.setattr(feature_module, "features", lambda frozen, images, rows: points[rows])

    def run(k: list[int], val: list[int]) -> tuple[Knn, dict[str, float]]:
        grader = Knn(Params(encoder="test_efficientnet", input_size=32, k=k), Crop())
        return grader, fitted(grader, table.iloc[:10], table.iloc[val])

    return run


def test_k_is_chosen_on_validation(fit):
    """One neighbour is the intruder's and always wrong; three outvote it, five more so, ten are even."""
    grader, recorded = fit([1, 5, 3, 10], [10, 11])
    assert grader.k == 3
    assert recorded["val_qwk_k1"] == pytest.approx(-1)
    assert {"val_qwk_k1", "val_qwk_k3", "val_qwk_k5", "val_qwk_k10", "k", "val_qwk"} == set(recorded)
    assert recorded["val_qwk"] == recorded["val_qwk_k3"] == recorded["val_qwk_k5"]
    # two votes of 0 and one of 4, all at cosines within a thousandth of 1: score about 4 / 3, grade 1;
    # mirrored 8 / 3, grade 3: squared distances 1 + 1 against those of chance, (1 + 9 + 9 + 1) / 2
    assert recorded["val_qwk_k3"] == pytest.approx(1 - 2 / 10)


def test_the_first_k_where_nothing_validates(fit):
    grader, recorded = fit([10, 3], [])
    assert grader.k == 10
    assert recorded == {}


def test_more_neighbours_than_photographs_are_all_of_them(fit, tmp_path):
    grader, _ = fit([99, 10], [10, 11])
    assert grader.k == 10  # equals, so the smaller
    many, _ = fit([99], [])
    shown = Photographs(np.zeros((12, 32, 32, 3), np.uint8), pd.DataFrame({"row": [10, 11]}))
    expected = grader.predict(shown).probabilities
    np.testing.assert_array_equal(many.predict(shown).probabilities, expected)
    many.save(tmp_path)
    assert json.loads((tmp_path / "model.json").read_text())["facts"] == {"k": 99}
    np.testing.assert_array_equal(load_model(tmp_path).predict(shown).probabilities, expected)


def test_there_is_no_network_to_explain(fit, tmp_path):
    from drgrade.errors import UserError
    from drgrade.explain.stage import network_of

    fit([1], [])[0].save(tmp_path)
    with pytest.raises(UserError, match="'knn' has no network to explain"):
        network_of(tmp_path)
