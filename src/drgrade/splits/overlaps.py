"""Find photographs and patients that are used both for training and for testing, within and across datasets.

Two photographs overlap at one of four levels: the same image_id or the same patient (within a dataset only,
as names differ between datasets), the same bytes, or perceptual hashes within a few bits (also across
datasets). Which overlaps are leaks depends on the use of the datasets; docs/splits.md explains the rule.
"""

import logging
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from drgrade.errors import UserError
from drgrade.files import atomic_write, sha256, write_json
from drgrade.params import Roles
from drgrade.schema import INDEX, read_table, takes_part
from drgrade.splits.duplicates import near_pairs

log = logging.getLogger(__name__)

KEYS = {"image": ["dataset", "image_id"], "patient": ["dataset", "patient_id"], "content": ["sha256"]}
"""Levels of exact overlap and the columns that must be equal. The fourth level is ``perceptual``."""
LEVELS = (*KEYS, "perceptual")
COLUMNS = ["dataset_a", "image_a", "part_a", "dataset_b", "image_b", "part_b", "level", "distance"]
LEAK_COLUMNS = ["dataset", "image_id", *COLUMNS, "use_a", "use_b", "verdict"]
SHOWN = 10
TRAIN, VAL, TEST = 1, 1 << 21, 1 << 22
"""Uses of a photograph as bits, the least strict first. Fold k, which the model of the fold is tested on and
the models of the other folds are trained on, is bit 20 - k."""

Ints = npt.NDArray[np.integer]


def pair_up(rows: pd.DataFrame, cells: pd.Series, bits: int | None) -> pd.DataFrame:
    """Return overlapping pairs of ``rows`` (dataset, image_id, patient_id, sha256, phash).

    The columns are a, b (positions in ``rows``, a < b), level and distance (differing bits of perceptual
    pairs, else 0). Perceptual pairs do not include identical content. Each row is paired only with the first
    overlapping row of each cell (such as a part): a thousand duplicates give about a thousand pairs, and
    every row that overlaps a cell has a pair in it.

    Raises:
        ValueError: ``bits`` is neither None nor 0-15, or a perceptual hash is invalid.
    """
    codes = {level: _codes(rows, keys) for level, keys in KEYS.items()}
    same = pd.DataFrame({"code": [], "other": [], "distance": []}, dtype=np.int64)
    found = [_linked(code, cells, same).assign(level=level) for level, code in codes.items()]
    if bits is not None:
        code, hashes = pd.factorize(rows["phash"])
        near = [np.stack(block) for block in near_pairs(hashes.tolist(), bits)]
        a, b, apart = np.concatenate(near, axis=1) if near else np.empty((3, 0), np.int64)
        both = {"code": np.r_[a, b], "other": np.r_[b, a], "distance": np.r_[apart, apart]}
        alike = _linked(code, cells, pd.DataFrame(both))
        content = codes["content"]
        identical = (content[alike["a"]] == content[alike["b"]]) & (content[alike["a"]] >= 0)
        found.append(alike[~identical].assign(level="perceptual"))
    return pd.concat(found, ignore_index=True)


def _codes(rows: pd.DataFrame, keys: list[str]) -> Ints:
    """Number the distinct keys; return each row's number, -1 if one of its key columns is missing."""
    number = rows.groupby(keys, sort=False).ngroup()
    return number.fillna(-1).to_numpy(np.int64)


def _linked(codes: Ints, cells: pd.Series, links: pd.DataFrame) -> pd.DataFrame:
    """Return pairs (a, b, distance) of rows whose codes are equal or in ``links`` (in both directions)."""
    rows = pd.DataFrame({"code": codes, "cell": cells.to_numpy(), "a": np.arange(len(codes))})
    shared = rows["code"].duplicated(keep=False) | rows["code"].isin(links["code"])
    rows = rows[(rows["code"] >= 0) & shared]
    own = pd.DataFrame({"code": rows["code"].unique(), "distance": 0}).assign(other=lambda t: t["code"])
    first = rows.drop_duplicates(["code", "cell"])[["code", "a"]].set_axis(["other", "b"], axis=1)
    pairs = rows.merge(pd.concat([own, links]), on="code").merge(first, on="other")
    pairs = pairs[pairs["a"] != pairs["b"]]
    low, high = np.minimum(pairs["a"], pairs["b"]), np.maximum(pairs["a"], pairs["b"])
    return pairs.assign(a=low, b=high)[["a", "b", "distance"]].drop_duplicates().sort_values(["a", "b"])


def part_of(table: pd.DataFrame) -> pd.Series:
    """Return each row's part: ``fold k`` with cross-validation, else train, val, test, or an empty string."""
    fold = "fold " + table["fold"].astype("Int8").astype("string")
    return fold.fillna(table["split"].astype("string")).fillna("")


def straddling(table: pd.DataFrame, bits: int | None) -> list[str]:
    """Return a sentence for each pair of a dataset's rows that overlap across splits or folds.

    ``table`` has image_id, patient_id, sha256, split, fold, and phash unless ``bits`` is None. Rows with and
    without a fold may overlap if both are in the same split.
    """
    rows = table.assign(dataset="", part=part_of(table)).sort_values("image_id", ignore_index=True)
    pairs = pair_up(rows, rows["part"], bits)
    part, split = rows["part"].to_numpy(), rows["split"].fillna("").to_numpy()
    fold = rows["fold"].astype("Int8").fillna(-1).to_numpy(np.int64)
    a, b = pairs["a"].to_numpy(), pairs["b"].to_numpy()
    apart = (split[a] != split[b]) | ((fold[a] != fold[b]) & (fold[a] >= 0) & (fold[b] >= 0))
    pairs = pairs[apart & (part[a] != "") & (part[b] != "")]
    image = rows["image_id"].to_numpy()
    return [
        f"{image[pair.a]} ({part[pair.a]}) and {image[pair.b]} ({part[pair.b]}): "
        f"{_reason(str(pair.level), int(str(pair.distance)))}"
        for pair in pairs.itertuples()
    ]


def _reason(level: str, distance: int) -> str:
    return f"same image but for {distance} bits" if level == "perceptual" else f"same {level}"


def _rows(indexes: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Return the usable rows of all datasets with dataset and part, sorted by dataset and image_id."""
    named = [table[takes_part(table)].assign(dataset=name) for name, table in indexes.items()]
    rows = pd.concat(named, ignore_index=True).sort_values(["dataset", "image_id"], ignore_index=True)
    return rows.assign(part=part_of(rows))


def _pairs(rows: pd.DataFrame, bits: int | None) -> pd.DataFrame:
    """Return overlapping pairs; those of one patient only across parts, as a part holds whole patients."""
    cells = rows.groupby(["dataset", "subset", "part"], sort=False).ngroup()
    pairs = pair_up(rows, cells, bits)
    part = rows["part"].to_numpy()
    return pairs[(pairs["level"] != "patient") | (part[pairs["a"]] != part[pairs["b"]])]


def _named(rows: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    ends = {
        f"{name}_{end}": rows.loc[pairs[end], column].to_numpy()
        for end in "ab"
        for name, column in (("dataset", "dataset"), ("image", "image_id"), ("part", "part"))
    }
    return pd.DataFrame(ends).assign(level=pairs["level"].to_numpy(), distance=pairs["distance"].to_numpy())


def uses(rows: pd.DataFrame, roles: Roles) -> Ints:
    """Return the uses of each row over all roles, as bits (see TRAIN); 0 if it is not used."""
    name, split = rows["dataset"], rows["split"].astype("string").fillna("")
    masked = rows["subset"] == "segmentation"
    graded = ~masked & rows["grade"].notna()
    part = split.map({"train": TRAIN, "val": VAL, "test": TEST}).fillna(0).to_numpy(np.int64, copy=True)
    folded = rows["fold"].notna().to_numpy()
    part[folded] = 1 << (20 - rows["fold"][folded].to_numpy(np.int64))
    # The detector's validation photographs select no model, but it is scored on them: a test use.
    lesions = np.where(split == "train", TRAIN, np.where(split == "", 0, TEST))
    blind = roles.pretrain == roles.grade  # one encoder per fold, pretrained without it
    pretrain = np.where(split == "train", part if blind else TRAIN, 0)
    return np.asarray(
        np.where(masked & (name == roles.lesions), lesions, 0)
        | np.where(name == roles.pretrain, pretrain, 0)
        | np.where(graded & (name == roles.grade), part, 0)
        | np.where(graded & name.isin(roles.external), TEST, 0),
        np.int64,
    )


def find_leaks(indexes: Mapping[str, pd.DataFrame], roles: Roles, bits: int | None) -> pd.DataFrame:
    """Find overlapping pairs within and across datasets; a leak is a pair of photographs with different uses.

    Args:
        indexes: content of ``index.parquet`` by dataset; rows that take no part are ignored.
        roles: which dataset has which role.
        bits: perceptual hashes within this many bits (0-15) are duplicates; None compares bytes only.

    Returns:
        One row per pair and level (image, patient, content, perceptual), with LEAK_COLUMNS. Each photograph
        is paired with the first photograph of every part it overlaps, not with all; pairs of a patient
        within one part are left out; a photograph with several uses is paired with itself. use_a and use_b
        are train, val, test, fold k or several of these, over all roles. The verdict is leak, same part,
        other label (a graded photograph and one that is only scored on its masks), or unused. dataset and
        image_id name the photograph of a leak to leave out: the one with the less strict use (train before
        val before test).
    """
    rows = _rows(indexes)
    use = uses(rows, roles)
    alone = np.flatnonzero(np.bitwise_count(use) > 1)
    own = pd.DataFrame({"a": alone, "b": alone, "level": "image", "distance": 0})
    pairs = pd.concat([own, _pairs(rows, bits)], ignore_index=True)
    a, b = use[pairs["a"]], use[pairs["b"]]
    apart = (np.bitwise_count(a | b) > 1) & (a > 0) & (b > 0)
    masked = (rows["subset"] == "segmentation").to_numpy()
    scored = masked & (use == TEST)  # on their masks, which no grade tells
    other_label = (scored[pairs["a"]] & ~masked[pairs["b"]]) | (scored[pairs["b"]] & ~masked[pairs["a"]])
    leak = apart & ~other_label
    drop = rows.loc[np.where((a & -a) <= (b & -b), pairs["a"], pairs["b"])].reset_index(drop=True)
    names = {bits_: _use_name(int(bits_)) for bits_ in np.unique(use)}
    found = _named(rows, pairs).assign(
        use_a=[names[one] for one in a],
        use_b=[names[one] for one in b],
        verdict=np.select(
            [leak, apart, (a == 0) | (b == 0)], ["leak", "other label", "unused"], default="same part"
        ),
        dataset=drop["dataset"].where(leak, ""),
        image_id=drop["image_id"].where(leak, ""),
    )
    order = ["verdict", "dataset_a", "image_a", "dataset_b", "image_b", "level"]
    return found[LEAK_COLUMNS].sort_values(order, ignore_index=True)


def _use_name(use: int) -> str:
    folds = [(1 << (20 - k), f"fold {k}") for k in range(20)]
    return " ".join(
        name for bit, name in [(TRAIN, "train"), *folds, (VAL, "val"), (TEST, "test")] if use & bit
    )


def _refuse(found: pd.DataFrame, levels: Collection[str], file: Path) -> None:
    """Raise a UserError if there are leaks at one of ``levels``; ``file`` is the list of leaks it names."""
    leaks = found[(found["verdict"] == "leak") & found["level"].isin(list(levels))]
    if leaks.empty:
        return
    shown = [
        f"{row.dataset_a}/{row.image_a} ({row.use_a}) and {row.dataset_b}/{row.image_b} ({row.use_b}): "
        f"{_reason(str(row.level), int(str(row.distance)))}"
        for row in leaks.head(SHOWN).itertuples()
    ]
    more = f"; and {len(leaks) - SHOWN} more" if len(leaks) > SHOWN else ""
    raise UserError(
        f"{len(leaks)} overlaps between training and test: {'; '.join(shown)}{more}; "
        # a copy, because the file is deleted once there are no more leaks
        f"leave out one of each: copy {file}, which names those on the training side, and give the copy as "
        f"datasets.<name>.exclude"
    )


def overlaps(
    indexes: Mapping[str, Path],
    roles: Roles,
    bits: int | None,
    out: Path,
    refuse: Collection[str] = LEVELS,
) -> None:
    """Run the stage ``overlaps``: write ``overlaps.csv`` and ``overlaps.json``, then check for leaks.

    Args:
        indexes: path of ``index.parquet`` by dataset, for every dataset that has a role.
        roles: which dataset has which role.
        bits: maximum number of differing bits of duplicates, see :func:`find_leaks`.
        out: folder to write to. ``overlaps.csv`` has the columns LEAK_COLUMNS; if there are leaks,
            ``leaks.csv`` has only those; a copy of it can be given as ``datasets.<name>.exclude``.
        refuse: levels at which a leak is an error; leaks at other levels are only listed.

    Raises:
        UserError: there is such a leak; the files are written first.
    """
    tables = {name: read_table(path, INDEX) for name, path in sorted(indexes.items())}
    found = find_leaks(tables, roles, bits)
    with atomic_write(out / "overlaps.csv") as partial:
        found.to_csv(partial, index=False, lineterminator="\n")
    counts = found.groupby(["verdict", "level"]).size()
    summary = {
        "duplicate_bits": bits,
        "photographs": {name: int(takes_part(table).sum()) for name, table in tables.items()},
        "indexes": {name: sha256(path) for name, path in sorted(indexes.items())},
        "leaks": int((found["verdict"] == "leak").sum()),
        "pairs": {
            verdict: {str(level): int(n) for level, n in counts[verdict].items()}
            for verdict in sorted(set(found["verdict"]))
        },
    }
    write_json(summary, out / "overlaps.json")
    leaks = out / "leaks.csv"
    leaks.unlink(missing_ok=True)
    if summary["leaks"]:  # a separate file, because Snakemake deletes the declared outputs of a failed job
        found[found["verdict"] == "leak"].to_csv(leaks, index=False, lineterminator="\n")
    log.info("%d overlapping pairs, %d of them leaks", len(found), summary["leaks"])
    _refuse(found, refuse, leaks)
