"""Photographs whose names mean something to a shell, an option parser, a table or a file system.

``tests/data/test_index.py`` has names that are escaped in the index, and links of all kinds.
"""

import json
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from tests.hostile.photographs import eye

from drgrade.cli import main
from drgrade.grading.finetune import Finetune, Params
from drgrade.params import Crop

NAMES = [
    "-rf.jpg", "--help.jpg", "a'b\"$(touch ran)`touch ran`.jpg", "a;touch ran;&b.jpg", "*?[x].jpg",
    "{a}{b:q}%s.jpg", "=1+1.jpg", "~.jpg", "a b .jpg", "\N{EYE}\u200d\N{EYE}.jpg", "\u202egpj.jpg", "CON.jpg",
    "x" * 251 + ".jpg", "\N{EYE}" * 62 + ".jpg", "nan.jpg", "1e5.jpg", "0012.jpg",
]  # fmt: skip
BROKEN = "line\nbreak.jpg"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder dataset in a folder whose name is odd, too; also the working directory."""
    folder = tmp_path / "raw '\"$(touch ran) -x"
    (folder / "images").mkdir(parents=True)
    for number, name in enumerate([*NAMES, BROKEN]):
        photograph = (
            Image.fromarray(eye()).resize((160, 120)).point(lambda value, n=number: value * (1 - n / 40))
        )
        photograph.save(folder / "images" / name)
    rows = [f'"{name.replace(chr(34), 2 * chr(34))}",{n % 5}' for n, name in enumerate(NAMES)]
    (folder / "labels.csv").write_text("\n".join(["image,grade", *rows, ""]), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DRGRADE_FOLDER_ROOT", str(folder))
    return folder


def test_odd_names_go_through_download_index_and_crop(root: Path) -> None:
    manifest = ["--manifest", "m.tsv"]
    assert main(["download", "--dataset", "folder", "--params", "{}", *manifest]) == 0
    split = ["--out", "index.parquet", "--split", "split.csv", "--workers", "1"]
    assert main(["index", "--dataset", "folder", "--params", "{}", *manifest, *split]) == 0
    index = pd.read_parquet("index.parquet").set_index("path")
    read = index.loc[[f"images/{name}" for name in NAMES]]
    assert set(read["status"]) == {"ok"}
    assert read["grade"].tolist() == [n % 5 for n in range(len(NAMES))]
    assert index.loc[r"images/line\nbreak.jpg", "status"] == "unreadable"
    outputs = ["--store", "store.json", "--table", "crops.parquet", "--workers", "1"]
    block = json.dumps({"size": 32, "max_failed_fraction": 0.2})
    assert main(["crop", "--dataset", "folder", "--params", block, "--index", "index.parquet", *outputs]) == 0
    crops = pd.read_parquet("crops.parquet").set_index("image_id")
    assert set(crops.loc[read["image_id"], "status"]) == {"ok"}
    assert not list(root.parent.rglob("ran"))


def test_odd_names_are_graded_and_drawn(root: Path) -> None:
    grader = Finetune(Params(input_size=32), Crop(size=48))
    grader.network = grader.new_network("random")
    grader.save(Path("model"))
    for name in NAMES[6:12]:  # of which the shorter test above has enough
        (root / "images" / name).unlink()
    files = ["predict", str(root), "--model", "model", "--out=-o '$(touch ran)'.csv", "--workers", "1"]
    assert main([*files, "--force", "--explain"]) == 0
    table = pd.read_csv("-o '$(touch ran)'.csv", keep_default_na=False)
    assert sorted(Path(file).name for file in table["file"]) == sorted(
        [*NAMES[:6], *NAMES[12:], r"line\nbreak.jpg"]
    )
    maps = [Path(place) for place in table["heat_map"] if place]
    assert len(set(maps)) == len(maps) == len(table)
    assert all(place.is_file() for place in maps)
    assert not list(root.parent.rglob("ran"))
