"""Networks get each image scaled as it would be alone, once."""

import cv2
import numpy as np
import pytest
from tests.disks import disk, fill

from drgrade.images import scaled as sizes
from drgrade.images.scaled import at_size
from drgrade.images.shards import write_store
from drgrade.images.store import CropStore

SIZE = 24


@pytest.fixture
def pictures():
    return np.random.default_rng(0).integers(0, 256, (11, SIZE, SIZE, 3)).astype(np.uint8)


@pytest.fixture(params=["raw", "png"])
def manifest(request, tmp_path, pictures):
    write_store(pictures, tmp_path / "store.json", request.param, shard_bytes=4 * SIZE * SIZE * 3)
    return tmp_path / "store.json"


def test_pictures_are_scaled_as_one_by_one(manifest):
    store = CropStore(manifest)
    for size, how in ((10, cv2.INTER_AREA), (40, cv2.INTER_CUBIC)):
        expected = np.stack([cv2.resize(picture, (size, size), interpolation=how) for picture in store[:]])
        found = at_size(store, size)
        assert (len(found), found.shape) == (11, (11, size, size, 3))
        np.testing.assert_array_equal(found[np.array([7, 1, 7])], expected[[7, 1, 7]])
        np.testing.assert_array_equal(found[3], expected[3])
        np.testing.assert_array_equal(found[:], expected)


def test_the_right_size_is_the_store_itself(manifest, pictures):
    store = CropStore(manifest)
    assert at_size(store, SIZE) is store
    assert at_size(pictures, SIZE) is pictures


def test_each_is_scaled_once_for_all_who_ask(manifest, monkeypatch):
    asked = []
    plain = sizes.scale
    monkeypatch.setattr(sizes, "scale", lambda part, size: asked.append(len(part)) or plain(part, size))
    store = CropStore(manifest)
    at_size(store, 10)[[1, 2, 2]]
    at_size(store, 10)[[2, 3]]
    assert asked == [2, 1]
    at_size(store, 12)[0]
    assert asked == [2, 1, 1]


def test_a_large_copy_lives_in_a_file_that_leaves_nothing(manifest, tmp_path, monkeypatch):
    expected = at_size(CropStore(manifest), 10)[:]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sizes, "IN_MEMORY", 0)
    copy = at_size(CropStore(manifest), 10)
    assert isinstance(copy._pixels, np.memmap)
    np.testing.assert_array_equal(copy[::-1], expected[::-1])
    assert list((tmp_path / sizes.SCALED).iterdir()) == []


def test_a_large_copy_for_which_the_disk_has_no_room_is_an_error_at_once(manifest, tmp_path, monkeypatch):
    """Written through a mapping, a file with holes would kill the process on a full disk."""
    side, expected = 200, at_size(CropStore(manifest), 200)[:]
    monkeypatch.setattr(sizes, "IN_MEMORY", 0)
    with disk(tmp_path / "small", "2m") as small:
        monkeypatch.chdir(small)
        ballast = fill(small, left=11 * side * side * 3 - 4096)
        with pytest.raises(OSError, match=f"No space left on device: '{sizes.SCALED}'"):
            at_size(CropStore(manifest), side)
        assert list(sizes.SCALED.iterdir()) == []
        ballast.unlink()
        np.testing.assert_array_equal(at_size(CropStore(manifest), side)[:], expected)
        monkeypatch.chdir(tmp_path)
