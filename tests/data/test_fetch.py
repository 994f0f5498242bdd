import hashlib
import io
import stat
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drgrade.data.fetch import fetch, unpack
from drgrade.errors import UserError

CONTENT = bytes(range(256)) * 4000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Cuts the first ``cuts`` answers short; ``resumes`` says whether it knows ranges.

    ``lie`` is added to the length it announces, ``skew`` to the place where it resumes, and ``refuses`` makes
    it answer 416 to any range.
    """

    cuts = 0
    resumes = True
    refuses = False
    status = 200
    lie = 0
    skew = 0

    def __init__(self) -> None:
        self.asked: list[str | None] = []
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/file.bin"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.asked.append(wanted)
        if self.server.status != 200:
            self.send_error(self.server.status)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.server.resumes else 0
        if wanted and self.server.refuses:
            self.send_error(416)
            return
        start += self.server.skew if start else 0
        if start >= len(CONTENT):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(CONTENT)}")
            self.end_headers()
            return
        body = CONTENT[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) + self.server.lie))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.end_headers()
        if self.server.cuts > 0:
            self.server.cuts -= 1
            body = body[: len(body) // 2]
        self.wfile.write(body)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")  # a proxy would look for the server on its own machine
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def test_cut_connections_are_resumed(server: Server, tmp_path: Path) -> None:
    server.cuts = 3
    fetch(server.url, tmp_path / "in" / "file.bin", DIGEST, pause=0)
    assert (tmp_path / "in" / "file.bin").read_bytes() == CONTENT
    half = len(CONTENT) // 2
    assert server.asked[:2] == [None, f"bytes={half}-"]
    assert len(server.asked) == 4
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["file.bin"]


def test_a_partial_file_of_an_earlier_run_is_continued(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.bin.partial").write_bytes(CONTENT[:1000])
    fetch(server.url, tmp_path / "file.bin", DIGEST, pause=0)
    assert server.asked == ["bytes=1000-"]
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_a_whole_partial_file_needs_no_bytes(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.bin.partial").write_bytes(CONTENT)
    fetch(server.url, tmp_path / "file.bin", DIGEST, pause=0)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert len(server.asked) == 1


def test_a_partial_file_longer_than_the_source_is_dropped(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.bin.partial").write_bytes(CONTENT + b"more")
    fetch(server.url, tmp_path / "file.bin", DIGEST, pause=0)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_a_server_without_ranges_starts_over(server: Server, tmp_path: Path) -> None:
    server.resumes, server.cuts = False, 2
    fetch(server.url, tmp_path / "file.bin", DIGEST, pause=0)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_a_server_that_refuses_ranges_starts_over(server: Server, tmp_path: Path) -> None:
    server.refuses, server.cuts = True, 1
    fetch(server.url, tmp_path / "file.bin", DIGEST, pause=0)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert server.asked == [None, f"bytes={len(CONTENT) // 2}-", None]


def test_a_server_that_resumes_elsewhere_is_not_believed(server: Server, tmp_path: Path) -> None:
    server.cuts, server.skew = 1, 7
    fetch(server.url, tmp_path / "file.bin", None, pause=0)  # no hash would tell
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_a_length_that_is_too_long_is_found_out(server: Server, tmp_path: Path) -> None:
    server.lie = 1000
    fetch(server.url, tmp_path / "file.bin", DIGEST, pause=0)  # asked for the rest, the server has none
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert server.asked == [None, f"bytes={len(CONTENT)}-"]


def test_a_length_that_stays_too_long_is_given_up(server: Server, tmp_path: Path) -> None:
    server.lie, server.resumes = 1000, False
    with pytest.raises(UserError, match=f"closed after {len(CONTENT)} of {len(CONTENT) + 1000} bytes"):
        fetch(server.url, tmp_path / "file.bin", DIGEST, attempts=3, pause=0)
    assert not (tmp_path / "file.bin").exists()


def test_a_length_that_is_too_short_does_not_pass_the_hash(server: Server, tmp_path: Path) -> None:
    server.lie = -1000
    short = hashlib.sha256(CONTENT[:-1000]).hexdigest()
    with pytest.raises(UserError, match=f"SHA-256 is {short}, not {DIGEST}"):
        fetch(server.url, tmp_path / "file.bin", DIGEST, pause=0)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_hash_leaves_nothing_behind(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"SHA-256 is {DIGEST}, not 00"):
        fetch(server.url, tmp_path / "file.bin", "00", pause=0)
    assert list(tmp_path.iterdir()) == []


def test_a_verified_file_is_not_fetched_again_but_a_damaged_one_is(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.bin").write_bytes(CONTENT)
    fetch(server.url, tmp_path / "file.bin", DIGEST)
    assert server.asked == []
    (tmp_path / "file.bin").write_bytes(b"damaged")
    fetch(server.url, tmp_path / "file.bin", DIGEST)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_a_final_refusal_is_not_retried(server: Server, tmp_path: Path) -> None:
    server.status = 404
    with pytest.raises(UserError, match="404"):
        fetch(server.url, tmp_path / "file.bin", DIGEST, pause=0)
    assert len(server.asked) == 1


def test_a_failing_server_is_given_up(server: Server, tmp_path: Path) -> None:
    server.status = 503
    with pytest.raises(UserError, match="503"):
        fetch(server.url, tmp_path / "file.bin", DIGEST, attempts=3, pause=0)
    assert len(server.asked) == 3


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


@settings(max_examples=25, deadline=None)
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
