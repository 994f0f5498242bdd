import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from drgrade.rng import derive, derive_each, uniforms

seeds = st.integers(0, 2**63 - 1)


def test_numbers_are_splitmix64s() -> None:
    """The reference implementation's first outputs for the seed 1234567."""
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert (uniforms([1234567], 4)[:, 0] * 2**53).tolist() == [number >> 11 for number in expected]


@given(st.lists(seeds, min_size=1, max_size=9), st.integers(1, 9), st.integers(0, 9))
def test_a_column_depends_on_its_seed_alone_and_more_numbers_only_add_rows(many, count, more) -> None:
    together = uniforms(many, count + more)
    assert together.shape == (count + more, len(many))
    for place, seed in enumerate(many):
        assert (uniforms([seed], count)[:, 0] == together[:count, place]).all()


@given(seeds, st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 50)), min_size=1, max_size=9))
def test_derived_seeds_belong_to_their_rows(seed, rows) -> None:
    found = derive_each(rows, seed, "view", 3)
    assert found.dtype == np.int64
    assert (found >= 0).all()
    assert len(set(found.tolist())) == len(set(rows))
    for row, one in zip(rows, found, strict=True):
        assert derive_each([row], seed, "view", 3)[0] == one
        assert derive_each([row], seed, "view", 4)[0] != one
        assert derive_each([row[::-1]], seed, "view", 3)[0] != one or row[0] == row[1]
    assert (derive_each(np.array(rows)[:, 0], seed) == derive_each(np.array(rows)[:, :1], seed)).all()


def test_numbers_of_neighbouring_rows_are_uniform_and_unrelated() -> None:
    """Over 100,000 views: means, spread and correlations within five standard errors."""
    drawn = uniforms(derive_each(np.arange(100_000), 1, "view", 0), 6)
    assert abs(drawn.mean(axis=1) - 0.5).max() < 5 / np.sqrt(12 * 100_000)
    assert abs(drawn.var(axis=1) - 1 / 12).max() < 5 * np.sqrt(1 / 180 / 100_000)
    related = np.corrcoef(np.vstack([drawn, drawn[:, np.r_[1:100_000, 0]]]))
    assert abs(related - np.eye(12)).max() < 5 / np.sqrt(100_000)
    assert len(np.unique(drawn[0])) == 100_000
    assert derive(1, "view", 0) != derive_each([0], 1, "view", 0)[0]
