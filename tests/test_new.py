"""``drgrade new folder``: what it says of a folder, and the params file it writes."""

import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from drgrade.cli import main
from drgrade.data.labels import photographs
from drgrade.errors import UserError
from drgrade.new import new_folder
from drgrade.params import load

TEMPLATE = Path(__file__).parents[1] / "params.yaml"


def eye(width: int, height: int, seed: int) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    inside = ((x - width / 2) ** 2 + (y - height / 2) ** 2 < (0.47 * height) ** 2)[..., None]
    noise = np.random.default_rng(seed).integers(0, 30, (height, width, 3))
    return Image.fromarray((inside * (np.array([190, 90, 40]) + noise)).astype(np.uint8))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three patients' eyes, a cut file, a page of text, and a label without a photograph."""
    images = tmp_path / "mine/images"
    images.mkdir(parents=True)
    for number in range(3):
        for side in ("OD", "OS"):
            eye(260 + 40 * number, 200 + 40 * number, number).save(images / f"P{number}-{side}.jpg")
    (images / "P3-OD.jpg").write_bytes((images / "P0-OD.jpg").read_bytes()[:800])
    Image.fromarray(np.full((200, 260, 3), 250, np.uint8)).save(images / "P4-OD.png")
    rows = [f"P{number}-{side},{number}" for number in range(3) for side in ("OD", "OS")]
    lines = ["image,grade", *rows, "P3-OD,0", "P9-OD,4"]
    (tmp_path / "mine/labels.csv").write_text("\n".join(lines))
    return tmp_path / "mine"


def test_it_says_what_is_there_and_writes_a_file_that_loads(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "params/mine.yaml"
    said = new_folder(root, out, TEMPLATE, 1).splitlines()
    assert said[:9] == [
        "photographs  8: 7 jpg, 1 png",
        "unreadable   1: P3-OD (truncated JPEG)",
        "graded       7: 3 none, 2 mild, 2 moderate, 0 severe, 0 proliferative",
        "no photo     1: P9-OD",
        "no grade     1: P4-OD",
        "patients     5; eyes: 5 right, 3 left",
        "pixels       260x200 to 340x280",
        said[7],
        "no retina    1: P4-OD",
    ]
    assert said[7].startswith("quality      median 0.")
    params = load(out)
    assert (params.roles.pretrain, params.roles.grade) == ("folder", "folder")
    assert params.grade == load(TEMPLATE).grade
    assert said[-1].startswith(f"  DRGRADE_FOLDER_ROOT={root} uv run snakemake ")
    assert str(out) in said[-1]
    with pytest.raises(UserError, match="exists already"):
        new_folder(root, out, TEMPLATE, 1)


def test_a_name_that_tables_cannot_hold_is_listed_with_the_remedy(root: Path, tmp_path: Path) -> None:
    (root / "images/P0-OD.jpg").rename(root / "images/P0\n-OD.jpg")
    said = new_folder(root, tmp_path / "mine.yaml", TEMPLATE, 1)
    assert r"P0\n-OD (its name is not UTF-8, or has a line break" in said


def test_commands_can_be_pasted_whatever_the_folder_is_called(root: Path, tmp_path: Path) -> None:
    odd = root.rename(tmp_path / "my eyes; 2\n")
    out = tmp_path / "my params.yaml"
    _, *commands = new_folder(odd, out, TEMPLATE, 1).split("  DRGRADE_FOLDER_ROOT=")
    assert len(commands) == 2
    for command in commands:
        words = shlex.split(command)
        assert (words[0], words[-1]) == (str(odd), str(out))


def test_photographs_without_labels_are_for_pretraining(
    root: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    (root / "labels.csv").unlink()
    out = tmp_path / "mine.yaml"
    assert "graded       0: no grades in labels.csv" in new_folder(root, out, TEMPLATE, 1)
    assert (load(out).roles.pretrain, load(out).roles.grade) == ("folder", "demo")
    monkeypatch.chdir(TEMPLATE.parent)
    monkeypatch.setenv("DRGRADE_FOLDER_ROOT", str(root))
    assert main(["check", str(out)]) == 0
    assert capsys.readouterr().out.endswith(": ok\n")


def test_mistakes_are_one_line(root: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "x.yaml"
    loose = tmp_path / "loose"
    loose.mkdir()
    Path(photographs(root / "images")["p0-od"]).rename(loose / "a.jpg")
    (root / "labels.csv").write_text("image,grade\n" + "".join(f"{n},0\n" for n in range(9)))
    reasons = {
        tmp_path / "gone": "no such folder",
        loose: "photographs lie directly in it; move",
        tmp_path: "holds no photographs; put them there",
        root: "0 of 9 labels match",
    }
    for path, reason in reasons.items():
        assert main(shlex.split(f"new folder {path} --out {out} --template {TEMPLATE}")) == 2
        assert reason in capsys.readouterr().err
        assert not out.exists()
