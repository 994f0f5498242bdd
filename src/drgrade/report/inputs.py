"""Count the input photographs and labels by what happened to them; every input row is counted."""

import pandas as pd

COLUMNS = ["table", "subset", "status", "reason", "rows"]


def input_counts(index: pd.DataFrame, crops: pd.DataFrame) -> pd.DataFrame:
    """Count the rows of the index and of the crops by status and reason.

    Args:
        index: ``index.parquet``.
        crops: ``crops.parquet``.

    Returns:
        Columns table (index, crops), subset, status, reason, rows. The counts of each table add up to its
        length: a crop whose photograph is not in the index is counted with an empty subset.
    """
    subsets = index.drop_duplicates("image_id")[["image_id", "subset"]]
    tables = {"index": index, "crops": crops.merge(subsets, on="image_id", how="left")}
    counts = [
        table.assign(table=name, **{key: table[key].fillna("") for key in ("subset", "status", "reason")})
        .groupby(COLUMNS[:-1], sort=True)
        .size()
        .reset_index(name="rows")
        for name, table in tables.items()
    ]
    return pd.concat(counts, ignore_index=True)[COLUMNS]


def grade_counts(index: pd.DataFrame) -> pd.DataFrame:
    """Count usable graded photographs and their patients: a row for each split, a column for each grade."""
    usable = index[(index["subset"] == "grading") & (index["status"] == "ok") & index["grade"].notna()]
    usable = usable.assign(split=usable["split"].fillna("left out"))
    counts = usable.groupby(["split", "grade"]).size().unstack(fill_value=0)
    counts = counts.reindex(columns=range(5), fill_value=0)
    counts.columns = [f"grade {grade}" for grade in counts.columns]
    totals = usable.groupby("split").agg(photographs=("image_id", "size"), patients=("patient_id", "nunique"))
    return totals.join(counts).reset_index()
