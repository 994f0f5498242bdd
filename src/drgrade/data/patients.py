"""Patient ids and eyes of photographs, from a table, DICOM tags or file names.

The two eyes of a patient must not be in both training and test, so all ids of a dataset must be of one kind:
gaps of one source are filled from another only if both certainly identify the same patients.

Where a dataset names no patients, the numbers of its photographs can stand in for them
(:func:`patients_by_number`).
"""

import logging
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from drgrade.data.labels import MOST_PROBLEMS, value
from drgrade.errors import UserError

log = logging.getLogger(__name__)

EYES = {"left": "left", "l": "left", "os": "left", "right": "right", "r": "right", "od": "right"}
"""Words for an eye: English, and the Latin of ophthalmology (oculus sinister, oculus dexter)."""
UNKNOWN = (
    "No two photographs have the same patient id. If the patients are not known, two eyes of one person may "
    "be in both training and test, and the results look better than they are."
)
"""Warning for a dataset whose patients are not known."""
BY_NUMBER = (
    "The dataset names no patients: of its graded photographs, each block of {} numbers counts as one."
)
"""Note for a dataset with ``numbers_per_patient``, to be filled in with it."""
_SIDES = "|".join(EYES)
_NAMES = (
    re.compile(rf"(?P<patient>.+?)(?:[ _.-]+|(?<=\d))(?P<eye>{_SIDES})(?:[ _.-]+\d+)?", re.IGNORECASE),
    re.compile(r"(?P<eye>left|right|od|os)[ _.-]+(?P<patient>.+)", re.IGNORECASE),
)
"""Patterns of names such as 17_left, P000-OD, P000_OS_2 (second photograph of that eye), 12R; and left_17."""
_NUMBERED = re.compile(r"(?P<stem>.*?)(?P<number>[0-9]+)", re.DOTALL)


class Source(NamedTuple):
    """Patient and eye of one photograph by source; an empty id or None if not known."""

    image: str
    column: str = ""
    tag: str = ""
    name: str = ""


def from_name(name: str) -> tuple[str, str | None]:
    """Return patient and eye from the name of a photograph; empty and None if it has none."""
    for pattern in _NAMES:
        if found := pattern.fullmatch(name):
            return found["patient"], EYES[found["eye"].lower()]
    return "", None


def from_tags(path: Path) -> tuple[str, str | None]:
    """Return patient and eye from the tags of a DICOM file; empty and None if they are missing."""
    import pydicom

    tags = ["PatientID", "ImageLaterality", "Laterality"]
    try:
        found = pydicom.dcmread(path, stop_before_pixels=True, force=True, specific_tags=tags)
        side = str(found.get("ImageLaterality") or found.get("Laterality") or "")
        return value(str(found.get("PatientID") or "").strip()), EYES.get(side.strip().lower())
    except Exception:  # damaged files raise many types; the reason is recorded when the header is read
        return "", None


def patient_ids(sources: Sequence[Source], file: Path) -> list[str]:
    """Return one patient id for each photograph, all of the same kind.

    The first source with any ids is used: the column, else the tags, else the names. A gap is filled from
    another source if by that source the patient also has a photograph with a known id (the other eye), or if
    both sources distinguish the same patients wherever both are known.

    Args:
        sources: one for each photograph.
        file: the label file, for the messages.

    Raises:
        UserError: the first source has gaps that no other source can fill; lists the photographs.
    """
    ids = [tidy(source.column) for source in sources]
    others = [[source.tag for source in sources], [source.name for source in sources]]
    while not any(ids) and others:
        ids = others.pop(0)
    if not any(ids) or (not others and not all(ids)):  # no better source than the names
        _warn_of_unnamed(sources, ids, file)
        return [patient or source.image for patient, source in zip(ids, sources, strict=True)]
    for other in others:
        ids = _filled(ids, other)
    gaps = [source.image for source, patient in zip(sources, ids, strict=True) if not patient]
    if gaps:
        listed = ", ".join(map(repr, gaps[:MOST_PROBLEMS])) + (", ..." if len(gaps) > MOST_PROBLEMS else "")
        raise UserError(
            f"{file}: {len(gaps)} of {len(sources)} photographs have no patient although the others have, so "
            f"one person could be in both training and test: {listed}; fill in the column patient for all"
        )
    return ids


def tidy(patient: str) -> str:
    """Return an id as text, without the decimals that spreadsheets add to whole numbers (12.0)."""
    return patient.removesuffix(".0") if re.fullmatch(r"\d+\.0", patient) else patient


def _filled(ids: Sequence[str], other: Sequence[str]) -> list[str]:
    """Return ids with gaps filled from another source where that is certain to be right."""
    theirs, ours = defaultdict[str, set[str]](set), defaultdict[str, set[str]](set)
    for patient, alias in zip(ids, other, strict=True):
        if patient and alias:
            theirs[alias].add(patient)
            ours[patient].add(alias)
    same_people = bool(ours) and all(len(names) == 1 for names in (*theirs.values(), *ours.values()))

    def fill(patient: str, alias: str) -> str:
        if patient or not alias:
            return patient
        if len(theirs[alias]) == 1:
            return next(iter(theirs[alias]))
        return alias if same_people and alias not in ours else ""

    return [fill(patient, alias) for patient, alias in zip(ids, other, strict=True)]


def _warn_of_unnamed(sources: Sequence[Source], ids: Sequence[str], file: Path) -> None:
    unnamed = [source.image for source, patient in zip(sources, ids, strict=True) if not patient]
    if unnamed and any(ids):
        log.warning(
            "%s: the names of %d of %d photographs tell no patient, such as %s; each counts as a patient of "
            "its own, so two eyes of one person may be in both training and test; add a column patient",
            file, len(unnamed), len(sources), unnamed[0],
        )  # fmt: skip


def unknown(index: pd.DataFrame) -> bool:
    """Whether every graded photograph has a different patient id, so that ids keep no eyes together.

    Args:
        index: columns patient_id, grade and path of ``index.parquet``.
    """
    graded = index[index["grade"].notna() & index["path"].notna()]
    return len(graded) > 1 and graded["patient_id"].nunique() == len(graded)


def patients_by_number(table: pd.DataFrame, size: int, dataset: str) -> pd.Series:
    """Return patient ids under which graded photographs with neighbouring numbers are of one patient.

    Photographs are often numbered in the order in which they were taken, so those of one person have
    neighbouring numbers. Names that are equal up to the number at their end, with an equal
    ``number // size``, get one id: with 8, ``IDRiD_001`` to ``IDRiD_007`` get ``IDRiD_0-7``, and
    ``IDRiD_008`` to ``IDRiD_015`` get ``IDRiD_8-15``. The id of a photograph depends on no other photograph.
    A name without a number at its end stays a patient of its own.

    Photographs with lesion masks keep their ids, unless a graded one has the same: they are a selection with
    numbers of its own, and blocks of these would tie together the blocks of all their graded copies.

    Args:
        table: patient_id (the photograph's name, as patients are not known) and subset.
        size: how many numbers count as one patient, >= 2.
        dataset: its name, for the messages.

    Returns:
        Patient ids, with the table's index.

    Raises:
        UserError: the dataset names patients, or no name ends in a number.
    """
    key = f"datasets.{dataset}.numbers_per_patient"
    several = table.loc[table.duplicated(["subset", "patient_id"]), "patient_id"]
    if len(several):
        raise UserError(
            f"{key}: the dataset names its patients, and {several.iloc[0]} has several photographs; "
            "set it to null"
        )
    named = table.loc[table["subset"] == "grading", "patient_id"].tolist()
    blocks = {name: _block(found, size) for name in named if (found := _NUMBERED.fullmatch(name))}
    if not blocks:
        raise UserError(f"{key}: no graded photograph has a name that ends in a number; set it to null")
    log.info(
        "%s: no patients are named; %d graded photographs count as %d patients, by blocks of %d numbers",
        dataset, len(named), len(set(blocks.values())) + len(named) - len(blocks), size,
    )  # fmt: skip
    return table["patient_id"].map(lambda name: blocks.get(name, name))


def _block(name: re.Match[str], size: int) -> str:
    """Return a name with the first and the last number of its block in place of its own."""
    first = int(name["number"]) // size * size
    return f"{name['stem']}{first}-{first + size - 1}"
