"""Divide photographs into training, validation and test parts: by patient, alike in grades, reproducibly.

Photographs that must stay together form a group: those of one patient, and, through copies (identical bytes,
or perceptual hashes within a few bits), those of several. A group's stratum is its highest grade. The order
within a stratum comes from a hash of seed and group, so a draw does not depend on the order of the table.
"""

import logging
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from drgrade.errors import UserError
from drgrade.params import Index
from drgrade.rng import derive
from drgrade.splits.duplicates import near_duplicates
from drgrade.splits.lists import read_lines, split_as_listed
from drgrade.splits.official import STRICTEST, leave_out, strictness, twins
from drgrade.splits.overlaps import straddling

log = logging.getLogger(__name__)

FRACTIONS = (0.01, 0.05, 0.1, 0.25, 1.0)
"""Shares of the labels that the field trains with; each lies inside the next."""
SHOWN = 10


def split_groups(table: pd.DataFrame, bits: int | None) -> pd.Series:
    """Group of each row: its patient, or the first of the patients that copies of photographs tie together.

    Args:
        table: with patient_id, sha256 and phash (missing where there is no photograph), and image_id.
        bits: photographs whose perceptual hashes differ in at most this many bits (0-15) are copies; None
            compares bytes alone.

    Returns:
        Names of groups, on the table's index. Copies under different patients are logged.
    """
    patients = pd.factorize(table["patient_id"])[0]
    copies = [(a, b, 0) for a, b in _repeats(table["sha256"])]
    if bits is not None:
        copies += near_duplicates(table["phash"].tolist(), bits)
    ends = np.array([(a, b) for a, b, _ in copies], np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(ends), bool), patients[ends].T), shape=(patients.max(initial=-1) + 1,) * 2)
    tied = connected_components(graph, directed=False)[1][patients]
    image, patient = table["image_id"].tolist(), table["patient_id"].tolist()
    found = dict.fromkeys(
        f"{image[a]} (patient {patient[a]}) and {image[b]} (patient {patient[b]}): {bits} bits apart"
        for a, b, bits in copies
        if patients[a] != patients[b]
    )
    if found:
        log.warning("%d copies under different patients, kept in one part: %s", len(found), "; ".join(found))
    return table["patient_id"].groupby(tied).transform("min")


def _repeats(keys: pd.Series) -> list[tuple[int, int]]:
    """Places of equal keys, each with the first of them."""
    codes = pd.factorize(keys)[0]
    again = np.flatnonzero(pd.Series(codes).duplicated() & (codes >= 0))
    first = dict(zip(codes[::-1].tolist(), range(len(codes) - 1, -1, -1), strict=True))
    return [(first[codes[row]], int(row)) for row in again]


def _order(groups: pd.Series, grades: pd.Series, seed: int, purpose: str) -> pd.Series:
    """Stratum of each distinct group, sorted by stratum and, within it, by a seeded hash."""
    strata = grades.astype("Float64").fillna(-1).groupby(groups.to_numpy()).max()
    named = [(str(group), int(stratum)) for group, stratum in strata.items()]
    shuffled = sorted(named, key=lambda item: (item[1], derive(seed, purpose, item[0])))
    return pd.Series([stratum for _, stratum in shuffled], index=[group for group, _ in shuffled])


def _pick(ordered: Sequence[str], fraction: float) -> set[str]:
    """Evenly spaced picks: every run of equal strata gives its share, to within one; one at least."""
    if fraction == 0 or not ordered:
        return set()
    count = min(max(round(fraction * len(ordered)), 1), len(ordered))
    return {ordered[math.floor((n + 0.5) * len(ordered) / count)] for n in range(count)}


def _holdout(ordered: Sequence[str], params: Index) -> dict[str, str]:
    test = _pick(ordered, params.test_fraction)
    rest = [group for group in ordered if group not in test]
    val = _pick(rest, params.val_fraction / (1 - params.test_fraction))
    return {group: "test" if group in test else "val" if group in val else "train" for group in ordered}


def _official(
    table: pd.DataFrame, ordered: Sequence[str], params: Index
) -> tuple[dict[str, str], dict[int, str]]:
    """The dataset's own parts; its training part is divided unless it names a validation part itself.

    With a ``val_fraction`` of 0 nothing validates, as in publications that know training and test alone: a
    validation part of the dataset's own is tested.

    Returns:
        The part of each group of graded photographs, the strictest that the dataset puts one of its rows in;
        and for each row (label in ``table``) that the dataset puts in a laxer one why it is left out.
    """
    official = table["official_split"].fillna("train")
    grading = table["subset"] == "grading"
    if params.val_fraction == 0:
        official = official.mask(grading & (official == "val"), "test")
    official = official.mask(~grading & (official == "val"), "train")  # what validates masks is drawn
    if not (grading & (official == "test") & table["grade"].notna()).any():
        raise UserError(
            "index.scheme: official, but the dataset has no graded test photographs; use holdout or kfold"
        )
    strictest = strictness(official).groupby(table["group"]).transform("min")
    groups = strictest[grading].groupby(table["group"]).first()
    parts = {str(group): STRICTEST[n] for group, n in groups.items()}
    if "val" not in parts.values():
        training = [group for group in ordered if parts[group] == "train"]
        parts.update(dict.fromkeys(_pick(training, params.val_fraction), "val"))
    return parts, twins(table.assign(part=official), params.duplicate_bits)


def _read_folds(path: Path, folds: int) -> dict[str, int]:
    """Fold of each image_id in a committed CSV (image_id, fold); lines without a fold are skipped."""
    found: dict[str, int] = {}
    for number, line in enumerate(read_lines(path, "index.folds_file"), 2):
        image_id, fold = line.get("image_id"), line.get("fold")
        if image_id and fold == "":
            continue
        if not image_id or not fold or not fold.isdigit() or int(fold) >= folds:
            raise UserError(
                f"{path}: line {number}: needs image_id and a fold of 0 to {folds - 1}; correct it"
            )
        if found.setdefault(image_id, int(fold)) != int(fold):
            raise UserError(
                f"{path}: line {number}: {image_id} is in fold {found[image_id]} already; keep one line"
            )
    return found


def _folds(table: pd.DataFrame, ordered: Sequence[str], params: Index) -> pd.Series:
    """Fold of each row of the grading subset."""
    if params.folds_file is None:
        fold = {group: n % params.folds for n, group in enumerate(ordered)}
        return table["group"].map(fold)
    path = Path(params.folds_file)
    fold = _read_folds(path, params.folds)
    graded = table["grade"].notna() & (table["status"] == "ok")
    lacking = table.loc[graded & ~table["image_id"].isin(fold.keys()), "image_id"]
    if len(lacking):
        raise UserError(
            f"{path}: no fold for {len(lacking)} graded photographs, such as {lacking.iloc[0]}; add them"
        )
    return table["image_id"].map(fold)


def assign_splits(table: pd.DataFrame, params: Index, split_file: Path | None = None) -> pd.DataFrame:
    """``table`` with the columns split (train, val, test) and fold (0..k-1 under ``kfold``, else missing).

    Needs image_id, patient_id, sha256, phash, grade, subset, official_split, status and reason. Under
    ``kfold`` every grading row is ``train`` with a fold. Rows of the segmentation subset are never folded:
    official test rows are ``test``, of the others ``val_fraction`` (at least one, where there are two) is
    ``val``; copies of graded photographs follow those.

    Under ``official`` the dataset's test part stays as it is: a photograph of training (or validation) whose
    copy or patient is in the test (or validation) part has no split, the status ``filtered`` and a reason
    that names its twin.

    Args:
        table: the rows to divide.
        params: scheme, shares and seed.
        split_file: CSV (image_id, split) that the scheme ``file`` divides by; photographs it leaves out have
            no split.

    Raises:
        UserError: the scheme does not suit the dataset, a file is broken, or a patient or copy straddles.
    """
    table = table.assign(fold=pd.Series(pd.NA, table.index, "Int8"))
    # broken downloads, such as empty files, are alike but no copies
    seen = table.assign(sha256=table["sha256"].mask(table["status"] == "unreadable", pd.NA))
    table["group"] = split_groups(seen, params.duplicate_bits)
    grading, masked = table[table["subset"] == "grading"], table[table["subset"] != "grading"]
    ordered = list(_order(grading["group"], grading["grade"], params.seed, "split").index)
    listed = pd.Series(pd.NA, grading.index, "string")
    parts: dict[str, str] = {}
    left_out: dict[int, str] = {}
    if params.scheme == "file":
        if split_file is None:
            raise UserError(
                "datasets.<name>.split_file: the scheme 'file' needs a CSV (image_id, split); name it"
            )
        listed = split_as_listed(grading, split_file)
        parts = dict(zip(grading.loc[listed.notna(), "group"], listed.dropna(), strict=True))
    elif params.scheme == "kfold":
        table.loc[grading.index, "fold"] = _folds(grading, ordered, params).astype("Int8")
        parts = dict.fromkeys(ordered, "train")
    elif params.scheme == "holdout":
        parts = _holdout(ordered, params)
    elif len(grading):
        parts, left_out = _official(table.assign(sha256=seen["sha256"]), ordered, params)
    parts |= _divide_masked(masked, params, parts)
    table["split"] = table["group"].map(parts).astype("string")
    if params.scheme == "file":
        table.loc[grading.index, "split"] = listed
    table = leave_out(table, left_out)
    check_disjoint(table.assign(sha256=seen["sha256"]), params.duplicate_bits)
    return table.drop(columns="group")


def _divide_masked(masked: pd.DataFrame, params: Index, parts: dict[str, str]) -> dict[str, str]:
    """Part of each group of the segmentation subset that is not among the graded ``parts``."""
    tested = set(masked.loc[masked["official_split"] == "test", "group"])
    own = list(_order(masked["group"], masked["grade"], params.seed, "segmentation").index)
    own = [group for group in own if group not in parts]
    free = [group for group in own if group not in tested]
    val = _pick(free, params.val_fraction or 0.1) if len(free) > 1 else set()
    return {group: "test" if group in tested else "val" if group in val else "train" for group in own}


def check_disjoint(table: pd.DataFrame, bits: int | None) -> None:
    """Make sure that no patient and no photograph (by content or perceptual hash) is in two splits or folds.

    Raises:
        UserError: some are; lists pairs of image_ids.
    """
    pairs = straddling(table, bits)
    if pairs:
        more = f"; and {len(pairs) - SHOWN} more" if len(pairs) > SHOWN else ""
        raise UserError(f"splits overlap: {'; '.join(pairs[:SHOWN])}{more}; put each patient into one part")


def _shares(rows: pd.DataFrame, fractions: Sequence[float], seed: int) -> pd.DataFrame:
    """For each patient (index) and fraction (columns), whether it is among that share of its stratum."""
    strata = _order(rows["patient_id"], rows["grade"], seed, "labels")
    place, size = strata.groupby(strata).cumcount(), strata.groupby(strata).transform("size")
    return pd.DataFrame({share: place < (size * share).round().clip(lower=1) for share in fractions})


def label_subset(rows: pd.DataFrame, fraction: float, seed: int) -> list[str]:
    """Image_ids of whole patients: ``fraction`` (0-1) of each grade, at least one patient of each.

    ``rows`` (image_id, patient_id, grade) are the training rows of an index. A smaller fraction with the same
    seed lies inside a larger one. Sorted.
    """
    among = _shares(rows, [fraction], seed)[fraction]
    return sorted(rows.loc[rows["patient_id"].isin(among.index[among]), "image_id"])


def label_fractions(rows: pd.DataFrame, seed: int) -> pd.Series:
    """The smallest of FRACTIONS whose :func:`label_subset` holds each row; on the rows' index."""
    smallest = _shares(rows, FRACTIONS, seed).idxmax(axis=1)  # nested: the first that is true
    return rows["patient_id"].map(smallest).astype("Float64")


def limit_patients(rows: pd.DataFrame, limit: int, seed: int) -> set[str]:
    """Whole patients with at most ``limit`` graded photographs, grades in proportion, each if it fits.

    ``rows`` (patient_id, grade) are graded photographs.
    """
    strata = _order(rows["patient_id"], rows["grade"], seed, "limit")
    # The n-th of m patients of a grade is due after a share (n + 1/2) / m: grades interleave in proportion.
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
