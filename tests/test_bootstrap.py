import numpy as np
import pytest

from drgrade.bootstrap import interval, resample_weights


def test_resamples_are_those_of_the_seed_and_spread_as_they_should():
    first, again, other = (np.concatenate(list(resample_weights(20, 2000, seed))) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert first.mean() == 1
    assert first.var(axis=0).mean() == pytest.approx(1 - 1 / 20, abs=0.05)  # of a binomial(20, 1/20)


def test_ends_of_each_column_without_the_resamples_that_have_no_value():
    draws = np.stack([np.arange(101.0), np.full(101, np.nan)], axis=1)
    draws[0, 0] = np.nan  # 1 to 100 are left
    low, high = interval(draws)
    assert (low[0], high[0]) == pytest.approx((3.475, 97.525))
    assert np.isnan([low[1], high[1]]).all()
