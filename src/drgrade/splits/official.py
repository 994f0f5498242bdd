"""Keep a dataset's official test part unchanged: duplicates in other parts are left out, with a reason."""

import logging
from typing import NamedTuple

import pandas as pd

from drgrade.errors import UserError
from drgrade.params import Index
from drgrade.splits.groups import linked_patients
from drgrade.splits.overlaps import pair_up

log = logging.getLogger(__name__)

STRICTEST = ("test", "val", "train")
"""Precedence of parts: of a group with rows in several official parts, only those in the first of these are
kept, so that no test photograph is trained on."""
STRONGEST = ("content", "perceptual", "patient")
"""Levels of overlap between two photographs; the first that applies is given as the reason."""
SHOWN = 10


class Official(NamedTuple):
    """A dataset's official parts and what is left out of them; all series have the index of its rows."""

    part: pd.Series
    """The official part of each row: train, val or test."""
    patient_id: pd.Series
    """Patient ids, none of a block of numbers in two parts."""
    left_out: dict[int, str]
    """Reasons by row label."""
    masked_test: pd.Series
    """Whether a row is a test photograph with masks, which stays one whatever it is a copy of."""

    @property
    def divided(self) -> pd.Series:
        """Whether a row is neither left out nor a test photograph with masks."""
        return ~self.masked_test & ~self.part.index.isin(list(self.left_out))


def official_parts(table: pd.DataFrame, params: Index) -> Official:
    """Return the official parts of a dataset and what has to be left out of them.

    A graded photograph is left out if it has a duplicate or its patient in a stricter part (see STRICTEST)
    of the graded photographs; one with masks, also if it has them in a stricter part of its own kind.

    Numbers that stand in for patients (:func:`drgrade.data.patients.patients_by_number`) leave nothing out:
    official parts may cut through a block, which then counts as one patient in each part.

    Args:
        table: image_id, patient_id, sha256, phash, grade, subset, official_split and status; and, if
            patient_id is by number, named_patient: the dataset's own ids.
        params: the validation fraction and the bits of duplicates.

    Raises:
        UserError: the dataset has no official split.
    """
    part, grading = _parts(table, params.val_fraction), table["subset"] == "grading"
    patient = table["patient_id"]
    rows = table.assign(part=part)
    if "named_patient" in table:
        rows["patient_id"] = table["named_patient"]
        patient = patient.mask(part.groupby(patient).transform("nunique") > 1, patient + " " + part)
    rows["group"] = linked_patients(rows, params.duplicate_bits)
    graded_out = twins(rows[grading], params.duplicate_bits)
    masked_out = {row: why for row, why in twins(rows, params.duplicate_bits).items() if not grading[row]}
    return Official(part, patient, graded_out | masked_out, ~grading & (part == "test"))


def _parts(table: pd.DataFrame, val_fraction: float) -> pd.Series:
    """Return the official part of each row; those without one train.

    With a ``val_fraction`` of 0 there is no validation part, as in publications with training and test only:
    an official validation part then becomes part of the test. Without usable graded test photographs, a
    warning says that nothing will be tested.
    """
    official = table["official_split"].fillna("train")
    grading = table["subset"] == "grading"
    if table.loc[grading, "official_split"].isna().all():
        raise UserError("index.scheme: official, but the dataset has no official split; use holdout or kfold")
    if val_fraction == 0:
        official = official.mask(grading & (official == "val"), "test")
    # of photographs with masks, drgrade.splits.assign draws the validation part
    official = official.mask(~grading & (official == "val"), "train")
    graded = grading & table["grade"].notna() & (table["status"] == "ok")
    if not (graded & (official == "test")).any():
        log.warning(
            "index.scheme: official, but none of the %d graded photographs is a test photograph: models can "
            "be trained, but nothing will be tested, and the stage evaluate will stop",
            graded.sum(),
        )
    return official


def strictness(parts: pd.Series) -> pd.Series:
    """Return the position of each part in STRICTEST: 0 is test."""
    return parts.map({part: n for n, part in enumerate(STRICTEST)}).astype(int)


def twins(table: pd.DataFrame, bits: int | None) -> dict[int, str]:
    """Return the rows to leave out because their group has rows in a stricter part, with reasons.

    Args:
        table: image_id, patient_id, sha256, phash, group and part.
        bits: perceptual hashes within this many bits are duplicates; None compares bytes only.

    Returns:
        A reason by row label for each row that is not in the strictest part of its group. It names a
        duplicate or another photograph of the patient; for a row linked to the stricter part only through
        other rows, it names the first photograph of the group there.
    """
    strict = strictness(table["part"])
    laxer = strict > strict.groupby(table["group"]).transform("min")
    tied = table[table["group"].isin(table.loc[laxer, "group"])].assign(n=strict).sort_values("image_id")
    named = (tied["image_id"] + " in the official " + tied["part"] + " part").to_dict()
    first = tied.sort_values("n", kind="stable").drop_duplicates("group")
    of_group = dict(zip(first["group"], first.index.map(named), strict=True))
    why = {row: f"tied by copies to {of_group[table['group'][row]]}" for row in table.index[laxer].tolist()}

    rows = tied.assign(dataset="").reset_index(names="row")
    pairs = pair_up(rows, rows["part"], bits)
    pairs = pairs[pairs["level"].isin(STRONGEST)]
    place = pairs["level"].map({level: n for n, level in enumerate(STRONGEST)})
    label, strictest = rows["row"].tolist(), strict.to_dict()
    ends = zip(
        pairs["a"].tolist(), pairs["b"].tolist(), place.tolist(), pairs["distance"].tolist(), strict=True
    )
    for a, b, level, _ in sorted(ends, key=lambda pair: pair[2:], reverse=True):
        one, other = sorted((label[a], label[b]), key=strictest.__getitem__)
        if strictest[one] < strictest[other]:  # the strongest overlap comes last and is kept
            tie = "its patient has" if STRONGEST[level] == "patient" else "a copy of"
            why[other] = f"{tie} {named[one]}"
    return why


def leave_out(table: pd.DataFrame, why: dict[int, str]) -> pd.DataFrame:
    """Remove the split of the rows in ``why``; usable ones get the status ``filtered`` and the reason."""
    if not why:
        return table
    reasons = pd.Series(why)
    told = [f"{table['image_id'][row]}: {reason}" for row, reason in why.items()]
    shown = "; ".join(told[:SHOWN]) + (f"; and {len(told) - SHOWN} more" if len(told) > SHOWN else "")
    log.warning("%d photographs left out of the official split: %s", len(told), shown)
    table = table.assign(split=table["split"].mask(table.index.isin(reasons.index), pd.NA))
    used = reasons[table.loc[reasons.index, "status"].isin(["ok", "unlabelled"])]
    table.loc[used.index, "status"] = "filtered"
    table.loc[used.index, "reason"] = used
    return table
