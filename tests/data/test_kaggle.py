"""Competitions of Kaggle, through a kagglehub that never leaves the machine."""

import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from drgrade.data.aptos import APTOS
from drgrade.data.eyepacs import EyePACS
from drgrade.data.kaggle import bring
from drgrade.errors import UserError
from drgrade.params import Download

Hub = Callable[[str], str]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[Hub], list[str]]:
    """Puts a function in the place of kagglehub's download; returns the list of handles it was asked for."""

    def use(answer: Hub) -> list[str]:
        asked: list[str] = []

        def competition_download(handle: str) -> str:
            asked.append(handle)
            return answer(handle)

        monkeypatch.setitem(
            sys.modules, "kagglehub", SimpleNamespace(competition_download=competition_download)
        )
        return asked

    return use


def pack(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def cut(archive: Path, pieces: int) -> None:
    """The archive in parts .001, .002, ..., as Kaggle has it."""
    content = archive.read_bytes()
    size = -(-len(content) // pieces)
    for n in range(pieces):
        archive.with_name(f"{archive.name}.{n + 1:03d}").write_bytes(content[n * size : (n + 1) * size])
    archive.unlink()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """What kagglehub leaves of the EyePACS competition."""
    folder = tmp_path / "cache"
    noise = {f"train/{n}_left.jpeg": bytes((n * k * k + k) % 251 for k in range(3000)) for n in range(20)}
    cut(pack(folder / "train.zip", noise), 5)
    cut(pack(folder / "test.zip", {"test/1_left.jpeg": b"tested"}), 2)
    pack(folder / "trainLabels.csv.zip", {"trainLabels.csv": b"image,level\n1_left,0\n"})
    pack(folder / "sample.zip", {"sample/10_left.jpeg": b"unwanted"})
    return folder


def test_eyepacs_is_joined_and_unpacked(cache: Path, tmp_path: Path, hub: Callable) -> None:
    asked = hub(lambda handle: str(cache))
    root = tmp_path / "raw"
    EyePACS().download(root, Download())
    assert asked == ["diabetic-retinopathy-detection"]
    assert sorted(path.name for path in root.iterdir()) == ["train", "trainLabels.csv"]
    assert len(list((root / "train").iterdir())) == 20
    expected = bytes((7 * k * k + k) % 251 for k in range(3000))
    assert (root / "train/7_left.jpeg").read_bytes() == expected
    assert (root / "trainLabels.csv").read_text().startswith("image,level")
    assert len(EyePACS().read(root)) == 20
    EyePACS().download(root, Download())
    assert len(asked) == 1  # what is there is not fetched again


def test_the_test_part_comes_where_its_grades_are(cache: Path, tmp_path: Path, hub: Callable) -> None:
    hub(lambda handle: str(cache))
    root = tmp_path / "raw"
    root.mkdir()
    (root / "retinopathy_solution.csv").write_text("image,level,Usage\n1_left,3,Private\n")
    EyePACS().download(root, Download())
    assert (root / "test/1_left.jpeg").read_bytes() == b"tested"


def test_archives_that_the_user_brought_need_no_kaggle(cache: Path, tmp_path: Path, hub: Callable) -> None:
    asked = hub(lambda handle: pytest.fail("fetched"))
    EyePACS().download(cache, Download())
    assert asked == []
    assert (cache / "train/7_left.jpeg").exists()


def test_aptos_folders_are_linked_from_the_cache(tmp_path: Path, hub: Callable) -> None:
    cache = tmp_path / "cache"
    for name in ("train.csv", "test.csv", "train_images/a.png", "test_images/b.png"):
        (cache / name).parent.mkdir(parents=True, exist_ok=True)
        (cache / name).write_bytes(name.encode())
    asked = hub(lambda handle: str(cache))
    root = tmp_path / "raw"
    APTOS().download(root, Download())
    assert asked == ["aptos2019-blindness-detection"]
    found = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    assert found == ["test_images/b.png", "train.csv", "train_images/a.png"]
    assert (root / "train_images/a.png").samefile(cache / "train_images/a.png")


class KaggleApiHTTPError(Exception):
    """As kagglehub raises it."""

    def __init__(self, status: int) -> None:
        super().__init__(f"{status} Client Error.\n\nYou don't have permission")
        self.response = SimpleNamespace(status_code=status)


class UnauthenticatedError(Exception):
    """As kagglehub raises it."""


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (UnauthenticatedError("User is not authenticated"), "no Kaggle credentials"),
        (
            KaggleApiHTTPError(403),
            "Kaggle refuses (403): the credentials are wrong or the rules are not accepted",
        ),
        (KaggleApiHTTPError(401), "Kaggle refuses (401)"),
        (KaggleApiHTTPError(404), "KaggleApiHTTPError: 404 Client Error. You don't"),
        (ConnectionError("no route to host"), "ConnectionError: no route to host"),
    ],
)
def test_what_goes_wrong_at_kaggle_is_one_line_with_the_remedy(
    tmp_path: Path, hub: Callable, error: Exception, says: str
) -> None:
    def refuse(handle: str) -> str:
        raise error

    hub(refuse)
    with pytest.raises(UserError) as raised:
        EyePACS().download(tmp_path, Download())
    message = str(raised.value)
    assert message.startswith(f"{tmp_path / 'trainLabels.csv'}: not found, and cannot be fetched ({says}")
    assert "kaggle.json" in message
    assert "accept the rules at https://" in message
    assert "\n" not in message


def test_the_names_of_these_errors_are_kagglehubs() -> None:
    exceptions = pytest.importorskip("kagglehub.exceptions")
    assert {UnauthenticatedError.__name__, KaggleApiHTTPError.__name__} <= set(dir(exceptions))


def test_a_missing_part_of_an_archive_is_named(cache: Path, tmp_path: Path, hub: Callable) -> None:
    hub(lambda handle: str(cache))
    (cache / "train.zip.003").unlink()
    with pytest.raises(UserError, match=r"train\.zip\.003: part of the archive not found"):
        EyePACS().download(tmp_path / "raw", Download())


def test_a_missing_last_part_leaves_nothing_behind(cache: Path, tmp_path: Path, hub: Callable) -> None:
    hub(lambda handle: str(cache))
    (cache / "train.zip.005").unlink()
    with pytest.raises(UserError, match=r"train\.zip\.001: .*fetch it again, with all its parts"):
        EyePACS().download(tmp_path / "raw", Download())
    assert [path.name for path in (tmp_path / "raw").iterdir()] == ["trainLabels.csv"]


def test_a_member_that_leaves_the_folder_is_refused(cache: Path, tmp_path: Path, hub: Callable) -> None:
    hub(lambda handle: str(cache))
    for path in cache.glob("train.zip.*"):
        path.unlink()
    cut(pack(cache / "train.zip", {"train/1_left.jpeg": b"x", "../evil.jpeg": b"x"}), 2)
    with pytest.raises(UserError, match=r"evil\.jpeg.*do not trust"):
        EyePACS().download(tmp_path / "raw", Download())
    assert not list(tmp_path.rglob("evil.jpeg"))


def test_what_kaggle_does_not_hold(tmp_path: Path, hub: Callable) -> None:
    (tmp_path / "cache").mkdir()
    hub(lambda handle: str(tmp_path / "cache"))
    with pytest.raises(UserError, match=r"train\.csv: not found, and Kaggle's aptos2019.*does not hold it"):
        bring(APTOS.card, tmp_path / "raw", ("train.csv",))
