"""Results by subgroup of the test photographs: eye, quality, resolution and site.

A model that is good on average may fail on the photographs of one camera, or on blurred ones. Bands have
fixed limits, so that they mean the same for every dataset. Differences between subgroups are no effects of
what names them: grades may be distributed differently.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from drgrade.bootstrap import interval
from drgrade.errors import UserError
from drgrade.evaluate.intervals import bootstrap, confusions
from drgrade.evaluate.metrics import REFERABLE, summary
from drgrade.evaluate.predictions import Measured, checked, gather
from drgrade.files import atomic_write
from drgrade.params import Evaluate

FEWEST = 10
"""Photographs below which a subgroup has no metrics."""
UNKNOWN = "unknown"
BANDS: dict[str, tuple[tuple[float, ...], tuple[str, ...]]] = {
    "quality": ((0.5, 0.9), ("below 0.5", "0.5 to 0.9", "0.9 or above")),
    "resolution": (
        (1000, 2000, 3000),
        ("below 1000 px", "1000 to 1999 px", "2000 to 2999 px", "3000 px or above"),
    ),
}
"""Lower limits of all bands but the lowest, and names of the bands. Quality is the computed one
(:mod:`drgrade.images.quality`), 0-1; resolution is the larger side of the original photograph."""
METRICS = ("accuracy", "referable_sensitivity", "referable_specificity", "mae")
"""Metrics beside the QWK, see :func:`drgrade.evaluate.metrics.summary`."""
COLUMNS = (
    "dataset", "experiment", "subgroup", "value", "n", "patients", "referable", "qwk", "qwk_low", "qwk_high",
    *METRICS, "reason",
)  # fmt: skip
"""Columns of ``subgroups.csv``; ``referable`` is the number of photographs of grade 2 or higher."""
DIGITS = 6


def write_subgroups(
    predictions: Sequence[Path], indexes: Mapping[str, pd.DataFrame], params: Evaluate, out: Path
) -> None:
    """Write ``subgroups.csv`` for all experiments and datasets.

    Args:
        predictions: one ``predictions.parquet`` for each training of each experiment.
        indexes: ``index.parquet`` of each dataset that was tested on, the own one first; see
            :data:`drgrade.schema.INDEX`.
        params: number of bootstrap resamples and their seed.
        out: the CSV.

    Raises:
        UserError: a table is damaged, the index of a dataset is not given, or lacks a tested photograph.
    """
    table = subgroups(gather(predictions), indexes, params)
    with atomic_write(out) as partial:
        table.to_csv(partial, index=False, lineterminator="\n")


def subgroups(
    tables: Mapping[str, pd.DataFrame], indexes: Mapping[str, pd.DataFrame], params: Evaluate
) -> pd.DataFrame:
    """Return the results by subgroup, means over seeds, with the columns COLUMNS.

    Rows are ordered by dataset as in ``indexes``, then by experiment as in ``tables``.

    Args:
        tables: predictions by experiment, see :func:`.gather`.
        indexes: as in :func:`write_subgroups`.
        params: number of bootstrap resamples and their seed.

    Raises:
        UserError: as in :func:`write_subgroups`.
    """
    measured = [one for name, table in tables.items() for one in _tested(name, table)]
    for one in measured:
        if one.dataset not in indexes:
            raise UserError(f"--external {one.dataset}: not given, and {one.name} was tested on it")
    place = {dataset: row for row, dataset in enumerate(indexes)}
    rows = []
    for one in sorted(measured, key=lambda one: place[one.dataset]):
        for subgroup, value, chosen in members(_rows_of(one, indexes[one.dataset]), one.dataset):
            about = {"dataset": one.dataset, "experiment": one.name, "subgroup": subgroup, "value": value}
            rows.append(about | _measure(one, chosen, params))
    return pd.DataFrame(rows).reindex(columns=list(COLUMNS)).round(DIGITS)


def members(index: pd.DataFrame, dataset: str) -> Iterator[tuple[str, str, NDArray[np.bool_]]]:
    """Yield each subgroup and value that occurs, and which photographs (N,) belong to it.

    Args:
        index: rows of the index, N photographs: eye, quality, width and height.
        dataset: name of the dataset, which is the site.
    """
    side = index[["width", "height"]].max(axis=1)
    found = {
        "eye": (("left", "right"), index["eye"].fillna(UNKNOWN).to_numpy(str)),
        "quality": (BANDS["quality"][1], _banded("quality", index["quality"])),
        "resolution": (BANDS["resolution"][1], _banded("resolution", side)),
        "site": ((dataset,), np.full(len(index), dataset)),
    }
    for subgroup, (names, values) in found.items():
        for name in (*names, UNKNOWN):
            if (chosen := values == name).any():
                yield subgroup, name, chosen


def _banded(subgroup: str, values: pd.Series) -> NDArray[np.str_]:
    """Name of the band of each value (N,), UNKNOWN where it is missing."""
    limits, names = BANDS[subgroup]
    numbers = values.to_numpy(np.float32, na_value=np.nan)
    # limits in the index's precision: a quality of 0.9 is not below 0.9
    band = np.array(names)[np.digitize(numbers, np.array(limits, np.float32)).clip(max=len(limits))]
    return np.where(np.isnan(numbers), UNKNOWN, band)


def _tested(name: str, table: pd.DataFrame) -> Iterator[Measured]:
    """Test predictions of one experiment on its own dataset, and on each external one."""
    rows = table[table["split"].isin(["test", "external"])]
    for _, own in rows.groupby("dataset", sort=True):
        yield checked(own, name)


def _rows_of(measured: Measured, index: pd.DataFrame) -> pd.DataFrame:
    """Rows of the index, in the order of the measured photographs.

    Raises:
        UserError: one is missing.
    """
    rows = index.set_index("image_id")
    names = measured.photographs["image_id"]
    if not (there := names.isin(rows.index)).all():
        gone = f"{names[~there].iloc[0]} of {measured.dataset}"
        raise UserError(f"{measured.name}: {gone} is not in index.parquet; train all on the same index")
    return rows.loc[names]


def _measure(one: Measured, chosen: NDArray[np.bool_], params: Evaluate) -> dict[str, Any]:
    """Counts and metrics of the chosen photographs (N,); counts and a reason if there are too few."""
    grades, patients = one.grades[chosen], one.patients[chosen]
    counts = {
        "n": len(grades),
        "patients": len(np.unique(patients)),
        "referable": int((grades >= REFERABLE).sum()),
    }
    if len(grades) < FEWEST:
        return counts | {"reason": f"fewer than {FEWEST} photographs"}
    predicted = one.predicted[:, chosen]
    by_seed = summary(confusions(grades, predicted, patients).matrices()[0])
    means = {name: float(by_seed[name].mean()) for name in ("qwk", *METRICS)}
    low, high = interval(bootstrap(grades, predicted, patients, params.bootstrap, params.seed))
    return counts | means | {"qwk_low": float(low), "qwk_high": float(high)}
