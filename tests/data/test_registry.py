"""What was read against what the complete dataset holds."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from drgrade.data.eyepacs import EyePACS
from drgrade.data.registry import DATASETS, READ_COLUMNS, Card, Count, count_report
from drgrade.errors import UserError

CARD = Card(
    "toy", "Toy", "1", "CC0", "here", "form", "-", "-",
    counts={
        "train": Count(6, "train.csv", (3, 1, 1, 0, 0)),  # and an ungradable one
        "val": Count(2, "test.csv"),
        "val+test": Count(4, "test.csv", (2, 2, 0, 0, 0)),
        "segmentation train": Count(2),
    },
)  # fmt: skip
COMPLETE = [
    *[("train", grade) for grade in (0, 0, 0, 1, 2, "reject")],
    *[("val", 0), ("val", 1), ("test", 0), ("test", 1)],
    *[("segmentation", None)] * 2,
]


def table(rows: list) -> pd.DataFrame:
    """Rows of (split, grade); all have their photograph."""
    columns: dict[str, list] = {name: [] for name in READ_COLUMNS}
    for n, (split, grade) in enumerate(rows):
        masked = split == "segmentation"
        values = (
            f"i{n}", f"i{n}.png", f"i{n}", None, None if grade == "reject" else grade,
            "reject" if grade == "reject" else None, "segmentation" if masked else "grading",
            "train" if masked else split,
        )  # fmt: skip
        for name, value in zip(READ_COLUMNS, values, strict=True):
            columns[name].append(value)
    return pd.DataFrame(columns)


def test_the_complete_dataset_needs_no_words() -> None:
    assert count_report(CARD, table(COMPLETE), Path("raw")) == []


def test_a_partial_copy_is_reported_part_by_part() -> None:
    some = table(COMPLETE[1:])
    some.loc[some["subset"] == "segmentation", "path"] = [None, "x.png"]
    assert count_report(CARD, some, Path("raw")) == [
        "Toy, train: 5 photographs, 5 labels; complete it has 6",
        "Toy, segmentation train: 1 photographs; complete it has 2",
    ]


def test_photographs_without_labels_are_no_error_of_the_label_file() -> None:
    found = count_report(CARD, table([*COMPLETE, ("train", None)]), Path("raw"))
    assert found == ["Toy, train: 7 photographs, 6 labels; complete it has 6"]


@pytest.mark.parametrize(
    ("rows", "file", "found"),
    [
        ([*COMPLETE, ("train", 0)], "train.csv", "7 labels, of grades 0 to 4 4/1/1/0/0"),
        ([("train", 2), *COMPLETE[1:]], "train.csv", "6 labels, of grades 0 to 4 2/1/2/0/0"),
        ([("train", 4), *COMPLETE[6:]], "train.csv", "1 labels, of grades 0 to 4 0/0/0/0/1"),
        ([("train", "reject"), *COMPLETE[1:]], "train.csv", "6 labels, of grades 0 to 4 2/1/1/0/0"),
        ([*COMPLETE, ("val", 0)], "test.csv", "3 labels, of grades 0 to 4 2/1/0/0/0"),
        ([*COMPLETE[:9], ("test", 0), *COMPLETE[10:]], "test.csv", "4 labels, of grades 0 to 4 3/1/0/0/0"),
    ],
    ids=["more", "other grades", "a grade there is none of", "another ungradable", "val", "val+test"],
)
def test_a_label_file_that_contradicts_the_card_is_refused(rows: list, file: str, found: str) -> None:
    with pytest.raises(UserError) as error:
        count_report(CARD, table(rows), Path("raw"))
    assert str(error.value).startswith(f"raw/{file}: {found}, but the official file has ")
    assert "\n" not in str(error.value)


def write_eyepacs(root: Path, change: dict[str, int] | None = None) -> None:
    """Label files of the official size: each class as often as published."""
    rng = np.random.default_rng(0)
    train = rng.permutation(np.repeat(np.arange(5), (25810, 2443, 5292, 873, 708)))
    test = rng.permutation(np.repeat(np.arange(5), (39533, 3762, 7861, 1214, 1206)))
    sides = ("left", "right")
    lines = {f"{n // 2}_{sides[n % 2]}": int(grade) for n, grade in enumerate(train)}
    lines.update(change or {})
    (root / "trainLabels.csv").write_text(
        "image,level\n" + "".join(f"{name},{grade}\n" for name, grade in lines.items())
    )
    usage = ["Public"] * 10906 + ["Private"] * 42670
    (root / "retinopathy_solution.csv").write_text(
        "image,level,Usage\n"
        + "".join(f"{90000 + n // 2}_{sides[n % 2]},{g},{usage[n]}\n" for n, g in enumerate(test))
    )


def test_eyepacs_at_its_full_size(tmp_path: Path) -> None:
    write_eyepacs(tmp_path)
    found = EyePACS().read(tmp_path)
    report = count_report(EyePACS.card, found, tmp_path)
    assert len(found) == 88702
    assert found["official_split"].value_counts().to_dict() == {"test": 42670, "train": 35126, "val": 10906}
    assert [line.split(": ")[1] for line in report] == [
        "0 photographs, 35126 labels; complete it has 35126",
        "0 photographs, 10906 labels; complete it has 10906",
        "0 photographs, 42670 labels; complete it has 42670",
        "0 photographs, 53576 labels; complete it has 53576",
    ]
    assert count_report(EyePACS.card, found.assign(path="there"), tmp_path) == []


def test_eyepacs_with_one_grade_changed(tmp_path: Path) -> None:
    write_eyepacs(tmp_path)
    first = (tmp_path / "trainLabels.csv").read_text().splitlines()[1].split(",")
    write_eyepacs(tmp_path, {first[0]: 1 if first[1] != "1" else 0})
    with pytest.raises(UserError, match=r"trainLabels\.csv: 35126 labels.* 25810/2443/5292/873/708"):
        count_report(EyePACS.card, EyePACS().read(tmp_path), tmp_path)


PUBLISHED = {
    "eyepacs": {"train": 35126, "val": 10906, "test": 42670, "val+test": 53576},
    "aptos": {"train": 3662, "test": 1928},
    "messidor2": {"all": 1748},
    "ddr": {
        "train": 6835, "val": 2733, "test": 4105, "train+val+test": 13673,
        "segmentation train": 383, "segmentation val": 149, "segmentation test": 225,
    },
    "idrid": {"train": 413, "test": 103, "segmentation train": 54, "segmentation test": 27},
}  # fmt: skip
UNGRADABLE = {"messidor2": 4, "ddr": 1151}


@pytest.mark.parametrize("name", PUBLISHED)
def test_cards_hold_the_published_counts(name: str) -> None:
    counts = DATASETS.get(name).card.counts
    assert {part: count.photographs for part, count in counts.items()} == PUBLISHED[name]
    for count in counts.values():
        if count.grades:
            assert sum(count.grades) + UNGRADABLE.get(name, 0) == count.photographs
