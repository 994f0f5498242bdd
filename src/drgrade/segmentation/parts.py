"""Which photographs with lesion masks a network is trained, validated and tested on.

Snakemake imports this module to list the trainings, so what is slow to import is imported where it is used.
"""

import pandas as pd

from drgrade.errors import UserError
from drgrade.params import Index, Segmentation
from drgrade.rng import derive
from drgrade.schema import takes_part

HOLDOUT = "holdout"
"""Name of the only part without cross-validation."""


def part_names(params: Segmentation) -> list[str]:
    """Names of the parts, one for each network to train."""
    return [HOLDOUT] if params.folds is None else [f"fold{fold}" for fold in range(params.folds)]


def parts(index: pd.DataFrame, params: Segmentation) -> dict[str, pd.Series]:
    """Divide the photographs with masks, once for each part.

    Without ``folds`` the split is that of the index. Otherwise groups (patients, joined where they share a
    photograph: :func:`drgrade.splits.groups.split_groups`) are numbered in the order of a seeded hash. In
    fold k, groups whose number modulo ``folds`` is k are tested, those of the next fold are validated on,
    and the others are trained on. Test photographs of the index are in no fold.

    Args:
        index: ``index.parquet``.
        params: ``folds`` and ``seed``.

    Returns:
        For each part by name the split (train, val or test) of each photograph by image_id, sorted.

    Raises:
        UserError: fewer groups than folds, or nothing to train or to validate on.
    """
    table = index[(index["subset"] == "segmentation") & takes_part(index) & index["split"].notna()]
    if params.folds is None:
        found = {HOLDOUT: table["split"]}
    else:
        group = _groups(index)[table.index][table["split"] != "test"]
        found = _folds(group, params.folds, params.seed)
    named = {}
    for name, split in found.items():
        named[name] = split.set_axis(table.loc[split.index, "image_id"]).sort_index().rename("split")
        for needed in ("train", "val"):
            if needed not in named[name].array:
                raise UserError(
                    f"segmentation: {name} has no photograph with masks in split {needed}; give the dataset "
                    "more of them, see their status in its index.parquet, or set use to false"
                )
    return named


def _groups(index: pd.DataFrame) -> pd.Series:
    """Group of each row, over all subsets; duplicates are those of the default ``index.duplicate_bits``."""
    from drgrade.splits.groups import split_groups

    # unreadable files (such as empty downloads) may have equal bytes but are not duplicates
    seen = index.assign(sha256=index["sha256"].mask(index["status"] == "unreadable", pd.NA))
    return split_groups(seen, Index().duplicate_bits)


def _folds(group: pd.Series, folds: int, seed: int) -> dict[str, pd.Series]:
    """Split of each row in each fold, given the rows' groups."""
    ordered = sorted(group.unique(), key=lambda name: derive(seed, "segmentation folds", name))
    if len(ordered) < folds:
        raise UserError(
            f"segmentation.folds: {folds} folds, but only {len(ordered)} patients with masks outside the "
            "test split; lower it, or set it to null"
        )
    own = group.map({name: number % folds for number, name in enumerate(ordered)})
    splits = {}
    for fold in range(folds):
        roles = dict.fromkeys(range(folds), "train") | {fold: "test", (fold + 1) % folds: "val"}
        splits[f"fold{fold}"] = own.map(roles)
    return splits
