import numpy as np
import pandas as pd
import pytest
from tests.evaluate.tables import TRAINING, graded, predictions

from drgrade.errors import UserError
from drgrade.evaluate.baselines import baselines
from drgrade.schema import PREDICTIONS, conform

SHARES = [0.4, 0.1, 0.3, 0.1, 0.1]
"""Shares of the grades in TRAINING."""
P = [f"p{grade}" for grade in range(5)]


def like(*splits, folds=False):
    """Predictions of two seeds, to be predicted by the baselines."""
    tables = [predictions("one", 1, seeds=(3, 4), split=split) for split in splits]
    for table in tables:
        if folds:
            table["fold"] = np.arange(len(table)) % 60 % 2  # as `graded` deals them
    return conform(pd.concat(tables), PREDICTIONS)


def probabilities(table):
    return table[P].to_numpy(float)


def test_the_majority_is_certain_and_the_prior_expects():
    found = baselines(like("test", "val"), graded())
    assert list(found) == ["majority", "class_prior"]
    for name, table in found.items():
        assert set(table["experiment"]) == {name}
        assert table["split"].value_counts().to_dict() == {"test": 60, "val": 60}  # one seed
    majority, prior = found["majority"], found["class_prior"]
    assert (majority[P] == [1, 0, 0, 0, 0]).all(axis=None)
    assert (majority[["score", "predicted"]] == 0).all(axis=None)
    np.testing.assert_allclose(probabilities(prior), np.tile(SHARES, (120, 1)))
    assert prior["score"].unique() == pytest.approx([np.mean(TRAINING)])
    assert (prior["predicted"] == 1).all()  # the mean, 1.4, rounded


def test_a_test_photograph_is_predicted_without_its_fold():
    table = graded(folds=2)
    prior = baselines(like("test", folds=True), table)["class_prior"]
    for fold in (0, 1):
        grades = table.loc[table["fold"] != fold, "grade"].astype(int)
        expected = np.bincount(grades, minlength=5) / len(grades)
        rows = prior[prior["fold"] == fold]
        np.testing.assert_allclose(probabilities(rows), np.tile(expected, (30, 1)))
    assert not np.allclose(*probabilities(prior.drop_duplicates(P)))


def test_the_fold_of_the_validation_is_not_trained_on_either():
    """Of three folds, fold 0 is tested and fold 1 validates."""
    table = graded(folds=3)
    prior = baselines(like("test", "val").assign(fold=0), table)["class_prior"]
    grades = table.loc[table["fold"] == 2, "grade"].astype(int)
    np.testing.assert_allclose(
        probabilities(prior.drop_duplicates(P)), [np.bincount(grades, minlength=5) / len(grades)]
    )


def test_an_external_photograph_gets_the_mean_over_folds():
    table = graded(folds=2)
    external = like("external").assign(fold=pd.NA)
    found = baselines(pd.concat([like("test", folds=True), external]), table)
    own = found["class_prior"].query("split == 'test'").drop_duplicates("fold")
    mean = probabilities(own).mean(axis=0)
    there = found["class_prior"].query("split == 'external'")
    np.testing.assert_allclose(probabilities(there), np.tile(mean, (60, 1)))
    assert there["score"].unique() == pytest.approx([mean @ np.arange(5)])


def test_training_photographs_are_needed():
    table = graded()
    with pytest.raises(UserError, match="no graded training photographs"):
        baselines(like("test"), table[table["split"] == "test"])
    with pytest.raises(UserError, match="no fold 0, which was tested"):
        baselines(like("test", folds=True), table)
