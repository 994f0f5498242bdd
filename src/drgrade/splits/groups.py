"""Group photographs that must stay together: those of one patient, and copies of one another."""

import logging

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from drgrade.splits.duplicates import near_duplicates

log = logging.getLogger(__name__)


def split_groups(table: pd.DataFrame, bits: int | None) -> pd.Series:
    """Return the group of each row: its patient, or the first of several patients linked by duplicates.

    Args:
        table: image_id, patient_id, sha256 and phash (both missing where there is no photograph).
        bits: photographs whose perceptual hashes differ in at most this many bits (0-15) are duplicates; None
            compares bytes only.

    Returns:
        Group names, with the table's index. Duplicates under different patients are logged.
    """
    copies = _copies(table, bits)
    image, patient = table["image_id"].tolist(), table["patient_id"].tolist()
    found = dict.fromkeys(
        f"{image[a]} (patient {patient[a]}) and {image[b]} (patient {patient[b]}): {apart} bits apart"
        for a, b, apart in copies
        if patient[a] != patient[b]
    )
    if found:
        log.warning("%d copies under different patients, kept in one part: %s", len(found), "; ".join(found))
    return _linked(table["patient_id"], copies)


def linked_patients(table: pd.DataFrame, bits: int | None) -> pd.Series:
    """Like :func:`split_groups`, for groups that may be divided later: logs nothing."""
    return _linked(table["patient_id"], _copies(table, bits))


def _linked(patient_id: pd.Series, copies: list[tuple[int, int, int]]) -> pd.Series:
    """Return the first of the patients that ``copies`` link to the patient of each row."""
    patients = pd.factorize(patient_id)[0]
    ends = np.array([(a, b) for a, b, _ in copies], np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(ends), bool), patients[ends].T), shape=(patients.max(initial=-1) + 1,) * 2)
    return patient_id.groupby(connected_components(graph, directed=False)[1][patients]).transform("min")


def _copies(table: pd.DataFrame, bits: int | None) -> list[tuple[int, int, int]]:
    """Return pairs of positions of duplicates with the number of bits that differ; 0 for equal bytes."""
    copies = [(a, b, 0) for a, b in _repeats(table["sha256"])]
    return copies if bits is None else copies + near_duplicates(table["phash"].tolist(), bits)


def _repeats(keys: pd.Series) -> list[tuple[int, int]]:
    """Return pairs (first row, later row) of rows with equal keys."""
    codes = pd.factorize(keys)[0]
    again = np.flatnonzero(pd.Series(codes).duplicated() & (codes >= 0))
    first = dict(zip(codes[::-1].tolist(), range(len(codes) - 1, -1, -1), strict=True))
    return [(first[codes[row]], int(row)) for row in again]
