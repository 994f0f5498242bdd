"""``drgrade new folder PATH``: describe the user's photographs and write a params file for them."""

import os
import shlex
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import yaml

from drgrade.data.folder import LABELS, Folder
from drgrade.data.index import ODD_NAME
from drgrade.data.labels import photographs
from drgrade.data.listing import escaped
from drgrade.data.patients import UNKNOWN, unknown
from drgrade.errors import UserError
from drgrade.files import write_file
from drgrade.images.survey import Survey, survey_all
from drgrade.params import load
from drgrade.schema import GRADE_NAMES, GRADES

LOW_QUALITY = 0.3
"""Photographs below this computed quality are counted as poor."""
EXAMPLES = 3


def new_folder(root: Path, out: Path, template: Path, workers: int) -> str:
    """Describe a folder of photographs and write a params file that uses it.

    Args:
        root: holds ``images/`` and, if there are grades, ``labels.csv``.
        out: params file to write.
        template: params file from which all other values are copied.
        workers: processes that read photographs.

    Returns:
        What was found, and the command to run next.

    Raises:
        UserError: there are no photographs in ``images/``, the label file is invalid, or ``out`` exists.
    """
    if out.exists():
        raise UserError(f"{out}: exists already; name another file with --out, or delete it")
    _check_layout(root)
    table = Folder().read(root)
    paths = [root / path if isinstance(path, str) else None for path in table["path"]]
    found = table.join(pd.DataFrame(survey_all(paths, workers), columns=list(Survey._fields)))
    odd = found["path"].str.contains("\\", regex=False, na=False) & (found["reason"] != "")
    found["reason"] = found["reason"].mask(odd, ODD_NAME)
    params = _params(template, graded=bool(_graded(found).any()))
    header = f"# Photographs of {escaped(str(root))}; `uv run drgrade params {out}` prints all values.\n"
    write_file(out, (header + yaml.safe_dump(params, sort_keys=False, width=110)).encode())
    load(out)
    return "\n".join(
        [*_lines(found), "", f"Written: {out}. Look through it, then run", *_commands(root, out)]
    )


def _check_layout(root: Path) -> None:
    """Raise a UserError with the remedy if there are no photographs in ``images``."""
    if not root.is_dir():
        raise UserError(f"{root}: no such folder")
    if photographs(root / "images"):
        return
    if photographs(root):
        raise UserError(f"{root}: photographs lie directly in it; move or link them into {root / 'images'}")
    raise UserError(f"{root / 'images'}: holds no photographs; put them there")


def _graded(found: pd.DataFrame) -> "pd.Series[bool]":
    return found["grade"].notna() & found["path"].notna()


def _params(template: Path, *, graded: bool) -> dict[str, object]:
    """The template's values with the folder as ``roles.pretrain`` and, if graded, ``roles.grade``."""
    params = yaml.safe_load(template.read_text())
    params["datasets"] = {"demo": {}, "folder": {}}
    params["roles"] = {
        "lesions": "demo", "pretrain": "folder", "grade": "folder" if graded else "demo", "external": [],
    }  # fmt: skip
    return params


def _lines(found: pd.DataFrame) -> Iterator[str]:
    """Yield a line for each property of the photographs found."""
    there = found[found["path"].notna()]
    endings = there["path"].str.rsplit(".", n=1).str[1].str.lower().value_counts()
    yield f"photographs  {len(there)}: " + ", ".join(f"{count} {ending}" for ending, count in endings.items())
    yield from _listed("unreadable", there[there["reason"] != ""], "reason")
    graded = _graded(found)
    counts = [f"{(found['grade'][graded] == grade).sum()} {GRADE_NAMES[grade]}" for grade in GRADES]
    yield f"graded       {graded.sum()}: " + (", ".join(counts) if graded.any() else f"no grades in {LABELS}")
    yield from _listed("no photo", found[found["path"].isna()])
    if graded.any():
        yield from _listed("no grade", there[there["grade"].isna()])
    eyes = ", ".join(f"{n} {eye}" for eye, n in there["eye"].fillna("unknown").value_counts().items())
    yield f"patients     {there['patient_id'].nunique()}; eyes: {eyes}"
    if unknown(found):
        yield f"             {UNKNOWN}"
    readable = there[there["quality"].notna()].sort_values(["height", "width"])
    if len(readable):
        sizes = [f"{row.width:.0f}x{row.height:.0f}" for row in readable.iloc[[0, -1]].itertuples()]
        yield "pixels       " + " to ".join(dict.fromkeys(sizes))
        poor = (readable["quality"] < LOW_QUALITY).sum()
        yield f"quality      median {readable['quality'].median():.2f}; {poor} below {LOW_QUALITY:g}"
    yield from _listed("no retina", there[there["retina"].astype("boolean").eq(False).fillna(False)])


def _listed(title: str, rows: pd.DataFrame, reason: str = "") -> Iterator[str]:
    """Yield a count with the first names and, optionally, their reasons; nothing if there are no rows."""
    if len(rows):
        names = [escaped(name) for name in rows["image_id"].head(EXAMPLES)]
        if reason:
            names = [f"{name} ({why})" for name, why in zip(names, rows[reason].head(EXAMPLES), strict=True)]
        yield f"{title:12} {len(rows)}: {', '.join(names)}" + (", ..." if len(rows) > EXAMPLES else "")


def _commands(root: Path, out: Path) -> Iterator[str]:
    place, file = (shlex.quote(str(path)) for path in (root.absolute(), out))
    command = f"snakemake --cores {os.cpu_count()} --resources gpu=1 --configfile {file}"
    yield f"  DRGRADE_FOLDER_ROOT={place} uv run drgrade check {file}"
    yield f"  DRGRADE_FOLDER_ROOT={place} uv run {command}"
