"""Keep a dataset's official test part unchanged: duplicates in other parts are left out, with a reason."""

import logging

import pandas as pd

from drgrade.splits.overlaps import pair_up

log = logging.getLogger(__name__)

STRICTEST = ("test", "val", "train")
"""Precedence of parts: of a group with rows in several official parts, only those in the first of these are
kept, so that no test photograph is trained on."""
STRONGEST = ("content", "perceptual", "patient")
"""Levels of overlap between two photographs; the first that applies is given as the reason."""
SHOWN = 10


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
