from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drgrade.lesions import detector

detector.register()

from drgrade.lesions.sampler import RareLesionSampler, repeat_factors  # noqa: E402


class Tiles(list[list[int]]):
    """Kinds of lesion of each tile."""

    def get_cat_ids(self, index: int) -> list[int]:
        return self[index]


def sampler(tiles: list[list[int]], seed: int = 1, threshold: float = 0.5) -> Any:
    return RareLesionSampler(Tiles(tiles), seed, threshold)


def test_repeat_factors_by_hand() -> None:
    """Of 8 tiles 4 have MA (0), 2 have HE (1) and 1 has SE (3): factors 1, sqrt(2), 2."""
    tiles = [{0}, {0, 1}, {0}, {0, 3}, {1}, set(), set(), set()]
    assert repeat_factors(tiles, 0.5) == pytest.approx([1, 2**0.5, 1, 2, 2**0.5, 1, 1, 1])
    assert repeat_factors(tiles, 0.1).tolist() == [1] * 8, "nothing is that rare"
    assert repeat_factors([set(), set()], 0.5).tolist() == [1, 1]


@given(
    tiles=st.lists(st.lists(st.integers(0, 3), max_size=4), min_size=1, max_size=40),
    seed=st.integers(0, 1000),
    epoch=st.integers(0, 50),
)
def test_each_tile_comes_up_its_share(tiles: list[list[int]], seed: int, epoch: int) -> None:
    balanced = sampler(tiles, seed)
    balanced.set_epoch(epoch)
    drawn = list(balanced)
    assert len(drawn) == len(balanced) == len(tiles)
    factors = repeat_factors([set(tile) for tile in tiles], 0.5)
    shares = factors / factors.sum() * len(tiles)
    counts = Counter(drawn)
    for index, share in enumerate(shares):
        assert np.floor(share - 1e-9) <= counts[index] <= np.ceil(share + 1e-9)
    assert drawn == list(balanced), "the same draw again in the same epoch"


def test_rare_lesions_come_up_more_often_over_epochs() -> None:
    """One tile in 20 has SE, the others MA: a factor sqrt(10), so 3.16 / 22.16 of all that is shown."""
    balanced = sampler([[3], *[[0]] * 19])
    epochs = []
    for epoch in range(400):
        balanced.set_epoch(epoch)
        epochs.append(list(balanced))
    share = np.mean([index == 0 for epoch in epochs for index in epoch])
    assert share == pytest.approx(10**0.5 / (19 + 10**0.5), abs=0.01)
    counts = Counter(index for epoch in epochs for index in epoch)
    expected = 400 * 20 / (19 + 10**0.5)
    assert all(abs(counts[index] - expected) < 45 for index in range(1, 20)), "five standard deviations"
    assert len({tuple(epoch) for epoch in epochs}) == 400


def test_seeds_draw_differently() -> None:
    tiles = [[index % 4] for index in range(30)]
    assert list(sampler(tiles, seed=1)) != list(sampler(tiles, seed=2))
