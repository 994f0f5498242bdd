"""Crop planning and what a crop run leaves on disk; the rows of crops.parquet are tested in test_crop.py."""

import errno
import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from drgrade import schema
from drgrade.errors import UserError
from drgrade.images import shards
from drgrade.images.shards import SHARE, shard_rows
from drgrade.images.stage import CHUNK, crop_dataset, plan
from drgrade.images.store import Crops, CropStore
from drgrade.params import Crop

FORMATS = ["raw", "png", "jpeg"]
SIZE = 32


@given(st.integers(0, 5000), st.integers(32, 600), st.sampled_from(FORMATS), st.integers(1, 10**9))
def test_shards_hold_all_and_keep_to_their_size(count, size, format, most):
    rows = shard_rows(count, size, format, most)
    assert sum(rows) == count
    assert len(set(rows[:-1])) <= 1
    assert all(0 < held <= rows[0] for held in rows)
    assert all(held == 1 or held * size * size * 3 * SHARE[format] <= most for held in rows)


def test_the_largest_dataset_is_few_files():
    assert len(shard_rows(88_702, 512, "jpeg")) < 30
    assert len(shard_rows(88_702, 512, "raw")) == 261  # 341 images of 786,432 bytes in 256 MiB


statuses = st.sampled_from(["ok", "unlabelled", "filtered", "unreadable", "missing"])


@given(st.lists(statuses, max_size=60), st.integers(1, 20))
def test_a_plan_gives_every_readable_photograph_one_place_in_order(listed, per_shard):
    rows = pd.DataFrame({"status": listed, "path": [f"{k}.jpg" for k in range(len(listed))]}, dtype="string")
    planned = plan(rows, Path("/raw"), Crop(size=SIZE), per_shard * SIZE * SIZE * 3)
    wanted = [place for place, status in enumerate(listed) if status in ("ok", "unlabelled", "filtered")]
    assert list(np.flatnonzero(planned.readable)) == wanted
    starts = [0, *itertools.accumulate(planned.shards)]
    placed = [
        (starts[chunk.shard] + chunk.first + offset, path)
        for chunk in planned.chunks
        for offset, path in enumerate(chunk.paths)
    ]
    assert placed == [(row, f"/raw/{place}.jpg") for row, place in enumerate(wanted)]
    for chunk in planned.chunks:
        assert 0 < len(chunk.paths) <= CHUNK
        assert chunk.first + len(chunk.paths) <= planned.shards[chunk.shard]


def test_planning_a_hundred_thousand_photographs():
    rows = pd.DataFrame(
        {"status": "ok", "path": [f"train/{k}_left.jpeg" for k in range(100_000)]}, dtype="string"
    )
    planned = plan(rows, Path("/raw"), Crop(size=512))
    assert sum(len(chunk.paths) for chunk in planned.chunks) == 100_000


@pytest.fixture
def index(tmp_path, monkeypatch):
    """Twenty photographs; 3 is broken and 5 was filtered out."""
    raw = tmp_path / "raw"
    raw.mkdir()
    monkeypatch.setenv("DRGRADE_DEMO_ROOT", str(raw))
    columns, lines = np.meshgrid(np.arange(120), np.arange(100))
    inside = (np.hypot(columns - 60, lines - 50) < 45)[..., None]
    for number in range(20):
        colour = np.array([120 + 5 * number, 200 - 8 * number, 40])
        Image.fromarray((inside * colour).astype(np.uint8)).save(raw / f"{number}.png")
    (raw / "3.png").write_bytes(b"")
    table = pd.DataFrame({"image_id": [f"i{number}" for number in range(20)]})
    table["path"] = [f"{number}.png" for number in range(20)]
    table["status"], table["reason"] = "ok", ""
    table.loc[5, ["status", "reason"]] = "filtered", "quality 0.01"
    table = table.reindex(columns=list(schema.INDEX))
    schema.write_table(table, tmp_path / "index.parquet", schema.INDEX)
    return tmp_path / "index.parquet"


def run(index, folder, format="raw", workers=1, shard_bytes=7.5 * SIZE * SIZE * 3, **options):
    options = Crop(size=SIZE, format=format, **options)
    files = folder / "store.json", folder / "crops.parquet"
    crop_dataset("demo", index, options, *files, workers, int(shard_bytes * SHARE[format]))
    return files


@pytest.mark.parametrize("format", FORMATS)
def test_bytes_do_not_depend_on_the_workers(index, tmp_path, format):
    one = run(index, tmp_path / "one", format, workers=1)
    three = run(index, tmp_path / "three", format, workers=3)
    names = sorted(path.relative_to(one[0].parent) for path in one[0].parent.rglob("*") if path.is_file())
    assert len(names) == 2 + 3 * (1 if format == "raw" else 2)
    for name in names:
        assert (one[0].parent / name).read_bytes() == (three[0].parent / name).read_bytes(), name
    CropStore(one[0]).verify()


def test_formats_hold_the_same_crops(index, tmp_path):
    raw, png, jpeg = (Crops(*run(index, tmp_path / format, format)) for format in FORMATS)
    assert raw.rows == png.rows == jpeg.rows
    np.testing.assert_array_equal(png.pictures[:], raw.pictures[:])
    assert np.abs(jpeg.pictures[:].astype(int) - raw.pictures[:]).mean() < 3
    for crops in (raw, png, jpeg):
        assert crops.pictures[3].max() == 0  # the broken photograph's row is black
        assert "i3" not in crops


def test_what_a_filter_left_out_is_cropped_all_the_same(index, tmp_path):
    _, path = run(index, tmp_path / "out")
    table = schema.read_table(path, schema.CROPS).set_index("image_id")
    assert table.loc["i5", ["row", "status", "reason"]].tolist() == [5, "ok", ""]
    assert table.loc["i3", ["status", "reason", "rule"]].tolist() == ["failed", "empty file", ""]
    assert pd.isna(table.loc["i3", "row"])


@pytest.mark.parametrize("format", FORMATS)
def test_a_shard_of_nothing_but_failures_is_black(index, tmp_path, format):
    store, _ = run(index, tmp_path / "out", format, shard_bytes=1)  # a shard a photograph
    assert len(json.loads(store.read_text())["shards"]) == 20
    assert CropStore(store)[[3, 4]].max(axis=(1, 2, 3)).astype(bool).tolist() == [False, True]


def test_another_run_replaces_the_store_whole(index, tmp_path):
    run(index, tmp_path / "out", "jpeg")
    store, _ = run(index, tmp_path / "out", "raw")
    assert sorted(path.name for path in store.parent.iterdir()) == ["crops.parquet", "store", "store.json"]
    assert {path.suffix for path in (store.parent / "store").iterdir()} == {".npy"}
    CropStore(store).verify()


@pytest.mark.parametrize("format", ["raw", "jpeg"])
def test_a_full_disk_is_said_so_and_leaves_nothing(index, tmp_path, monkeypatch, format):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shards.os, "posix_fallocate", full)
    monkeypatch.setattr(shards.StoreWriter, "add", full)
    with pytest.raises(UserError, match="the disk is full"):
        run(index, tmp_path / "out", format)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_killed_run_leaves_no_store_and_the_next_one_none_of_its_files(index, tmp_path):
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from drgrade.images import stage\n"
        "from drgrade.params import Crop\n"
        "crop, done = stage.crop_photograph, []\n"
        "def slow(*given):\n"
        "    done.append(print('cropping', flush=True))\n"
        "    time.sleep(60 if len(done) > 12 else 0)\n"
        "    return crop(*given)\n"
        "stage.crop_photograph = slow\n"
        "folder = Path(sys.argv[2])\n"
        f"stage.crop_dataset('demo', Path(sys.argv[1]), Crop(size={SIZE}, format='png'),\n"
        "    folder / 'store.json', folder / 'crops.parquet', 1)\n"
    )
    out = tmp_path / "out"
    command = [sys.executable, "-c", code, str(index), str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for _ in range(13):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    assert [path.name for path in out.iterdir()] == [".store.partial"]
    with pytest.raises(UserError, match="no such file"):
        CropStore(out / "store.json")
    store, _ = run(index, out, "png")
    assert not (out / ".store.partial").exists()
    assert json.loads(store.read_text())["count"] == 20
    CropStore(store).verify()
