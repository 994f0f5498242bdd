import itertools
import json
import multiprocessing
import shutil
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import cv2
import numpy as np
import pandas as pd
import pytest

from drgrade import schema
from drgrade.errors import UserError
from drgrade.images.geometry import CropGeometry
from drgrade.images.scaled import at_size
from drgrade.images.shards import write_store
from drgrade.images.store import Crops, CropStore

FORMATS = ["raw", "png", "jpeg"]
SIZE = 24


def smooth(count: int) -> np.ndarray:
    """Images that a codec can hold: colour gradients, another one each."""
    column, row = np.meshgrid(np.linspace(0, 1, SIZE), np.linspace(0, 1, SIZE))
    pictures = [
        np.stack([column * (k + 1) / count, row, np.full_like(row, k / count)], axis=2) for k in range(count)
    ]
    return np.round(255 * np.array(pictures)).astype(np.uint8)


@pytest.fixture
def pictures():
    return smooth(11)


@pytest.fixture(params=FORMATS)
def manifest(request, tmp_path, pictures):
    """A store of 11 images in three shards."""
    path = tmp_path / request.param / "store.json"
    share = {"raw": 1, "png": 0.5, "jpeg": 0.1}[request.param]
    write_store(pictures, path, request.param, 100, shard_bytes=int(4.5 * SIZE * SIZE * 3 * share))
    return path


def close(found, expected, format):
    """Equal, or for JPEG as near as its highest quality comes without losing colour resolution."""
    assert found.dtype == np.uint8
    assert np.abs(found.astype(int) - expected.astype(int)).max(initial=0) <= (3 if format == "jpeg" else 0)


def test_any_row_and_any_rows_come_back(manifest, pictures):
    store = CropStore(manifest)
    assert (len(store), store.size, store.shape) == (11, SIZE, (11, SIZE, SIZE, 3))
    assert [shard["rows"] for shard in json.loads(manifest.read_text())["shards"]] == [4, 4, 3]
    for rows in (0, 4, 10, -1, np.int64(7)):
        assert store[rows].shape == (SIZE, SIZE, 3)
        close(store[rows], pictures[rows], store.format)
    for rows in (slice(None), slice(2, 9, 3), slice(5, 5), [9, 0, 9], [], np.arange(11) % 3 == 1):
        close(store[rows], pictures[rows], store.format)
    for row in (11, -12, [0, 11]):
        with pytest.raises(IndexError):
            store[row]


def test_every_picture_is_a_file_in_the_stated_format(manifest, pictures):
    store = CropStore(manifest)
    signature = {"raw": b"", "png": b"\x89PNG", "jpeg": b"\xff\xd8\xff"}[store.format]
    names = sorted(path.name for path in store.folder.iterdir())
    endings = ["npy"] if store.format == "raw" else ["bin", "npy"]
    assert names == [f"shard-0000{shard}.{ending}" for shard in range(3) for ending in endings]
    first = np.load(store.folder / "shard-00000.npy")
    if store.format == "raw":
        np.testing.assert_array_equal(first, pictures[:4])
        return
    data = (store.folder / "shard-00000.bin").read_bytes()
    assert (first[0], first[-1], len(first)) == (0, len(data), 5)
    for start, end in itertools.pairwise(first):
        assert data[start:end].startswith(signature)


def test_jpeg_keeps_colour_at_full_resolution_and_obeys_the_quality(tmp_path):
    stripes = np.zeros((1, SIZE, SIZE, 3), np.uint8)
    stripes[:, :, ::2, 0] = 255  # halved colour would blur red columns of one pixel
    stripes[:, :, 1::2, 2] = 130
    sizes = []
    for quality in (50, 95):
        write_store(stripes, tmp_path / f"{quality}.json", "jpeg", quality)
        sizes.append(json.loads((tmp_path / f"{quality}.json").read_text())["shards"][0]["files"][0]["bytes"])
    assert np.abs(CropStore(tmp_path / "95.json")[0].astype(int) - stripes[0]).max() < 25
    assert sizes[0] < sizes[1]


def test_a_store_takes_no_writing(manifest):
    store = CropStore(manifest)
    if store.format == "raw":
        assert np.shares_memory(store[3], store[3])  # looked at where it lies
        with pytest.raises(ValueError, match="read-only"):
            store[3][0] = 0
    with pytest.raises(TypeError):
        store[3] = 0


def test_a_fork_reads_a_store_that_was_in_use(manifest):
    store = CropStore(manifest)
    store[:]  # files are open and threads have run
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=lambda: queue.put(store[[9, 2, 5]]))
    child.start()
    found = queue.get()
    child.join()
    np.testing.assert_array_equal(found, store[[9, 2, 5]])


def test_a_store_travels_to_a_fresh_process(tmp_path, pictures):
    write_store(pictures, tmp_path / "store.json", "png")
    store = CropStore(tmp_path / "store.json")
    at_size(store, 10)[3]
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        found = pool.submit(store.__getitem__, [9, 2]).result()
    np.testing.assert_array_equal(found, pictures[[9, 2]])


def test_threads_share_a_store(manifest, pictures):
    store = CropStore(manifest)
    with ThreadPoolExecutor(8) as pool:
        for row, found in zip([*range(11)] * 10, pool.map(store.__getitem__, [*range(11)] * 10), strict=True):
            close(found, pictures[row], store.format)


def test_the_same_pictures_give_the_same_bytes(manifest, pictures, tmp_path):
    store = CropStore(manifest)
    about = json.loads(manifest.read_text())
    share = {"raw": 1, "png": 0.5, "jpeg": 0.1}[store.format]
    again = tmp_path / "again" / "store.json"
    write_store(pictures, again, store.format, 100, shard_bytes=int(4.5 * SIZE * SIZE * 3 * share))
    assert again.read_bytes() == manifest.read_bytes()
    for path in store.folder.iterdir():
        assert path.read_bytes() == (again.parent / "store" / path.name).read_bytes()
    assert about["quality"] == (100 if store.format == "jpeg" else None)
    assert str(tmp_path) not in manifest.read_text()


class TestDamage:
    def files(self, manifest):
        return sorted((manifest.parent / "store").iterdir())

    def test_a_changed_byte_is_found_by_the_checksum(self, manifest):
        CropStore(manifest).verify()
        for path in self.files(manifest):
            data = bytearray(path.read_bytes())
            data[-1] ^= 1
            path.write_bytes(data)
            with pytest.raises(UserError, match=rf"{path.name}: damaged.*run the stage crop again"):
                CropStore(manifest).verify()
            data[-1] ^= 1
            path.write_bytes(data)
        CropStore(manifest).verify()

    @pytest.mark.parametrize("change", [-100, -1, 1])
    def test_another_length_is_found_on_opening(self, manifest, change):
        for path in self.files(manifest):
            whole = path.read_bytes()
            path.write_bytes(whole[:change] if change < 0 else whole + b"\0" * change)
            with pytest.raises(
                UserError, match=rf"{path.name}: {len(whole) + change} bytes, not {len(whole)}"
            ):
                CropStore(manifest)
            path.write_bytes(whole)

    def test_a_missing_shard_or_manifest_is_named(self, manifest):
        self.files(manifest)[1].unlink()
        with pytest.raises(UserError, match=r"shard-.*: no such file; restore it with dvc checkout"):
            CropStore(manifest)
        shutil.rmtree(manifest.parent / "store")
        with pytest.raises(UserError, match="no such file"):
            CropStore(manifest)
        manifest.unlink()
        with pytest.raises(UserError, match=r"store\.json: no such file; run the stage crop"):
            CropStore(manifest)

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"size": 4, "format": "raw", "shards": [{}]}'])
    def test_a_manifest_that_is_none(self, tmp_path, text):
        (tmp_path / "store.json").write_text(text)
        with pytest.raises(UserError, match=r"store\.json: not a readable manifest"):
            CropStore(tmp_path / "store.json")

    def test_a_shard_of_the_right_length_with_something_else_in_it(self, manifest):
        shard = self.files(manifest)[0]
        shard.write_bytes(bytes(shard.stat().st_size))
        with pytest.raises(UserError, match=r"shard|cannot be decoded"):
            CropStore(manifest)[0]


def test_a_store_that_fails_in_the_making_leaves_the_old_one_alone(manifest, pictures):
    before = {path: path.read_bytes() for path in manifest.parent.rglob("*") if path.is_file()}
    with pytest.raises((cv2.error, AttributeError)):
        write_store([*pictures[:10], None], manifest, CropStore(manifest).format)
    assert {path: path.read_bytes() for path in manifest.parent.rglob("*") if path.is_file()} == before


@pytest.fixture
def files(tmp_path):
    pictures = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3)).astype(np.uint8)
    write_store(pictures, tmp_path / "store.json")
    boxes = {"x0": [0, None, -5], "y0": [0, None, 2], "x1": [16, None, 35], "y1": [16, None, 42]}
    table = pd.DataFrame(
        boxes | {"image_id": ["b", "gone", "a"], "row": [0, None, 2], "scale": [0.5, None, 0.2]}
    )
    table["rule"] = ["disc", "", "disc"]
    table["status"] = ["ok", "failed", "ok"]
    table["reason"] = ["", "empty file", ""]
    schema.write_table(table, tmp_path / "crops.parquet", schema.CROPS)
    return tmp_path / "store.json", tmp_path / "crops.parquet", pictures


def test_crops_by_image(files):
    store, table, pictures = files
    crops = Crops(store, table)
    assert (crops.size, len(crops), crops.rows) == (8, 2, {"b": 0, "a": 2})
    np.testing.assert_array_equal(crops["a"], pictures[2])
    assert crops.geometry("a") == CropGeometry(-5, 2, 35, 42, 8)
    assert "gone" not in crops
    with pytest.raises(KeyError):
        crops.geometry("gone")


def test_a_table_of_another_store(files, tmp_path):
    write_store(np.zeros((2, 8, 8, 3), np.uint8), tmp_path / "short.json")
    with pytest.raises(UserError, match="row 2"):
        Crops(tmp_path / "short.json", files[1])
