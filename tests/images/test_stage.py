"""Crop planning and what a crop run leaves on disk; the rows of crops.parquet are tested in test_crop.py."""

import errno
import itertools
import json
import math
import os
import shutil
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tests.pipeline.fork_server import PYTHON

from drgrade import schema
from drgrade.errors import UserError
from drgrade.images import crop_parts, shards, stage
from drgrade.images.crop import crop_photograph
from drgrade.images.shards import MOST_SHARDS, SHARE, shard_rows
from drgrade.images.stage import PART, crop_dataset, plan
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
    assert len(rows) <= MOST_SHARDS
    smallest = max(1, math.ceil(count / MOST_SHARDS))
    assert all(held <= smallest or held * size * size * 3 * SHARE[format] <= most for held in rows)


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
        (starts[part.shard] + part.first + offset, path)
        for part in planned.parts
        for offset, path in enumerate(part.paths)
    ]
    assert placed == [(row, f"/raw/{place}.jpg") for row, place in enumerate(wanted)]
    for part in planned.parts:
        assert 0 < len(part.paths) <= PART
        assert part.first + len(part.paths) <= planned.shards[part.shard]


def test_planning_a_hundred_thousand_photographs():
    rows = pd.DataFrame(
        {"status": "ok", "path": [f"train/{k}_left.jpeg" for k in range(100_000)]}, dtype="string"
    )
    planned = plan(rows, Path("/raw"), Crop(size=512))
    assert sum(len(part.paths) for part in planned.parts) == 100_000


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


def run(index, folder, format="raw", workers=1, shard=(0, 1), shard_bytes=7.5 * SIZE * SIZE * 3, **options):
    options = Crop(size=SIZE, format=format, **options)
    files = folder / "store.json", folder / "crops.parquet"
    crop_dataset("demo", index, options, *files, workers, shard, int(shard_bytes * SHARE[format]))
    return files


def contents(folder):
    """The bytes of every file below a folder, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.usefixtures("forked_pools")
@pytest.mark.parametrize("format", FORMATS)
def test_bytes_do_not_depend_on_the_workers(index, tmp_path, format):
    one = run(index, tmp_path / "one", format, workers=1)
    three = run(index, tmp_path / "three", format, workers=3)
    files = contents(one[0].parent)
    assert len(files) == 2 + 3 * (1 if format == "raw" else 2)
    assert contents(three[0].parent) == files
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


@pytest.fixture
def cropped(monkeypatch):
    """Names of the photographs that are cropped, in order; a part has three."""
    monkeypatch.setattr(stage, "PART", 3)
    names = []

    def watched(path, options):
        names.append(path.stem)
        return crop_photograph(path, options)

    monkeypatch.setattr(crop_parts, "crop_photograph", watched)
    return names


@pytest.mark.parametrize("format", ["raw", "jpeg"])
@pytest.mark.parametrize(("of", "order"), [(1, []), (2, [1, 0]), (3, [0, 1, 2]), (3, [2, 0]), (30, [29, 4])])
def test_jobs_in_any_order_leave_what_one_job_leaves(index, tmp_path, cropped, format, of, order):
    run(index, tmp_path / "one", format)
    cropped.clear()
    for number in order:
        run(index, tmp_path / "many", format, shard=(number, of))
        assert {name.split("/")[0] for name in contents(tmp_path / "many")} <= {".store.json.parts"}
    run(index, tmp_path / "many", format)  # joins, and does the parts of jobs that are missing here
    assert sorted(map(int, cropped)) == list(range(20))
    assert contents(tmp_path / "many") == contents(tmp_path / "one")


def test_a_job_crops_every_nth_part(index, tmp_path, cropped):
    run(index, tmp_path / "out", shard=(1, 3))
    # shards of 7, 7 and 6 rows in parts of 3: 0-2, 3-5, 6; 7-9, 10-12, 13; 14-16, 17-19
    assert [int(name) for name in cropped] == [3, 4, 5, 10, 11, 12, 17, 18, 19]


@pytest.mark.parametrize("shard", [(2, 2), (-1, 2), (0, 0)])
def test_there_is_no_such_job(index, tmp_path, shard):
    with pytest.raises(UserError, match="shards count from 0"):
        run(index, tmp_path / "out", shard=shard)


@pytest.mark.parametrize("change", ["params", "index", "code", "root"])
def test_parts_of_other_work_are_not_used(index, tmp_path, cropped, monkeypatch, change):
    run(index, tmp_path / "out", shard=(0, 2))
    (old,) = (tmp_path / "out/.store.json.parts").iterdir()
    first = cropped.copy()
    cropped.clear()
    if change == "index":
        table = schema.read_table(index, schema.INDEX)
        schema.write_table(table.assign(sha256="other"), index, schema.INDEX)
    elif change == "code":
        monkeypatch.setattr(stage, "software", lambda _: "drgrade 1234")
    elif change == "root":
        monkeypatch.setenv("DRGRADE_DEMO_ROOT", str(shutil.copytree(tmp_path / "raw", tmp_path / "moved")))
    run(index, tmp_path / "out", shard=(0, 2), aspect="squash" if change == "params" else "pad")
    (new,) = (tmp_path / "out/.store.json.parts").iterdir()
    assert new != old
    assert cropped == first


def test_failures_are_judged_over_all_jobs_and_tried_again(index, tmp_path, cropped):
    """One of 20 photographs is broken: half of what its job crops, too few for the share that is allowed."""
    allowed = {"max_failed_fraction": 0.05}
    for number in range(10):
        run(index, tmp_path / "out", shard=(number, 10), **allowed)
    strict = {"max_failed_fraction": 0.04}
    with pytest.raises(UserError, match=r"1 of 20 photographs failed.*\(0\.04\).*i3: empty file"):
        run(index, tmp_path / "out", **strict)
    assert not (tmp_path / "out/store.json").exists()
    cropped.clear()
    shutil.copy(tmp_path / "raw/4.png", tmp_path / "raw/3.png")
    crops = Crops(*run(index, tmp_path / "out", **strict))
    assert cropped == ["3", "4", "5"]
    np.testing.assert_array_equal(crops["i3"], crops["i4"])


@pytest.mark.parametrize("format", ["raw", "jpeg"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))])
def test_joining_that_is_interrupted_continues(index, tmp_path, cropped, monkeypatch, error, format):
    run(index, tmp_path / "one", format)
    write = crop_parts.write_shard

    def until_the_second(folder, number, *rest):
        if number == 1:
            raise error
        write(folder, number, *rest)

    monkeypatch.setattr(crop_parts, "write_shard", until_the_second)
    with pytest.raises(type(error)):
        run(index, tmp_path / "out", format)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {".store.json.parts"}
    (parts,) = (tmp_path / "out/.store.json.parts").iterdir()
    assert sorted(path.stem for path in parts.glob("*.parquet")) == [
        "00000", "00001-000000", "00001-000003", "00001-000006", "00002-000000", "00002-000003"
    ], "of the shard that is written, the parts are gone"  # fmt: skip
    monkeypatch.setattr(crop_parts, "write_shard", write)
    cropped.clear()
    run(index, tmp_path / "out", format)
    assert cropped == []
    assert contents(tmp_path / "out") == contents(tmp_path / "one")


def test_crops_that_will_not_fit_are_not_begun(index, tmp_path, cropped, monkeypatch):
    raw = 20 * SIZE * SIZE * 3
    for free in (raw - 1, raw):
        monkeypatch.setattr(stage.shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        if free < raw:
            with pytest.raises(UserError, match=r"out: the crops need 0\.0 GB.*set crop\.format to jpeg"):
                run(index, tmp_path / "out")
            assert cropped == []
            run(index, tmp_path / "out", "jpeg")
        else:
            run(index, tmp_path / "out")


def test_a_killed_run_continues(index, tmp_path, cropped):
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from drgrade.images import crop_parts, stage\n"
        "from drgrade.params import Crop\n"
        "crop, done = crop_parts.crop_photograph, []\n"
        "def slow(*given):\n"
        "    done.append(print('cropping', flush=True))\n"
        "    time.sleep(60 if len(done) > 13 else 0)\n"
        "    return crop(*given)\n"
        "crop_parts.crop_photograph, stage.PART = slow, 3\n"
        "folder = Path(sys.argv[2])\n"
        f"stage.crop_dataset('demo', Path(sys.argv[1]), Crop(size={SIZE}, format='png'),\n"
        "    folder / 'store.json', folder / 'crops.parquet', 1)\n"
    )
    out = tmp_path / "out"
    with subprocess.Popen(
        [*PYTHON, "-c", code, str(index), str(out)], stdout=subprocess.PIPE, text=True
    ) as process:
        for _ in range(14):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    assert [path.name for path in out.iterdir()] == [".store.json.parts"]
    with pytest.raises(UserError, match="no such file"):
        CropStore(out / "store.json")
    run(index, out, "png", shard_bytes=shards.SHARD_BYTES)
    assert [int(name) for name in cropped] == [*range(12, 20)]
    run(index, tmp_path / "one", "png", shard_bytes=shards.SHARD_BYTES)
    assert contents(out) == contents(tmp_path / "one")
