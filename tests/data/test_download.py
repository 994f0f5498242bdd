import hashlib

from drgrade.data.download import download
from drgrade.data.listing import read_manifest
from drgrade.data.registry import DATASETS, Card
from drgrade.params import Download


class Open:
    """A dataset that anyone may fetch: one photograph and a label file."""

    card = Card("open", "Open", "1", "CC0", "here", "open", "", "")

    def download(self, root, params):
        root.mkdir(exist_ok=True)
        (root / "1_left.jpeg").write_bytes(b"a photograph")
        (root / "labels.csv").write_text("image,level\n1_left,0\n")


def test_what_a_dataset_brings_is_listed_with_its_hash(tmp_path, monkeypatch):
    monkeypatch.setitem(DATASETS._parts, "open", Open)
    monkeypatch.setenv("DRGRADE_OPEN_ROOT", str(tmp_path / "raw"))
    download("open", Download(), tmp_path / "manifest.tsv")
    listed = read_manifest(tmp_path / "manifest.tsv")
    assert set(listed) == {"labels.csv", "1_left.jpeg"}
    assert listed["1_left.jpeg"][1] == hashlib.sha256(b"a photograph").hexdigest()
