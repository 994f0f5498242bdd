"""Inputs of both eyes, against the published arrangement and plain NumPy."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from drgrade.errors import UserError
from drgrade.grading.base import Photographs
from drgrade.grading.feature_sets import FeatureSet
from drgrade.grading.pairing import Pairs, Standardise, eye_rows, fellow, right_eye, width


def photographs(count: int = 6, **changed) -> Photographs:
    """Both eyes of each patient, left first, as sorted file names give them."""
    table = pd.DataFrame(
        {
            "image_id": [f"i{n}" for n in range(count)],
            "patient_id": [f"p{n // 2}" for n in range(count)],
            "eye": [("left", "right")[n % 2] for n in range(count)],
        }
    )
    return Photographs(None, table.assign(**changed), dataset="demo")


def features_of(seen: list[str], *, models: int = 1, model: int = 0, seed: int = 0, name="net", size=3):
    """A set in which one network gave features to the photographs ``seen``, in reverse order of rows."""
    rng = np.random.default_rng(seed)
    columns = {"dataset": "demo", "image_id": seen, "model": model, "row": range(len(seen))[::-1]}
    mean, std = rng.normal(size=(2, len(seen), size)).astype(np.float32)
    return FeatureSet(name, models, models == 1, pd.DataFrame(columns), mean, std)


def inputs_of(part: Photographs, sets: list[FeatureSet], *, std=True, per_patient=True) -> np.ndarray:
    """Inputs of all rows without standardisation."""
    rows = eye_rows(part, sets, 0, std=std)
    scaler = Standardise(rows.features.shape[1])
    pairs = Pairs.of(rows, scaler, per_patient=per_patient)
    return pairs.inputs(torch.arange(len(pairs))).numpy()


def test_inputs_are_own_features_fellow_features_and_the_right_flag():
    """A7: the fellow eye of photograph i is photograph i xor 1, and the flag is i mod 2."""
    part = photographs()
    one = features_of(part.table["image_id"].tolist())
    own = np.hstack([one.mean, one.std])[::-1]  # rows are in reverse order
    order = np.arange(6)
    expected = np.hstack([own, own[order ^ 1], (order % 2)[:, None]])
    np.testing.assert_array_equal(inputs_of(part, [one]), expected)


@given(st.permutations(range(6)))
def test_the_order_of_photographs_does_not_matter(order):
    part = photographs()
    one = features_of(part.table["image_id"].tolist())
    shuffled = Photographs(None, part.table.iloc[order], dataset="demo")
    np.testing.assert_array_equal(inputs_of(shuffled, [one]), inputs_of(part, [one])[order])


@pytest.mark.parametrize(("size", "expected"), [(2048, 8193), (512, 2049)])
def test_published_input_widths(size, expected):
    """A8: mean and standard deviation of o_O's 2,048 features, and of RAM's 512, for both eyes; the flag."""
    part = photographs(2)
    one = features_of(["i0", "i1"], size=size)
    assert inputs_of(part, [one]).shape == (2, expected)
    assert width(2 * size, per_patient=True) == expected
    assert inputs_of(part, [one], per_patient=False).shape == (2, 2 * size)
    assert width(2 * size, per_patient=False) == 2 * size


def test_without_standard_deviations_or_fellow_eyes():
    part = photographs()
    one = features_of(part.table["image_id"].tolist())
    np.testing.assert_array_equal(inputs_of(part, [one], std=False, per_patient=False), one.mean[::-1])
    expected = np.hstack([one.mean, one.std])[::-1]
    np.testing.assert_array_equal(inputs_of(part, [one], per_patient=False), expected)
    own = one.mean[::-1]
    both = np.hstack([own, own[np.arange(6) ^ 1], np.tile([[0], [1]], (3, 1))])
    np.testing.assert_array_equal(inputs_of(part, [one], std=False), both)


def test_sets_are_concatenated_in_order():
    part = photographs(2)
    first, second = (features_of(["i0", "i1"], seed=seed) for seed in (1, 2))
    expected = np.hstack([first.mean, first.std, second.mean, second.std])[::-1]
    np.testing.assert_array_equal(inputs_of(part, [first, second], per_patient=False), expected)


def test_own_features_stand_in_for_a_missing_fellow_eye():
    """i1 has no features of this network; i3's patient has one eye; i4's eye is unknown."""
    part = photographs(5, patient_id=["p0", "p0", "p1", "p2", "p3"], eye=["left", "right"] * 2 + [None])
    one = features_of(["i0", "i2", "i3", "i4"])
    own = np.hstack([one.mean, one.std])[::-1]
    expected = np.hstack([own, own, [[0], [0], [1], [0.5]]])
    np.testing.assert_array_equal(inputs_of(part, [one]), expected)
    assert eye_rows(part, [one], 0, std=True).places.tolist() == [0, 2, 3, 4]


def test_fellow_and_flag():
    partner = np.array([1, 0, -1, 4, 3])
    everyone = np.ones(5, bool)
    assert fellow(partner, everyone).tolist() == [1, 0, 2, 4, 3]
    assert fellow(partner, np.array([True, True, True, True, False])).tolist() == [1, 0, 2, 3, 3]
    assert fellow(np.array([-1, -1]), np.array([False, True])).tolist() == [0, 1]
    unknown = pd.DataFrame({"eye": [None, None]})  # new photographs
    assert right_eye(unknown).tolist() == [0.5, 0.5]
    assert right_eye(pd.DataFrame({"eye": ["right", pd.NA, "left"]}).astype("string")).tolist() == [1, 0.5, 0]


def test_rows_of_one_network_only():
    part = photographs()
    one = features_of(["i2", "i3"], models=2, model=1)
    assert eye_rows(part, [one], 0, std=True).features.shape == (0, 6)
    assert eye_rows(part, [one], 1, std=True).places.tolist() == [2, 3]
    assert eye_rows(part, [one], 1, std=True).fellow.tolist() == [1, 0]


def test_sets_must_have_the_same_photographs():
    part = photographs(4)
    whole = features_of(["i0", "i1", "i2", "i3"], name="whole")
    with pytest.raises(UserError, match="i2 has features of model 0 in some sets but not in less"):
        eye_rows(part, [whole, features_of(["i0", "i1", "i3"], name="less")], 0, std=True)


def test_features_are_standardised_before_they_are_paired():
    """Each photograph counts once, also the one that stands in for a missing fellow eye; the flag is raw."""
    part = photographs(5)
    one = features_of(part.table["image_id"].tolist())
    one.mean[:, 1] = 7  # constant
    rows = eye_rows(part, [one], 0, std=True)
    scaler = Standardise(6)
    scaler.adapt(rows.features)
    pairs = Pairs.of(rows, scaler, per_patient=True)
    inputs = pairs.inputs(torch.tensor([4, 1])).numpy()
    deviation = rows.features.std(axis=0)
    expected = (rows.features - rows.features.mean(axis=0)) / np.where(deviation > 0, deviation, 1)
    np.testing.assert_allclose(inputs[0], [*expected[4], *expected[4], 0], atol=1e-6)
    np.testing.assert_allclose(inputs[1], [*expected[1], *expected[0], 1], atol=1e-6)
    np.testing.assert_array_equal(inputs[:, [1, 7]], 0)
