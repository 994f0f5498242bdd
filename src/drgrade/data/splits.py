"""Divide photographs into training, validation and test parts: by patient, alike in grades, reproducibly.

Photographs that must stay together form a group: those of one patient, and, through byte-identical copies,
those of several. A group's stratum is its highest grade. The order within a stratum comes from a hash of seed
and group, so a draw does not depend on the order of the table.
"""

import csv
import logging
import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from drgrade.errors import UserError
from drgrade.params import Index
from drgrade.seeding import derive

log = logging.getLogger(__name__)

STRICTEST = ("test", "val", "train")
"""A group with rows in several parts goes to the first of these: what is tested is never trained on."""


def split_groups(table: pd.DataFrame) -> pd.Series:
    """Group of each row: its patient, or the first of the patients that share identical photographs.

    ``table`` has patient_id and sha256 (missing where there is no photograph). Copies are logged.
    """
    parent: dict[str, str] = {}

    def root(patient: str) -> str:
        while (above := parent.get(patient, patient)) != patient:
            patient = above
        return patient

    known = table[table["sha256"].notna() & table["sha256"].duplicated(keep=False)]
    for digest, patients in known.groupby("sha256", sort=True)["patient_id"].agg(list).items():
        first, *others = sorted(set(patients))
        if others:
            log.warning("same photograph (sha256 %s...) for patients %s: kept in one split", str(digest)[:12],
                        ", ".join([first, *others]))  # fmt: skip
        for other in others:
            low, high = sorted((root(first), root(other)))
            parent[high] = low
    return table["patient_id"].map(root)


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


def _official(table: pd.DataFrame, ordered: Sequence[str], params: Index) -> dict[str, str]:
    """The dataset's own parts; its training part is divided unless it names a validation part itself."""
    given = table.assign(part=table["official_split"].fillna("train")).groupby("group")["part"].agg(set)
    if "test" not in set(table["official_split"].dropna()):
        raise UserError(
            "index.scheme: official, but the dataset names no test photographs; use holdout or kfold"
        )
    mixed = [group for group, parts in given.items() if len(parts) > 1]
    if mixed:
        log.warning(
            "%d groups lie in several official parts; moved whole to the stricter: %s", len(mixed), mixed[:5]
        )
    parts = {group: next(part for part in STRICTEST if part in given[group]) for group in ordered}
    if "val" not in parts.values():
        training = [group for group in ordered if parts[group] == "train"]
        parts.update(dict.fromkeys(_pick(training, params.val_fraction), "val"))
    return parts


def _read_folds(path: Path, folds: int) -> dict[str, int]:
    """Fold of each image_id in a committed CSV (image_id, fold)."""
    try:
        lines = list(csv.DictReader(path.read_text().splitlines()))
    except FileNotFoundError:
        raise UserError(
            f"index.folds_file: {path}: no such file; commit it or set folds_file to null"
        ) from None
    found: dict[str, int] = {}
    for number, line in enumerate(lines, 2):
        image_id, fold = line.get("image_id"), line.get("fold") or ""
        if not image_id or not fold.isdigit() or int(fold) >= folds:
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


def assign_splits(table: pd.DataFrame, params: Index) -> pd.DataFrame:
    """``table`` with the columns split (train, val, test) and fold (0..k-1 under ``kfold``, else missing).

    Needs image_id, patient_id, sha256, grade, subset, official_split and status. Under ``kfold`` every
    grading row is ``train`` with a fold. Rows of the segmentation subset are never folded: official test rows
    are ``test``, of the others ``val_fraction`` (at least one, where there are two) is ``val``; identical
    copies of graded photographs follow those.

    Raises:
        UserError: the scheme does not suit the dataset, the folds file is broken, or a patient straddles.
    """
    table = table.assign(group=split_groups(table), fold=pd.Series(pd.NA, table.index, "Int8"))
    grading, masked = table[table["subset"] == "grading"], table[table["subset"] != "grading"]
    ordered = list(_order(grading["group"], grading["grade"], params.seed, "split").index)
    parts = dict.fromkeys(ordered, "train")
    if params.scheme == "kfold":
        table.loc[grading.index, "fold"] = _folds(grading, ordered, params).astype("Int8")
    elif len(grading):
        parts = (
            _holdout(ordered, params) if params.scheme == "holdout" else _official(grading, ordered, params)
        )
    tested = set(masked.loc[masked["official_split"] == "test", "group"])
    own = list(_order(masked["group"], masked["grade"], params.seed, "segmentation").index)
    free = [group for group in own if group not in tested and group not in parts]
    val = _pick(free, params.val_fraction or 0.1) if len(free) > 1 else set()
    for group in own:
        parts.setdefault(group, "test" if group in tested else "val" if group in val else "train")
    table["split"] = table["group"].map(parts).astype("string")
    check_disjoint(table)
    return table.drop(columns="group")


def check_disjoint(table: pd.DataFrame) -> None:
    """Make sure that no patient and no photograph (by sha256) is in two splits or two folds.

    Raises:
        UserError: some are; lists pairs of image_ids.
    """
    pairs = []
    for key in ("patient_id", "sha256"):
        for part in ("split", "fold"):
            rows = table[table[key].notna() & table[part].notna()]
            straddling = rows.groupby(key)[part].nunique() > 1
            for value in sorted(straddling[straddling].index):
                same = rows[rows[key] == value].drop_duplicates(part)
                (a, b), (x, y) = same["image_id"].iloc[:2], same[part].iloc[:2]
                pairs.append(f"{a} ({part} {x}) and {b} ({part} {y}): same {key}")
    if pairs:
        more = f"; and {len(pairs) - 10} more" if len(pairs) > 10 else ""
        raise UserError(f"splits overlap: {'; '.join(pairs[:10])}{more}; put each patient into one part")


def label_subset(rows: pd.DataFrame, fraction: float, seed: int) -> list[str]:
    """Image_ids of whole patients: ``fraction`` (0-1) of each grade, at least one patient of each.

    ``rows`` (image_id, patient_id, grade) are the training rows of an index. A smaller fraction with the same
    seed lies inside a larger one. Sorted.
    """
    strata = _order(rows["patient_id"], rows["grade"], seed, "labels")
    place = strata.groupby(strata).cumcount()
    wanted = (strata.groupby(strata).transform("size") * fraction).round().clip(lower=1)
    chosen = strata.index[place < wanted]
    return sorted(rows.loc[rows["patient_id"].isin(chosen), "image_id"])


def limit_patients(rows: pd.DataFrame, limit: int, seed: int) -> set[str]:
    """Whole patients with at most ``limit`` graded photographs, grades in proportion, each if it fits.

    ``rows`` (patient_id, grade) are graded photographs.
    """
    strata = _order(rows["patient_id"], rows["grade"], seed, "limit")
    # The n-th of m patients of a grade is due after a share (n + 1/2) / m: grades interleave in proportion.
    due = (strata.groupby(strata).cumcount() + 0.5) / strata.groupby(strata).transform("size")
    first = strata.groupby(strata).cumcount() > 0  # one patient of every grade before the second of any
    order = pd.DataFrame({"first": first, "due": due}).sort_values(["first", "due"], kind="stable").index
    counts = rows["patient_id"].value_counts()
    chosen: set[str] = set()
    room = limit
    for patient in order:
        if counts[patient] <= room:
            chosen.add(patient)
            room -= int(counts[patient])
    return chosen
