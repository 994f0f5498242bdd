"""Tables of photographs for the tests of splits."""

import numpy as np
import pandas as pd


def make_table(
    patients: list[tuple[int | None, ...]], official: list[str | None] | None = None
) -> pd.DataFrame:
    """Grading rows: for each patient the grades of its photographs."""
    rows = [
        (f"{n}_{k}", str(n), grade, (official or [None] * len(patients))[n])
        for n, grades in enumerate(patients)
        for k, grade in enumerate(grades)
    ]
    table = pd.DataFrame(rows, columns=["image_id", "patient_id", "grade", "official_split"])
    table["sha256"] = [f"{n:064x}" for n in range(len(table))]
    table["phash"] = pd.Series(pd.NA, table.index, "string")
    table = table.assign(subset="grading", status="ok", reason="")
    return table.astype({"grade": "Int8", "official_split": "string", "sha256": "string"})


def add_masked(table: pd.DataFrame, count: int, tested: int = 0) -> pd.DataFrame:
    masked = pd.DataFrame({"image_id": [f"A_{n}" for n in range(count)]})
    masked["patient_id"] = masked["image_id"]
    masked["sha256"] = [f"a{n:063x}" for n in range(count)]
    masked["phash"] = pd.Series(pd.NA, masked.index, "string")
    masked["official_split"] = ["test" if n < tested else "train" for n in range(count)]
    masked = masked.assign(subset="segmentation", status="ok", reason="", grade=pd.NA)
    both = pd.concat([table, masked], ignore_index=True)
    return both.astype({"grade": "Int8", "official_split": "string", "sha256": "string"})


def flipped(digits: str, bits: int) -> str:
    return f"{int(digits, 16) ^ ((1 << bits) - 1):064x}"


def hashed(table: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """With perceptual hashes that are far apart."""
    rng = np.random.default_rng(seed)
    return table.assign(phash=pd.array([rng.bytes(32).hex() for _ in range(len(table))], dtype="string"))
