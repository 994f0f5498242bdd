"""Mutated label files, and tables that spreadsheets, other encodings or attackers make."""

import random
from functools import partial
from pathlib import Path

import pytest
from tests.hostile.child import one_line, survive
from tests.hostile.mutations import mutated

from drgrade.data.labels import match, read_labels
from drgrade.errors import UserError

ROWS = "".join(f"{number}_left.jpeg,{number % 5},p{number},left\r\n" for number in range(12))
TABLE = f"image,grade,patient,eye\r\n{ROWS}"
FILES = [
    TABLE.encode(), TABLE.encode("utf-16"),
    TABLE.replace(",", ";").encode(), TABLE.replace(",", "\t").encode(),
    "\ufeff".encode() + TABLE.encode(), 'image,grade\n"a ""b""\nc",3\n"\u00e9.jpg",0\n'.encode(),
]  # fmt: skip
TOKENS = (b"\0", b'"', b",", b";", b"\n", b"\r", b"\xff\xfe", b"\xe9", b"image", b"grade,",
          b"=cmd|' /C x'!A0", b"\xe2\x80\xa8", b"9" * 5000, b"x" * 140_000, b"\xd9\xa3", b",\n" * 50,
          b"../../x,3\n")  # fmt: skip
SIDES = {"eye": {"left", "right"}}


def mutant(number: int) -> bytes:
    rng = random.Random(number)
    return mutated(rng.choice(FILES), FILES, rng, tokens=TOKENS)


def look(folder: Path, data: bytes) -> str:
    file = folder / "labels.csv"
    file.write_bytes(data)
    try:
        labels = read_labels(file, "image", "grade", ("patient", "eye"), allowed=SIDES, blank=True)
    except UserError as error:
        first, *problems = str(error).splitlines()
        assert first.startswith(f"{file}: ")
        assert len(problems) <= 21
        for line in (first, *problems):
            one_line(line, 800)
        return "refused"
    assert all(label.image and label.grade in (None, 0, 1, 2, 3, 4) for label in labels)
    assert len(list(match(labels, {}, file))) == len(labels)
    return "read"


def test_mutated_label_files_are_read_or_refused_with_a_reason(tmp_path: Path) -> None:
    outcomes = survive(mutant, partial(look, tmp_path), 1500, tmp_path)
    assert min(outcomes["read"], outcomes["refused"]) > 150, outcomes


def refusal(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_labels(path, "image", "grade")
    one_line(str(error.value))
    return str(error.value).removeprefix(f"{path}: ")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"image,grade\na," + b"9" * 5000 + b"\n", "line 2: grade '999"),  # more digits than int() takes
        (b"," * 1_000_000 + b"\na\n", "line 1: 1000001 columns"),
        (b"image,grade\n" + b"x" * 200_000 + b",1\n", "not a CSV text file (field larger than"),
        ("image,grade\na,\u0663\n".encode(), "line 2: grade '\u0663'"),  # three, in Arabic
        (b"image," + b"a" * 5000 + b"," + b"a" * 5000 + b"\n", "line 1: two columns are called 'aaa"),
        (b"PK\x03\x04\x14\0\x06\0\x08\0\0\0!\0\xe9\xff", "not a CSV text file"),  # an XLSX
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "not a CSV text file"),  # an XLS
    ],
)
def test_tables_that_are_none_are_refused_in_one_line(tmp_path: Path, content: bytes, reason: str) -> None:
    assert refusal(tmp_path / "labels.csv", content).startswith(reason)


def test_a_formula_and_a_path_are_plain_names(tmp_path: Path) -> None:
    names = ['=HYPERLINK("http://x")', "../../etc/passwd", "$(touch x)", "-rf"]
    quoted = (name.replace('"', '""') for name in names)
    (tmp_path / "l.csv").write_text("image,grade\n" + "".join(f'"{name}",1\n' for name in quoted))
    labels = read_labels(tmp_path / "l.csv", "image", "grade")
    assert [label.image for label in labels] == names
    assert [path for _, path, _ in match(labels, {}, tmp_path / "l.csv")] == [None] * 4
