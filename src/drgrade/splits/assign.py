"""Divide photographs into training, validation and test parts: by patient, stratified, reproducibly.

Photographs that must stay together form a group: all those of one patient, and those of several patients who
are linked by duplicates (identical bytes, or perceptual hashes within a few bits). A group's stratum is its
highest grade. The order within a stratum is given by a hash of seed and group, so a split does not depend on
the order of the table.
"""

import logging
import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from drgrade.errors import UserError
from drgrade.params import Index
from drgrade.rng import derive
from drgrade.splits.folds import assign_folds
from drgrade.splits.groups import split_groups
from drgrade.splits.lists import split_as_listed
from drgrade.splits.official import Official, leave_out, official_parts
from drgrade.splits.overlaps import straddling

log = logging.getLogger(__name__)

FRACTIONS = (0.01, 0.05, 0.1, 0.25, 1.0)
"""Label fractions commonly used in publications; each subset is contained in the next."""
SHOWN = 10


def _order(groups: pd.Series, grades: pd.Series, seed: int, purpose: str) -> pd.Series:
    """Return the stratum of each distinct group, sorted by stratum and within it by a seeded hash."""
    strata = grades.astype("Float64").fillna(-1).groupby(groups.to_numpy()).max()
    named = [(str(group), int(stratum)) for group, stratum in strata.items()]
    shuffled = sorted(named, key=lambda item: (item[1], derive(seed, purpose, item[0])))
    return pd.Series([stratum for _, stratum in shuffled], index=[group for group, _ in shuffled])


def _pick(ordered: Sequence[str], fraction: float) -> set[str]:
    """Pick a fraction of the groups at even spacing, at least one unless the fraction is 0.

    Because groups are ordered by stratum, each stratum contributes its share to within one group.
    """
    if fraction == 0 or not ordered:
        return set()
    count = min(max(round(fraction * len(ordered)), 1), len(ordered))
    return {ordered[math.floor((n + 0.5) * len(ordered) / count)] for n in range(count)}


def _holdout(ordered: Sequence[str], params: Index) -> dict[str, str]:
    test = _pick(ordered, params.test_fraction)
    rest = [group for group in ordered if group not in test]
    val = _pick(rest, params.val_fraction / (1 - params.test_fraction))
    return {group: "test" if group in test else "val" if group in val else "train" for group in ordered}


def _official(part: pd.Series, group: pd.Series, ordered: Sequence[str], params: Index) -> dict[str, str]:
    """Return the official part of each group of graded photographs, each group being in a single one.

    If there is no validation part, ``val_fraction`` of the training part's groups is drawn for it.
    """
    parts = {str(name): str(of) for name, of in part.groupby(group).first().items()}
    if "val" not in parts.values():
        training = [name for name in ordered if parts[name] == "train"]
        parts.update(dict.fromkeys(_pick(training, params.val_fraction), "val"))
    return parts


def assign_splits(table: pd.DataFrame, params: Index, split_file: Path | None = None) -> pd.DataFrame:
    """Add the columns split (train, val, test) and fold (0..k-1 with ``kfold``, else missing) to an index.

    Needs image_id, patient_id, sha256, phash, grade, subset, official_split, status and reason, and for
    patients by number (see :func:`drgrade.splits.official.official_parts`) named_patient. With ``kfold``
    every grading row has the split ``train`` and a fold. Rows of the segmentation subset have no fold:
    official test rows are ``test``, and of the others the share ``val_fraction`` (at least one group, if
    there are two) is ``val``; duplicates of graded photographs are in the same part as these.

    With ``official`` the dataset's test part is not changed: a graded training (or validation) photograph
    with a duplicate or the patient in the graded test (or validation) part gets no split, the status
    ``filtered`` and a reason that names the other photograph. So does one with masks, and also if the other
    one has masks too.

    Args:
        table: the rows to divide.
        params: scheme, fractions and seed.
        split_file: CSV (image_id, split) for the scheme ``file``; photographs that it leaves out get no
            split.

    Raises:
        UserError: the scheme does not suit the dataset, a file is invalid, or a patient or duplicates are in
            more than one part.
    """
    table = table.assign(fold=pd.Series(pd.NA, table.index, "Int8"))
    # unreadable files (such as empty downloads) may have equal bytes but are not duplicates
    seen = table.assign(sha256=table["sha256"].mask(table["status"] == "unreadable", pd.NA))
    official: Official | None = None
    if params.scheme == "official" and (table["subset"] == "grading").any():
        official = official_parts(seen, params)
        table["patient_id"] = seen["patient_id"] = official.patient_id
    table["group"] = split_groups(seen if official is None else seen[official.divided], params.duplicate_bits)
    grading, masked = table[table["subset"] == "grading"], table[table["subset"] != "grading"]
    ordered = list(_order(grading["group"], grading["grade"], params.seed, "split").index)
    listed = pd.Series(pd.NA, grading.index, "string")
    parts: dict[str, str] = {}
    if params.scheme == "file":
        if split_file is None:
            raise UserError(
                "datasets.<name>.split_file: the scheme 'file' needs a CSV (image_id, split); name it"
            )
        listed = split_as_listed(grading, split_file)
        parts = dict(zip(grading.loc[listed.notna(), "group"], listed.dropna(), strict=True))
    elif params.scheme == "kfold":
        table.loc[grading.index, "fold"] = assign_folds(grading, ordered, params).astype("Int8")
        parts = dict.fromkeys(ordered, "train")
    elif params.scheme == "holdout":
        parts = _holdout(ordered, params)
    elif official is not None:
        parts = _official(official.part[grading.index], grading["group"], ordered, params)
    parts |= _divide_masked(masked, params, parts)
    table["split"] = table["group"].map(parts).astype("string")
    if params.scheme == "file":
        table.loc[grading.index, "split"] = listed
    if official is not None:
        table.loc[official.masked_test, "split"] = "test"
        table = leave_out(table, official.left_out)
    check_disjoint(table.assign(sha256=seen["sha256"]), params.duplicate_bits)
    return table.drop(columns="group")


def _divide_masked(masked: pd.DataFrame, params: Index, parts: dict[str, str]) -> dict[str, str]:
    """Return the part of each group of the segmentation subset that is not already in ``parts``."""
    tested = set(masked.loc[masked["official_split"] == "test", "group"])
    own = list(_order(masked["group"], masked["grade"], params.seed, "segmentation").index)
    own = [group for group in own if group not in parts]
    free = [group for group in own if group not in tested]
    val = _pick(free, params.val_fraction or 0.1) if len(free) > 1 else set()
    return {group: "test" if group in tested else "val" if group in val else "train" for group in own}


def check_disjoint(table: pd.DataFrame, bits: int | None) -> None:
    """Check that no patient and no photograph (by content or perceptual hash) is in two splits or folds.

    A graded photograph may be a test photograph with masks too: its grade tells nothing of these.

    Raises:
        UserError: some are; the message lists pairs of image_ids.
    """
    masked = table["subset"] != "grading"
    no_masked_test = ~masked | (table["split"] != "test").fillna(True)
    pairs = list(dict.fromkeys(straddling(table[no_masked_test], bits) + straddling(table[masked], bits)))
    if pairs:
        more = f"; and {len(pairs) - SHOWN} more" if len(pairs) > SHOWN else ""
        raise UserError(f"splits overlap: {'; '.join(pairs[:SHOWN])}{more}; put each patient into one part")


def _shares(rows: pd.DataFrame, fractions: Sequence[float], seed: int) -> pd.DataFrame:
    """Return whether each patient (index) belongs to each fraction (columns) of its stratum; bool."""
    strata = _order(rows["patient_id"], rows["grade"], seed, "labels")
    place, size = strata.groupby(strata).cumcount(), strata.groupby(strata).transform("size")
    return pd.DataFrame({share: place < (size * share).round().clip(lower=1) for share in fractions})


def label_subset(rows: pd.DataFrame, fraction: float, seed: int) -> list[str]:
    """Select ``fraction`` (0-1) of the patients of each grade, at least one; return their image_ids, sorted.

    ``rows`` (image_id, patient_id, grade) are the training rows of an index; a patient's grade is the highest
    of its photographs. With the same seed, the subset of a smaller fraction is contained in a larger one.
    """
    among = _shares(rows, [fraction], seed)[fraction]
    return sorted(rows.loc[rows["patient_id"].isin(among.index[among]), "image_id"])


def label_fractions(rows: pd.DataFrame, seed: int) -> pd.Series:
    """Return the smallest of FRACTIONS whose :func:`label_subset` contains each row, with the rows' index."""
    smallest = _shares(rows, FRACTIONS, seed).idxmax(axis=1)  # subsets are nested: the first true column
    return rows["patient_id"].map(smallest).astype("Float64")


def limit_patients(rows: pd.DataFrame, limit: int, seed: int) -> set[str]:
    """Select patients with at most ``limit`` graded photographs in total, with the grades in proportion.

    ``rows`` (patient_id, grade) are graded photographs. Each grade gets at least one patient if the limit
    allows it.
    """
    strata = _order(rows["patient_id"], rows["grade"], seed, "limit")
    # The n-th of m patients of a grade has the position (n + 1/2) / m, so grades interleave in proportion.
    due = (strata.groupby(strata).cumcount() + 0.5) / strata.groupby(strata).transform("size")
    first = strata.groupby(strata).cumcount() > 0  # one patient of every grade before the second of any
    order = pd.DataFrame({"first": first, "due": due}).sort_values(["first", "due"], kind="stable").index
    counts = rows["patient_id"].value_counts().to_dict()
    chosen: set[str] = set()
    room = limit
    for patient in order:
        if counts[patient] <= room:
            chosen.add(patient)
            room -= counts[patient]
    return chosen
