"""The listing of a raw folder changes with what is in it, and with nothing else."""

import os

import pytest

from drgrade.data import download as downloads
from drgrade.data import listing as listings
from drgrade.data.download import write_manifest
from drgrade.data.listing import CHANGED, HEADER, UNREADABLE, refresh
from drgrade.files import sha256


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder of photographs whose manifest was just written."""
    root = tmp_path / "raw"
    (root / "images").mkdir(parents=True)
    for name in "abc":
        (root / "images" / f"{name}.jpg").write_bytes(name.encode() * 9)
    (root / "labels.csv").write_text("image,grade\na,0\nb,1\nc,2\n")
    monkeypatch.setenv("DRGRADE_OWN_ROOT", str(root))
    write_manifest(root, tmp_path / "manifest.tsv", tmp_path / "own.tsv")
    return tmp_path


def listed(place) -> str:
    refresh("own", place / "manifest.tsv", place / "own.tsv")
    return (place / "own.tsv").read_text()


def changed(place) -> set[str]:
    return {line.split("\t")[0] for line in listed(place).splitlines() if line.endswith(CHANGED)}


def later(path) -> None:
    """Give a file another time, whatever the clock's steps."""
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1_000_000_000))


def test_what_is_as_it_was_reads_as_the_manifest(place, monkeypatch):
    before = (place / "own.tsv").stat()
    monkeypatch.setattr(listings, "sha256", None)  # nothing is read
    assert listed(place) == (place / "manifest.tsv").read_text()
    assert (place / "own.tsv").stat().st_mtime_ns == before.st_mtime_ns


def test_a_touched_file_is_read_once_and_is_the_same(place, monkeypatch):
    later(place / "raw/images/a.jpg")
    assert listed(place) == (place / "manifest.tsv").read_text()
    monkeypatch.setattr(listings, "sha256", None)
    assert listed(place) == (place / "manifest.tsv").read_text()


@pytest.mark.parametrize("known", [True, False], ids=["state", "manifest alone"])
def test_files_that_come_go_and_change_are_seen(place, known):
    before = listed(place)
    if not known:
        (place / "own.state").unlink()
    new = place / "raw/images/new.JPG"
    new.write_bytes(b"new")
    (place / "raw/images/b.jpg").write_bytes(b"longer than before")
    gone = place / "raw/images/c.jpg"
    content, times = gone.read_bytes(), gone.stat()
    gone.unlink()
    assert changed(place) == {"images/b.jpg", "images/new.JPG"}
    assert "images/c.jpg" not in listed(place)
    new.unlink()
    (place / "raw/images/b.jpg").write_bytes(b"b" * 9)
    gone.write_bytes(content)
    os.utime(gone, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert listed(place) == before


def test_a_corrected_grade_of_the_same_length_is_seen(place):
    labels = place / "raw/labels.csv"
    labels.write_text(labels.read_text().replace("a,0", "a,4"))
    later(labels)
    assert changed(place) == {"labels.csv"}
    write_manifest(place / "raw", place / "manifest.tsv", place / "own.tsv")
    assert changed(place) == set()
    assert listed(place) == (place / "manifest.tsv").read_text()


def test_other_and_hidden_files_do_not_count(place):
    before = listed(place)
    for name in ("notes.md", ".hidden.jpg", "images/half.jpg.partial"):
        (place / "raw" / name).write_text("x")
    (place / "raw/.cache").mkdir()
    (place / "raw/.cache/d.jpg").write_text("x")
    assert listed(place) == before


def test_nothing_is_known_before_the_manifest_and_it_is_believed_without_files(place, monkeypatch):
    manifest = (place / "manifest.tsv").read_text()
    monkeypatch.setenv("DRGRADE_OWN_ROOT", str(place / "none"))  # a clone that has results alone
    assert listed(place) == manifest
    (place / "manifest.tsv").unlink()
    assert listed(place) == HEADER + "\n"


def test_names_of_another_encoding_and_links_to_nothing(place):
    (place / "raw/images/gone.jpg").symlink_to(place / "nowhere.jpg")
    (place / "raw/images" / os.fsdecode(b"\xe9.jpg")).write_bytes(b"x")
    refresh("own", place / "manifest.tsv", place / "own.tsv")
    assert (place / "own.tsv").read_bytes().count(CHANGED.encode()) == 2


def test_a_file_that_can_be_read_again_is_seen(place, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(downloads, "digest", lambda path: UNREADABLE if path.name == "a.jpg" else sha256(path))
        write_manifest(place / "raw", place / "manifest.tsv", place / "own.tsv")
    assert (place / "manifest.tsv").read_text().count(UNREADABLE) == 1
    assert changed(place) == {"images/a.jpg"}


def test_a_link_to_nothing_is_as_it_was(place):
    (place / "raw/images/d.jpg").symlink_to(place / "nowhere")
    write_manifest(place / "raw", place / "manifest.tsv", place / "own.tsv")
    assert listed(place) == (place / "manifest.tsv").read_text()
    assert UNREADABLE in listed(place)
