import functools
import hashlib
import threading
import zipfile
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from drgrade.data.download import download
from drgrade.data.listing import read_manifest
from drgrade.data.registry import DATASETS, Card, RemoteFile
from drgrade.errors import UserError
from drgrade.params import Download


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A server of an archive of one photograph and of a label file, and their hashes."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")  # a proxy would look for the server on its own machine
    folder = tmp_path / "site"
    folder.mkdir()
    with zipfile.ZipFile(folder / "train.zip", "w") as archive:
        archive.writestr("1_left.jpeg", b"a photograph")
    (folder / "labels.csv").write_text("image,level\n1_left,0\n")
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    yield f"http://127.0.0.1:{server.server_port}", hashes
    server.shutdown()


def open_dataset(files):
    """A dataset that anyone may fetch."""

    class Open:
        card = Card("open", "Open", "1", "CC0", "here", "open", "", "", files=files)

        def download(self, root, params):
            assert (root / "train/1_left.jpeg").exists()

    return Open


def test_an_open_dataset_is_fetched_verified_unpacked_and_listed(site, tmp_path, monkeypatch):
    url, hashes = site
    files = tuple(RemoteFile(f"{url}/{name}", name, digest) for name, digest in hashes.items())
    monkeypatch.setitem(DATASETS._parts, "open", open_dataset(files))
    monkeypatch.setenv("DRGRADE_OPEN_ROOT", str(tmp_path / "raw"))
    for _ in range(2):
        download("open", Download(), tmp_path / "manifest.tsv")
    listed = read_manifest(tmp_path / "manifest.tsv")
    assert set(listed) == {"labels.csv", "train/1_left.jpeg"}
    assert listed["labels.csv"][1] == hashes["labels.csv"]


def test_a_wrong_hash_stops_before_anything_is_unpacked(site, tmp_path, monkeypatch):
    url, _ = site
    monkeypatch.setitem(
        DATASETS._parts, "open", open_dataset((RemoteFile(f"{url}/train.zip", "train.zip", "0" * 64),))
    )
    monkeypatch.setenv("DRGRADE_OPEN_ROOT", str(tmp_path / "raw"))
    with pytest.raises(UserError, match=r"train\.zip: SHA-256 is .*, not 000"):
        download("open", Download(), tmp_path / "manifest.tsv")
    assert not (tmp_path / "raw/train").exists()
    assert not (tmp_path / "manifest.tsv").exists()
