"""Read label files of the field: CSV with an image column and a grade column."""

import csv
from dataclasses import dataclass
from pathlib import Path

from drgrade.data.listing import PHOTOGRAPHS
from drgrade.errors import UserError
from drgrade.schema import GRADES


@dataclass(frozen=True)
class Label:
    """One line of a label file; ``other`` holds the further columns that were asked for."""

    image: str
    grade: int | None
    other: dict[str, str]


def _grade(text: str, where: str, blank: bool) -> int | None:
    if not text and blank:
        return None
    if blank:  # spreadsheets turn the whole numbers of a column with gaps into decimals
        text = text.removesuffix(".0")
    if text not in {str(grade) for grade in GRADES}:
        raise UserError(f"{where}: grade {text!r} is not one of 0 to 4; correct it or delete the line")
    return int(text)


def read_labels(
    path: Path, image: str, grade: str, other: tuple[str, ...] = (), *, blank: bool = False
) -> list[Label]:
    """Lines of a label file, in its order.

    Names of columns are compared without case and outer blanks; unnamed, empty and unknown columns are passed
    over, as are empty lines. ``other`` columns may be absent. ``blank`` allows a line without a grade, and
    grades such as 2.0 beside it.

    Raises:
        UserError: the file is missing or not UTF-8 text, a column is missing, an image name is empty or comes
            twice, a grade is not 0 to 4; names the file and line.
    """
    try:
        lines = list(csv.reader(path.read_text(encoding="utf-8-sig").splitlines(), strict=True))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; put the dataset's label file there") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a CSV text file ({error}); save it as UTF-8 CSV") from None
    header = [name.strip().lower() for name in lines[0]] if lines else []
    missing = [name for name in (image, grade) if name.lower() not in header]
    if missing:
        raise UserError(f"{path}: line 1: no column {missing[0]!r}; the header needs {image!r} and {grade!r}")
    found: dict[str, Label] = {}
    for number, line in enumerate(lines[1:], 2):
        cells = dict(zip(header, (cell.strip() for cell in line), strict=False))
        if not any(cells.values()):
            continue
        where, name = f"{path}: line {number}", cells.get(image.lower(), "")
        if not name:
            raise UserError(f"{where}: no image name; fill it in or delete the line")
        if name in found:
            raise UserError(f"{where}: image {name!r} has a label already; keep one of the two lines")
        rest = {key: cells.get(key.lower(), "") for key in other}
        found[name] = Label(name, _grade(cells.get(grade.lower(), ""), where, blank), rest)
    return list(found.values())


def stem(name: str) -> str:
    """An image's name without the ending of a photograph, where it has one."""
    ending = Path(name).suffix
    return name.removesuffix(ending) if ending.lower() in PHOTOGRAPHS else name


def photographs(folder: Path) -> dict[str, Path]:
    """Photographs of a folder by name without ending, sorted; none when there is no such folder.

    Raises:
        UserError: two photographs differ only in their ending.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.suffix.lower() in PHOTOGRAPHS and not path.name.startswith("."):
            if path.stem in found:
                raise UserError(f"{path}: same name as {found[path.stem].name}; rename or remove one")
            found[path.stem] = path
    return found
