"""Training tiles: pixels and masks of one place, drawn from seed, epoch and position only."""

import numpy as np
import pytest
import torch

from drgrade.params import Segmentation
from drgrade.segmentation.regions import Region
from drgrade.segmentation.windows import Windows

HEIGHT, WIDTH, TILE = 200, 240, 64


def region(masks: np.ndarray | None = None, name: str = "a", annotated: int = 15) -> Region:
    """A photograph whose red and green values are the row and the column of a pixel, and blue is 255."""
    pixels = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    pixels[..., 0], pixels[..., 1] = np.arange(HEIGHT)[:, None], np.arange(WIDTH)
    return Region(name, pixels, np.zeros((HEIGHT, WIDTH), np.uint8) if masks is None else masks, annotated)


def checked() -> np.ndarray:
    """Masks that follow from the place: bits of row and column."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    return ((rows % 2) | (columns % 4 == 0) * 2 | ((rows + columns) % 3 == 0) * 4).astype(np.uint8)


def windows(*regions: Region, **params) -> Windows:
    return Windows(regions, Segmentation(**{"tile": TILE, "zoom": [1.0, 1.0], **params}))


def images(tiles) -> np.ndarray:
    return tiles.images.permute(0, 2, 3, 1).numpy()


def test_the_batch_is_described_as_promised() -> None:
    found = windows(region(annotated=5), region(annotated=3), tiles_per_photograph=2).tiles(
        np.array([3, 0]), 0
    )
    assert found.images.shape == (2, 3, TILE, TILE)
    assert found.masks.shape == (2, TILE, TILE)
    assert found.annotated.tolist() == [3, 5]
    assert {part.dtype for part in found} == {torch.uint8}
    assert found.images.is_contiguous(memory_format=torch.channels_last)


def test_every_photograph_is_cut_equally_often() -> None:
    made = windows(*(region(annotated=number) for number in (1, 2, 4)), tiles_per_photograph=5)
    assert len(made) == 15
    assert np.bincount(made.tiles(np.arange(15), 0).annotated.numpy()).tolist() == [0, 5, 5, 0, 5]


def test_a_tile_depends_on_seed_epoch_and_position_only() -> None:
    made = windows(region(checked()), region(checked()), zoom=[0.5, 2.0])
    several = made.tiles(np.array([9, 2, 5]), 3)
    for place, position in enumerate((9, 2, 5)):
        alone = made.tiles(np.array([position]), 3)
        for one, many in zip(alone, several, strict=True):
            assert torch.equal(one[0], many[place])
    others = [made.tiles(np.array([9]), 4), made.tiles(np.array([8]), 3)]
    others.append(
        windows(region(checked()), region(checked()), zoom=[0.5, 2.0], seed=2).tiles(np.array([9]), 3)
    )
    for other in others:
        assert not torch.equal(other.images[0], several.images[0])


def test_pixels_are_a_turned_window_and_masks_are_theirs() -> None:
    """At a zoom of 1 nothing is interpolated, and every pixel names its place."""
    masks, turns = checked(), set()
    found = windows(region(masks), tiles_per_photograph=64).tiles(np.arange(64), 0)
    for image, own in zip(images(found).astype(int), found.masks.numpy(), strict=True):
        rows, columns = image[..., 0], image[..., 1]
        assert (masks[rows, columns] == own).all()
        assert len(np.unique(rows)) == len(np.unique(columns)) == TILE
        assert (np.ptp(rows), np.ptp(columns)) == (TILE - 1, TILE - 1)
        steps = [*np.diff(rows[:2, :2], axis=0)[:, 0], *np.diff(rows[:2, :2], axis=1)[0]]
        turns.add((*map(int, steps), *(int(line[1] - line[0]) for line in (columns[:, 0], columns[0]))))
    assert len(turns) == 8


def test_lesions_of_all_kinds_are_shown_equally_often() -> None:
    """One pixel of one kind, hundreds of another: every tile is around one of them, half and half."""
    masks = np.zeros((HEIGHT, WIDTH), np.uint8)
    masks[20, 20], masks[150:180, 180:220] = 1, 4
    count = 200
    made = windows(region(masks), lesion_share=1.0, tiles_per_photograph=count).tiles(np.arange(count), 0)
    first, other = (((made.masks & bit) > 0).flatten(1).any(dim=1).numpy() for bit in (1, 4))
    assert (first ^ other).all()
    assert abs(first.mean() - 0.5) < 4 * np.sqrt(0.25 / count)


def test_a_lesion_lies_anywhere_in_the_middle_half() -> None:
    masks = np.zeros((HEIGHT, WIDTH), np.uint8)
    masks[100, 120] = 8
    made = windows(region(masks), lesion_share=1.0, tiles_per_photograph=300).tiles(np.arange(300), 0)
    places = np.argwhere(made.masks.numpy())
    assert places[:, 0].tolist() == list(range(300))
    for axis in (1, 2):
        assert TILE // 4 - 1 <= places[:, axis].min() < TILE * 0.3
        assert TILE * 0.7 < places[:, axis].max() <= 3 * TILE // 4


def test_lesions_at_the_edge_are_seen_and_windows_stay_inside() -> None:
    masks = np.zeros((HEIGHT, WIDTH), np.uint8)
    masks[0, 0] = masks[-1, -1] = 1
    made = windows(region(masks), lesion_share=1.0, tiles_per_photograph=50).tiles(np.arange(50), 0)
    assert made.masks.flatten(1).any(dim=1).all()
    assert (made.images[:, 2] == 255).all()


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_the_share_of_tiles_around_a_lesion(share: float) -> None:
    masks = np.zeros((HEIGHT, WIDTH), np.uint8)
    masks[0, 0] = 1
    count = 400
    made = windows(region(masks), lesion_share=share, tiles_per_photograph=count).tiles(np.arange(count), 0)
    seen = made.masks.flatten(1).any(dim=1).double().mean().item()
    assert abs(seen - share) < 4 * np.sqrt(0.25 / count)  # by chance alone: 1 in 137 * 177


def test_other_windows_lie_anywhere() -> None:
    made = windows(region(), tiles_per_photograph=400).tiles(np.arange(400), 0)
    rows, columns = (images(made)[..., channel].reshape(400, -1).min(axis=1) for channel in (0, 1))
    for starts, room in ((rows, HEIGHT - TILE), (columns, WIDTH - TILE)):
        assert starts.min() <= 0.05 * room
        assert starts.max() >= 0.95 * room
        assert abs(starts.mean() - room / 2) < 4 * room / np.sqrt(12 * 400)


def test_the_zoom_is_log_uniform() -> None:
    made = windows(region(), zoom=[0.5, 2.0], tiles_per_photograph=300).tiles(np.arange(300), 0)
    rows = images(made)[..., 0].astype(float).reshape(300, -1)
    zooms = np.log2((TILE - 1) / np.ptp(rows, axis=1))
    assert -1.05 < zooms.min() < -0.95
    assert 0.95 < zooms.max() < 1.1
    assert abs(zooms.mean()) < 4 * 2 / np.sqrt(12 * 300) + 0.02


def test_outside_a_small_photograph_it_is_black() -> None:
    small = Region("a", np.full((30, 100, 3), 200, np.uint8), np.full((30, 100), 2, np.uint8), 2)
    made = windows(small, tiles_per_photograph=20, lesion_share=0.5).tiles(np.arange(20), 0)
    inside = made.masks.numpy() == 2
    assert (inside.sum(axis=(1, 2)) == 30 * TILE).all()
    assert (images(made)[inside] == 200).all()
    assert (images(made)[~inside] == 0).all()
    assert len({tuple(image.any(axis=(1, 2))) for image in images(made)}) > 5  # not always at the same edge


def test_small_lesions_survive_shrinking() -> None:
    masks = np.zeros((HEIGHT, WIDTH), np.uint8)
    masks[100, 120] = 1
    made = windows(region(masks), lesion_share=1.0, zoom=[0.4, 0.4], tiles_per_photograph=8).tiles(
        np.arange(8), 0
    )
    assert (made.masks.flatten(1) > 0).any(dim=1).all()
