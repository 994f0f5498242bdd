import io
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drgrade.data.archives import unpack
from drgrade.errors import UserError


def make_zip(path: Path, names: list[str]) -> None:
    with zipfile.ZipFile(path, "w") as packed:
        for name in names:
            packed.writestr(name, "content")


def make_tar(path: Path, names: list[str]) -> None:
    with tarfile.open(path, "w:gz") as packed:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 7
            packed.addfile(member, io.BytesIO(b"content"))


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_unpack(tmp_path: Path, make) -> None:
    make(tmp_path / "a", ["x/1.txt", "2.txt"])
    unpack(tmp_path / "a", tmp_path / "out")
    assert (tmp_path / "out/x/1.txt").read_text() == "content"
    with pytest.raises(UserError, match="not empty"):
        unpack(tmp_path / "a", tmp_path / "out")


@pytest.mark.parametrize("make", [make_zip, make_tar])
@pytest.mark.parametrize("name", ["../evil.txt", "x/../../evil.txt", "/tmp/../../evil.txt"])
def test_no_member_leaves_the_folder(tmp_path: Path, make, name: str) -> None:
    make(tmp_path / "a", ["fine.txt", name])
    with pytest.raises(UserError, match="do not trust"):
        unpack(tmp_path / "a", tmp_path / "deep" / "out")
    assert not list(tmp_path.rglob("evil.txt"))
    assert not (tmp_path / "deep" / "out").exists()


def test_a_damaged_archive(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(UserError, match="fetch it again"):
        unpack(tmp_path / "a.zip", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("make", [make_zip, make_tar])
@pytest.mark.parametrize("name", ["{tmp}/evil.txt", "..\\evil.txt", "\\evil.txt"])
def test_no_absolute_or_backslashed_member(tmp_path: Path, make, name: str) -> None:
    make(tmp_path / "a", ["fine.txt", name.format(tmp=tmp_path)])
    with pytest.raises(UserError, match="do not trust"):
        unpack(tmp_path / "a", tmp_path / "out")
    assert not list(tmp_path.rglob("*evil.txt"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
@pytest.mark.parametrize("target", ["../secret.txt", "/etc/passwd"])
def test_a_link_out_of_a_tar_is_refused(tmp_path: Path, kind: bytes, target: str) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    with tarfile.open(tmp_path / "a.tar", "w") as packed:
        link = tarfile.TarInfo("link.txt")
        link.type, link.linkname = kind, target
        packed.addfile(link)
    with pytest.raises(UserError):
        unpack(tmp_path / "a.tar", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        link = zipfile.ZipInfo("link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        packed.writestr(link, "/etc")
    with pytest.raises(UserError, match=r"'link' .* is a link; do not trust"):
        unpack(tmp_path / "a.zip", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_encrypted_or_corrupt_member_is_one_line(tmp_path: Path) -> None:
    make_zip(tmp_path / "a.zip", ["x.txt"])
    content = (tmp_path / "a.zip").read_bytes()
    (tmp_path / "a.zip").write_bytes(content.replace(b"content", b"c0ntent"))
    with pytest.raises(UserError, match=r"Bad CRC-32.*; fetch it again$"):
        unpack(tmp_path / "a.zip", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@given(cuts=st.lists(st.integers(0, 10_000), max_size=6), make=st.sampled_from([make_zip, make_tar]))
def test_an_archive_may_be_cut_anywhere(tmp_path_factory: pytest.TempPathFactory, cuts, make) -> None:
    folder = tmp_path_factory.mktemp("cut")
    make(folder / "a", [f"{n}.txt" for n in range(40)])
    content = (folder / "a").read_bytes()
    edges = sorted(min(cut, len(content)) for cut in cuts)
    parts = []
    for n, (start, end) in enumerate(zip([0, *edges], [*edges, len(content)], strict=True)):
        parts.append(folder / f"a.{n}")
        parts[-1].write_bytes(content[start:end])
    unpack(parts, folder / "out")
    assert sorted(path.read_text() for path in (folder / "out").iterdir()) == ["content"] * 40
