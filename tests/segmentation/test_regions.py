"""Regions: what is read, what is left out, and that no lesion vanishes when masks are resized."""

import logging
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tests.disks import disk, fill
from tests.segmentation.marked import HEIGHT, WIDTH, photograph, rectangle, write_marked

from drgrade.errors import UserError
from drgrade.lesions.mask_store import BITS
from drgrade.params import Segmentation
from drgrade.schema import CROPS, read_table, write_table
from drgrade.segmentation.regions import FOLDER, read_regions, resized_bits, resized_mask

PHOTOGRAPHS = {
    "a": {"MA": (30, 30, 34, 34), "EX": (32, 32, 72, 60)},
    "b": {"HE": (100, 70, 130, 95), "SE": None},
    "c": {"SE": (40, 40, 60, 60)},
    "d": {},
}


@pytest.fixture
def marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DRGRADE_MARKED_ROOT", str(tmp_path / "raw"))
    write_marked(tmp_path, PHOTOGRAPHS, dict.fromkeys(PHOTOGRAPHS, "train"))
    return tmp_path


def regions(folder: Path, *names: str, **params):
    files = folder / "index.parquet", folder / "crops.parquet"
    return read_regions("marked", *files, names, Segmentation(**params))


def test_the_clipped_crop_box_is_scaled_with_its_masks(marked: Path) -> None:
    b, a = regions(marked, "b", "a", scale=0.5)
    assert ([a.image_id, b.image_id], a.annotated) == (["a", "b"], BITS["MA"] | BITS["EX"])
    assert b.annotated == BITS["HE"] | BITS["SE"]
    inside = np.s_[0:HEIGHT, 20:190]
    expected = cv2.resize(photograph(0, PHOTOGRAPHS["a"])[inside], (85, 75), interpolation=cv2.INTER_AREA)
    assert (a.pixels == expected).all()
    for kind, bit in BITS.items():
        drawn = rectangle(PHOTOGRAPHS["a"].get(kind))[inside]
        blocks = drawn.reshape(75, 2, 85, 2).mean(axis=(1, 3))  # all edges are even
        assert (((a.masks & bit) > 0) == (blocks == 1)).all(), kind
    assert (a.masks & BITS["MA"]).any()


def test_at_the_scale_of_one_nothing_changes_and_only_asked_kinds_are_read(marked: Path) -> None:
    (a,) = regions(marked, "a", scale=1.0, kinds=["EX"])
    assert (a.pixels == photograph(0, PHOTOGRAPHS["a"])[:, 20:190]).all()
    assert a.annotated == BITS["EX"]
    assert (a.masks == rectangle(PHOTOGRAPHS["a"]["EX"])[:, 20:190] * BITS["EX"]).all()


def test_regions_are_read_only_files_without_a_name(marked: Path) -> None:
    (a,) = regions(marked, "a")
    for array in (a.pixels, a.masks):
        assert isinstance(array, np.memmap)
        with pytest.raises(ValueError, match="read-only"):
            array[0, 0] = 1
    assert list(FOLDER.iterdir()) == []


def test_a_full_disk_stops_the_reading_and_leaves_no_photograph_out(
    marked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [region.pixels.copy() for region in regions(marked, "a", "b", scale=1.0)]
    with disk(marked / "small", "1m") as small:
        monkeypatch.chdir(small)
        ballast = fill(small, left=expected[0].nbytes + 16_384)
        with pytest.raises(OSError, match=f"No space left on device: '{FOLDER}'"):
            regions(marked, "a", "b", scale=1.0)
        ballast.unlink()
        found = [region.pixels for region in regions(marked, "a", "b", scale=1.0)]
        assert all((one == other).all() for one, other in zip(found, expected, strict=True))
        monkeypatch.chdir(marked)


def test_what_cannot_be_used_is_left_out_with_the_reason(
    marked: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (marked / "raw/b.png").write_bytes(b"")
    Image.new("L", (WIDTH, HEIGHT - 1)).save(marked / "raw/c_SE.png")
    with caplog.at_level(logging.WARNING):
        (a,) = regions(marked, "d", "c", "b", "nowhere", "a")
    assert a.image_id == "a"
    reasons = dict(message.split(": left out, ") for message in caplog.messages)
    assert {name: reasons[name] for name in "db"} == {"d": "no mask of these kinds", "b": "empty file"}
    assert reasons["c"].endswith("c_SE.png: 200 x 149 pixels, but the photograph has 200 x 150")
    assert reasons["nowhere"] == "no crop"
    with pytest.raises(UserError, match=r"index\.parquet: none of 2 photographs .* \(b: empty file\)$"):
        regions(marked, "b", "c")


def test_a_photograph_whose_crop_failed_is_left_out(marked: Path) -> None:
    crops = read_table(marked / "crops.parquet", CROPS)
    crops.loc[0, "status"] = "failed"
    write_table(crops, marked / "crops.parquet", CROPS)
    assert [region.image_id for region in regions(marked, "a", "b")] == ["b"]


@given(
    st.tuples(st.integers(0, 39), st.integers(0, 59)),
    st.tuples(st.integers(1, 6), st.integers(1, 6)),
    st.floats(0.1, 2.0),
)
def test_no_lesion_vanishes_or_moves(corner, size, scale: float) -> None:
    mask = np.zeros((40, 60), bool)
    (y, x), (high, wide) = corner, size
    mask[y : y + high, x : x + wide] = True
    shape = max(round(40 * scale), 1), max(round(60 * scale), 1)
    found = resized_mask(mask, shape[1], shape[0])
    assert found.shape == shape
    assert found.any()
    for axis, (low, top) in enumerate(((y, min(y + high, 40)), (x, min(x + wide, 60)))):
        factor = shape[axis] / mask.shape[axis]
        places = np.nonzero(found)[axis]
        assert low * factor - 1 <= places.min() + 0.5
        assert places.max() + 0.5 <= top * factor + 1


def test_half_covered_pixels_are_set_and_of_less_covered_ones_the_most() -> None:
    mask = np.zeros((4, 12), bool)
    mask[0:2, 0:2] = True  # fills a pixel
    mask[0, 4:6] = True  # fills half of one
    mask[3, 8] = True  # a quarter of one
    mask[1, 2] = True  # a quarter of one, beside one that is set
    found = resized_mask(mask, 6, 2)
    assert np.argwhere(found).tolist() == [[0, 0], [0, 2], [1, 4]]


def test_kinds_are_resized_one_by_one() -> None:
    rng = np.random.default_rng(0)
    masks = (rng.random((4, 30, 40)) < 0.1) * np.array(list(BITS.values()))[:, None, None]
    found = resized_bits(masks.sum(axis=0).astype(np.uint8), 20, 15)
    for own, bit in zip(masks, BITS.values(), strict=True):
        assert (((found & bit) > 0) == resized_mask(own > 0, 20, 15)).all()
    assert pd.Series(found.ravel()).nunique() > 4
