"""Faults of the machine: whatever library meets them, they end as one line that names the file."""

import errno
import os
import resource
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tests.disks import disk, fill, make_read_only

from drgrade import verbs
from drgrade.cli import main
from drgrade.data.listing import digest
from drgrade.errors import UserError
from drgrade.faults import allocate, as_user_errors, described, naming
from drgrade.files import atomic_write, write_file
from drgrade.images.read import PhotographFile
from drgrade.lesions.masks import read_mask

NOISE = np.random.default_rng(0).integers(0, 256, (400, 400, 3)).astype(np.uint8)
TENSORS = {"weight": torch.from_numpy(NOISE.copy())}
WRITERS = {
    "text.txt": lambda path: path.write_text("a" * 400_000),
    "table.csv": lambda path: pd.DataFrame(NOISE[0]).loc[lambda t: t.index.repeat(100)].to_csv(path),
    "table.parquet": lambda path: pd.DataFrame(NOISE.reshape(-1, 3)).to_parquet(path),
    "array.npy": lambda path: np.save(path, NOISE),
    "array.npz": lambda path: np.savez_compressed(path, NOISE),
    "image.png": lambda path: Image.fromarray(NOISE).save(path),
    "image.jpg": lambda path: Image.fromarray(NOISE).save(path, quality=100),
    "weights.pt": lambda path: torch.save(TENSORS, path),
    "weights.safetensors": lambda path: save_file(TENSORS, path),
}


@pytest.fixture
def small(tmp_path):
    with disk(tmp_path / "small", "1m") as folder:
        yield folder


@contextmanager
def no_more_files():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_named_by_every_writer_and_leaves_nothing(name, small, tmp_path):
    def write(path: Path) -> bytes:
        with atomic_write(path) as partial:
            WRITERS[name](partial)
        return path.read_bytes()

    ballast = fill(small, left=100_000)
    with pytest.raises(OSError, match=f"'{small / name}'$") as caught:
        write(small / name)
    assert caught.value.errno == errno.ENOSPC
    assert list(small.iterdir()) == [ballast]
    ballast.unlink()
    assert write(small / name) == write(tmp_path / name)


def test_an_error_on_a_disk_with_room_stays_what_it_is(small):
    for error in (RuntimeError("our own"), ValueError(), OSError("no number"), UserError("bad"),
                  FileNotFoundError(errno.ENOENT, "gone", str(small / "input"))):  # fmt: skip
        with pytest.raises(type(error)) as caught, naming(small / "out"):
            raise error
        assert caught.value is error
    assert error.filename == str(small / "input")


def test_a_copy_names_what_could_not_be_written(tmp_path):
    with pytest.raises(OSError, match=f"'{tmp_path / 'out'}'$"), naming(tmp_path / "out"):
        raise OSError(errno.ENOSPC, "full", "source", None, "target")


def test_another_disk_keeps_its_name(tmp_path):
    with pytest.raises(OSError, match="'/elsewhere/file'"), naming(tmp_path / "out"):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), "/elsewhere/file")


def test_space_is_allocated_before_it_is_mapped(small):
    with (small / "file").open("w+b") as file:
        with pytest.raises(OSError, match="No space left"):
            allocate(file, 2**21)
        allocate(file, 2**19)
        assert os.fstat(file.fileno()).st_blocks * 512 == 2**19


@pytest.mark.parametrize("write", [write_file, lambda path, content: np.save(path, content)])
def test_a_read_only_disk_is_one_line(write, small):
    (small / "kept").write_text("as before")
    make_read_only(small)
    with pytest.raises(UserError) as caught, as_user_errors():
        write(small / "kept", b"new")
    line = f"{small / 'kept'}: the disk is read-only; mount it for writing, or choose another folder"
    assert str(caught.value).replace(".npy", "") == line
    assert [path.name for path in small.iterdir()] == ["kept"]


def test_a_full_disk_is_one_line_and_status_2(small, monkeypatch, capsys):
    monkeypatch.setattr(verbs, "doctor", lambda args: write_file(small / "out", b"a" * 400_000))
    verbs.doctor.__name__, verbs.doctor.__doc__ = "doctor", "Write."
    fill(small, left=200_000)
    assert main(["doctor"]) == 2
    free = 200_000 // 4096 * 4096 / 1e6
    assert capsys.readouterr().err == (
        f"drgrade: error: {small / 'out'}: the disk is full ({free:.1f} MB free); "
        "make room and run it again\n"
    )


@pytest.mark.parametrize(
    ("number", "name", "line"),
    [
        (errno.EDQUOT, "o", "o: the disk quota is used up (* free); make room and run it again"),
        (errno.EACCES, "o", "o: permission denied; correct the permissions of it and of its folder"),
        (errno.EMFILE, "o", "o: too many open files; raise the limit (ulimit -n), or use fewer cores"),
        (errno.ENFILE, None, "too many open files; raise the limit (ulimit -n), or use fewer cores"),
        (errno.EPERM, None, None),  # not of a file: may be a mistake of ours
        (errno.ENOENT, "o", None),
    ],
)  # fmt: skip
def test_faults_have_a_line_of_their_own(number, name, line):
    found = described(OSError(number, "said otherwise", name))
    before, _, after = (line or "").partition("*")
    assert found is None if line is None else found.startswith(before) and found.endswith(after)


def test_a_full_disk_without_a_name_lists_those_it_may_be(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    line = described(OSError(errno.ENOSPC, "full"))
    assert line.startswith(f"the disk is full (free: {tmp_path} ")
    assert "/dev/shm " in line


@pytest.mark.parametrize(
    "said",
    [
        "unable to allocate shared memory(shm) for file </torch_1_2_0>: No space left on device (28)",
        "DataLoader worker (pid 1) is killed by signal: Bus error. It is possible that dataloader's workers "
        "are out of shared memory. Please try to raise your shared memory limit.",
    ],
)
def test_full_shared_memory_is_one_line(said):
    with pytest.raises(UserError, match=r"^/dev/shm: full \(.* free\), .*--shm-size=1g\)$"), as_user_errors():
        raise RuntimeError(said)
    with pytest.raises(RuntimeError, match="another"), as_user_errors():
        raise RuntimeError("another")


@pytest.mark.parametrize("read", [lambda path: PhotographFile(path).data, read_mask, digest])
def test_too_many_open_files_are_not_a_bad_photograph(read, tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "mask.png")
    with no_more_files(), pytest.raises(OSError, match="Too many open files"):
        read(tmp_path / "mask.png")
    read(tmp_path / "mask.png")
