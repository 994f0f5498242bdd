"""Read label files and match their lines with photographs: CSV with an image column and a grade column."""

import logging
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

from drgrade.data.listing import PHOTOGRAPHS, escaped
from drgrade.errors import UserError
from drgrade.messages import quoted
from drgrade.schema import GRADES
from drgrade.tables import read_csv

log = logging.getLogger(__name__)

MISSING = {"", "-", "--", "?", "na", "n/a", "nan", "none", "null", "unknown"}
"""Cells that mean a missing value, in upper or lower case, as written by spreadsheets, R and pandas."""
MOST_PROBLEMS = 20
"""Maximum number of problems listed in the error for one label file."""
LEAST_MATCHED = 0.5
"""Minimum share of the labels, or of the photographs if there are fewer, that must match."""


@dataclass(frozen=True)
class Label:
    """One line of a label file; ``other`` has the values of the additional columns that were requested."""

    image: str
    grade: int | None
    other: Mapping[str, str]


class Problems(list[str]):
    """Problems found in a file, collected so that the user can correct all of them at once."""

    def stop(self, file: Path) -> None:
        """Raise a UserError that lists up to MOST_PROBLEMS problems, if there are any."""
        if len(self) == 1:
            raise UserError(f"{file}: {self[0]}")
        if self:
            more = f"\n  and {len(self) - MOST_PROBLEMS} more" if len(self) > MOST_PROBLEMS else ""
            raise UserError(f"{file}: {len(self)} problems:\n  " + "\n  ".join(self[:MOST_PROBLEMS]) + more)


def value(text: str) -> str:
    """Return the value of a table cell; empty if it means a missing value (:data:`MISSING`)."""
    return "" if text.lower() in MISSING else text


def read_labels(
    path: Path,
    image: str,
    grade: str,
    other: Sequence[str] = (),
    *,
    allowed: Mapping[str, AbstractSet[str]] | None = None,
    blank: bool = False,
) -> list[Label]:
    """Read the lines of a label file, in order.

    Column names are case-insensitive; unnamed and unknown columns and empty lines are ignored. Values that
    mean a missing value (:data:`MISSING`) are read as empty.

    Args:
        path: the file; see :func:`read_csv`.
        image: name of the column of image names.
        grade: name of the column of grades.
        other: additional columns to read; they may be absent.
        allowed: allowed values of additional columns, in lower case; empty cells are always allowed.
        blank: allow a line without a grade.

    Raises:
        UserError: the file cannot be read, or a column is missing; or, all in one message with their lines:
            an image name is empty or occurs twice, a grade is not 0 to 4, a value is not allowed.
    """
    header, lines = read_csv(path, "put the dataset's label file there")
    if missing := [name for name in (image, grade) if name.lower() not in header]:
        raise UserError(f"{path}: line 1: no column {missing[0]!r}; the header needs {image!r} and {grade!r}")
    problems, found = Problems(), dict[str, Label]()
    grades = {str(grade) for grade in GRADES} | ({""} if blank else set())
    for number, cells in lines:
        name, text = cells.get(image.lower(), ""), value(cells.get(grade.lower(), "")).removesuffix(".0")
        rest = {column: value(cells.get(column.lower(), "")) for column in other}
        wrong = [(column, rest[column], names) for column, names in (allowed or {}).items()
                 if rest[column] and rest[column].lower() not in names]  # fmt: skip
        if not name:
            problems.append(f"line {number}: no image name; fill it in or delete the line")
        elif key(name) in found:
            problems.append(
                f"line {number}: image {quoted(name)} has a label already; keep one of the two lines"
            )
        elif text not in grades:
            problems.append(
                f"line {number}: grade {quoted(text)} is not one of 0 to 4; correct it or delete the line"
            )
        for column, cell, names in wrong:
            choice = ", ".join(sorted(names))
            problems.append(f"line {number}: {column} {quoted(cell)} is not one of {choice}; correct it")
        if name:
            found.setdefault(key(name), Label(name, int(text) if text in grades - {""} else None, rest))
    problems.stop(path)
    return list(found.values())


def stem(name: str) -> str:
    """Return an image name without its file extension, if that is one of a photograph."""
    ending = Path(name).suffix
    return name.removesuffix(ending) if ending.lower() in PHOTOGRAPHS else name


def key(name: str) -> str:
    """Return the key by which image names are compared: no extension, case-folded, Unicode form NFC."""
    return unicodedata.normalize("NFC", stem(name)).casefold()


def photographs(folder: Path) -> dict[str, Path]:
    """Return the photographs of a folder by :func:`key`, sorted by name; empty if the folder is missing.

    Names are :func:`escaped`, as in the manifest; a file whose name this changes counts as unreadable.

    Raises:
        UserError: the names of two photographs differ only in extension or case.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.suffix.lower() in PHOTOGRAPHS and not path.name.startswith("."):
            written = folder / escaped(path.name)
            other = found.setdefault(key(written.name), written)
            if other is not written:
                raise UserError(f"{written}: same name as {other.name}; rename or remove one")
    return found


def match(
    labels: Sequence[Label], images: Mapping[str, Path], file: Path
) -> Iterator[tuple[str, Path | None, Label | None]]:
    """Match the lines of a label file with photographs by :func:`key`.

    Yields:
        Name without extension, path and label: first for each label, in the order of the file, then for each
        photograph without a label. The name is that of the photograph if there is one.

    Raises:
        UserError: there are labels and photographs, but less than LEAST_MATCHED of the smaller number match;
            shows examples of both and the probable cause.
    """
    keys = [key(label.image) for label in labels]
    _check_matches(keys, labels, images, file)
    for name, label in zip(keys, labels, strict=True):
        path = images.get(name)
        yield (path.stem if path else stem(label.image)), path, label
    known = set(keys)
    for name, path in images.items():
        if name not in known:
            yield path.stem, path, None


def _check_matches(
    keys: Sequence[str], labels: Sequence[Label], images: Mapping[str, Path], file: Path
) -> None:
    """Raise if the label file belongs to other photographs; warn of labels or photographs without a match."""
    alone = [label.image for name, label in zip(keys, labels, strict=True) if name not in images]
    known = set(keys)
    unlabelled = [path.name for name, path in images.items() if name not in known]
    if not alone or not unlabelled:
        return
    told = (
        f"{file}: {len(labels) - len(alone)} of {len(labels)} labels match one of {len(images)} photographs "
        f"of {next(iter(images.values())).parent}; labels without a photograph, such as "
        f"{_examples(alone)}; photographs without a label, such as {_examples(unlabelled)}"
    )
    cause = _cause(alone, unlabelled)
    if len(labels) - len(alone) < LEAST_MATCHED * min(len(labels), len(images)):
        raise UserError(f"{told}; {cause or 'is this the label file of these photographs?'}")
    log.warning("%s%s", told, f"; {cause}" if cause else "")


def _examples(names: Sequence[str]) -> str:
    return ", ".join(quoted(name) for name in names[:3])


_CAUSES: dict[str, Callable[[str], str]] = {
    "the labels seem to have lost leading zeros, as in a spreadsheet: write the names as text": (
        lambda name: name.lstrip("0")
    ),
    "numbers seem to have become decimals (1.0): write the names as text": (
        lambda name: name.removesuffix(".0").lstrip("0")
    ),
    "there are folders before the names: leave them out": lambda name: name.replace("\\", "/").split("/")[-1],
    "endings differ: leave them out": lambda name: name.split(".")[0],
    "spaces, dashes or underscores differ: write the names alike": (
        lambda name: "".join(filter(str.isalnum, name))
    ),
}
"""Possible causes of a mismatch of names, each with a function that would make them match."""


def _cause(labels: Sequence[str], images: Sequence[str]) -> str:
    """Return the cause whose correction matches most names; empty if none matches any."""
    best, most = "", 0
    for cause, simplify in _CAUSES.items():
        simplified = {simplify(key(name)) for name in images}
        count = sum(simplify(key(name.replace("\\", "/"))) in simplified for name in labels)
        if count > most:
            best, most = cause, count
    return best
