"""Archives that are mutated, leave their folder in unusual ways, have odd names, or fill the disk.

``tests/data/test_archives.py`` has names with ``..``, absolute names, and links out of the folder.
"""

import io
import os
import random
import shutil
import tarfile
import zipfile
from functools import cache, partial
from pathlib import Path

import pytest
from tests.hostile.child import one_line, survive
from tests.hostile.mutations import Field, mutated

from drgrade.data.archives import SMALL, unpack
from drgrade.errors import UserError

TOKENS = (b"../", b"/", b"\0", b"\xff", b"PK\x01\x02", b"ustar", b"2", b"1", b"3")


def zipped(names: list[str], kind: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", kind) as packed:
        for name in names:
            packed.writestr(name, "content " * 20)
    return file.getvalue()


def tarred(members: list[tarfile.TarInfo | str], kind: str = "") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=f"w:{kind}") as packed:
        for member in members:
            found = tarfile.TarInfo(member) if isinstance(member, str) else member
            found.size = 7 if found.isreg() and not found.size else found.size
            packed.addfile(found, io.BytesIO(b"content"))
    return file.getvalue()


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


@cache
def files() -> list[bytes]:
    names = ["a.txt", "b/c.txt", "b/d/e.txt"]
    members = [*names, link("f", "a.txt"), link("g", "b/c.txt", tarfile.LNKTYPE)]
    zips = [zipped(names, kind) for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA)]
    return [*zips, *(tarred(members, kind) for kind in ("", "gz", "bz2", "xz"))]


def mutant(number: int) -> bytes:
    rng = random.Random(number)
    data = rng.choice(files())
    fields = [Field(start, rng.choice((2, 4, 8)), "little") for start in rng.sample(range(len(data)), 8)]
    return mutated(data, files(), rng, fields, TOKENS)


def look(folder: Path, data: bytes) -> str:
    place = folder / "place"
    place.mkdir()
    (place / "archive").write_bytes(data)
    try:
        unpack(place / "archive", place / "out")
        outcome = "unpacked"
    except UserError as error:
        one_line(str(error))
        assert not (place / "out").exists()
        outcome = "refused"
    assert {path.name for path in place.iterdir()} <= {"archive", "out"}
    shutil.rmtree(place)
    return outcome


def test_mutated_archives_are_unpacked_or_refused_in_one_line(tmp_path: Path) -> None:
    outcomes = survive(mutant, partial(look, tmp_path), 700, tmp_path)
    assert min(outcomes["unpacked"], outcomes["refused"]) > 35, outcomes


@pytest.mark.parametrize(
    "members",
    [
        [link("x", ".."), "x/evil.txt"],
        [link("x", "/tmp"), "x/evil.txt"],
        [link("d", "."), link("d/x", "../.."), "d/x/evil.txt"],
        [link("a", "../secret.txt", tarfile.LNKTYPE)],
        [link("s", "a"), link("h", "s/../../secret.txt", tarfile.LNKTYPE)],
        [link("device", "", tarfile.CHRTYPE)],
        [link("pipe", "", tarfile.FIFOTYPE)],
    ],
)
def test_links_that_lead_out_and_devices_are_refused(tmp_path: Path, members: list) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "a.tar").write_bytes(tarred(members))
    with pytest.raises(UserError, match=r"a\.tar: ") as error:
        unpack(tmp_path / "a.tar", tmp_path / "out")
    one_line(str(error.value))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "secret.txt"]
    assert (tmp_path / "secret.txt").read_text() == "secret"


def test_a_name_that_comes_twice_stays_in_the_folder(tmp_path: Path) -> None:
    """A link, and then a file of its name, which must not be written through it."""
    inside = link("a", "b")
    (tmp_path / "a.tar").write_bytes(tarred(["b", inside, "a", "a"]))
    unpack(tmp_path / "a.tar", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a", "b"]


ODD = [
    "-rf",
    "a'b\"$(touch x)`y`.jpg",
    "line\nbreak.jpg",
    "\N{EYE}.jpg",
    "a b;c&d|e>f.jpg",
    "x" * 250,
    " ",
    "%s{0}",
]


@pytest.mark.parametrize("make", [zipped, tarred])
def test_odd_names_are_kept(tmp_path: Path, make) -> None:
    (tmp_path / "a").write_bytes(make(ODD))
    unpack(tmp_path / "a", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(ODD)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "out"]


def test_names_that_are_not_utf_8_are_kept_and_too_long_ones_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tarred(["caf\udce9.jpg"]))
    unpack(tmp_path / "a.tar", tmp_path / "out")
    assert os.listdir(os.fsencode(tmp_path / "out")) == [b"caf\xe9.jpg"]
    (tmp_path / "b.zip").write_bytes(zipped(["x" * 300]))
    with pytest.raises(UserError, match=r"b\.zip: cannot be unpacked \(.*File name too long"):
        unpack(tmp_path / "b.zip", tmp_path / "other")


def overlapping() -> bytes:
    """A zip of 3000 names for the same megabyte of zeros."""
    whole = bytearray()
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("0000", bytes(1 << 20))
    data = file.getvalue()
    start = data.index(b"PK\x01\x02")
    end = data.index(b"PK\x05\x06")
    for number in range(3000):
        whole += data[start:end].replace(b"0000", b"%04d" % number)
    count = (3000).to_bytes(2, "little")
    tail = (
        b"PK\x05\x06" + bytes(4) + 2 * count + len(whole).to_bytes(4, "little") + start.to_bytes(4, "little")
    )
    return data[:start] + whole + tail + bytes(2)


def long_member() -> bytes:
    """The start of a tar whose member says that it has more bytes than any disk."""
    member = tarfile.TarInfo("a")
    member.size = 1 << 60
    return member.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 12)


@pytest.mark.parametrize("make", [overlapping, long_member])
def test_bombs_are_refused_before_anything_is_written(tmp_path: Path, make) -> None:
    assert len(make()) < SMALL / 100
    (tmp_path / "a").write_bytes(make())
    with pytest.raises(UserError, match="more than 100 times larger unpacked than packed; do not trust"):
        unpack(tmp_path / "a", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
