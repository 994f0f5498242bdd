"""docs/datasets.md says of every dataset and artefact what the registry says."""

import re
from pathlib import Path

import pytest

from drgrade.data.published import PUBLISHED
from drgrade.data.registry import DATASETS, Count
from drgrade.params import Params

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/datasets.md").read_text()
ROWS = {
    match[1]: [cell.strip() for cell in match[0].strip("|\n").split("|")]
    for match in re.finditer(r"^\| `(\w+)` \|.*$", PAGE, re.M)
}


def registered() -> set[str]:
    """Names of all datasets, by the decorator in their modules."""
    sources = (path.read_text() for path in (ROOT / "src/drgrade/data").glob("*.py"))
    return {name for text in sources for name in re.findall(r'^@DATASETS\.register\("(\w+)"\)', text, re.M)}


def test_every_dataset_has_a_row_and_a_layout() -> None:
    assert set(ROWS) == registered()
    for name in registered() - {"demo", "demo_site"}:
        assert re.search(rf"^### {name}\n```\n", PAGE, re.M), name


@pytest.mark.parametrize("name", sorted(ROWS))
def test_a_row_is_its_card(name: str) -> None:
    card, row = DATASETS.get(name).card, ROWS[name]
    assert row[1] == card.title
    assert row[-2] == card.licence
    assert row[-1] == f"`DRGRADE_{name.upper()}_ROOT`"
    parts: dict[str, Count] = {part: count for part, count in card.counts.items() if "+" not in part}
    numbers = [int(number.replace(",", "")) for number in re.findall(r"[\d,]+", row[2])]
    assert numbers == [count.photographs for count in parts.values()]
    classes = [tuple(map(int, found.split("/"))) for found in re.findall(r"\d+(?:/\d+){4}", row[3])]
    assert classes == [count.grades for count in card.counts.values() if count.grades]
    ungradable = re.findall(r"([\d,]+) ungradable", row[3])
    totals = [count.photographs - sum(count.grades) for count in card.counts.values() if count.grades]
    assert [int(number.replace(",", "")) for number in ungradable] == [total for total in totals if total]


def test_masks_and_official_splits_are_those_of_the_readers() -> None:
    for name, row in ROWS.items():
        counts = DATASETS.get(name).card.counts
        if counts:
            assert (row[4] != "no") == any(part.startswith("segmentation") for part in counts), name
            for split in ("train", "val", "test"):
                assert (split in row[5]) == (split in counts), (name, split)


@pytest.mark.parametrize("artefact", PUBLISHED, ids=lambda artefact: artefact.name)
def test_artefacts_are_listed_and_their_keys_exist(artefact) -> None:
    row = next(line for line in PAGE.splitlines() if line.startswith(f"| {artefact.name} |"))
    for fact in (artefact.what, artefact.source, artefact.licence, artefact.place, artefact.use):
        assert fact in row
    if artefact.key is None:
        module, _, function = artefact.use.split(",")[0].split(";")[0].rpartition(".")
        assert callable(getattr(__import__(module, fromlist=[function]), function))
        return
    assert f"`{artefact.key}`" in row
    level = Params().model_dump()
    level["experiments"] = {"any": Params().experiment("imagenet").model_dump()}
    for key in artefact.key.split("."):
        level = next(iter(level.values())) if key == "*" else level[key]
