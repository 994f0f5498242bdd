"""The stage ``robustness``: grade corrupted copies of the test photographs with trained models."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from drgrade.bootstrap import Floats, interval
from drgrade.errors import UserError
from drgrade.evaluate.detection import rank
from drgrade.evaluate.intervals import confusions, qwk_of, resampled
from drgrade.evaluate.metrics import REFERABLE, to_grades
from drgrade.evaluate.predictions import NOTHING_TESTED
from drgrade.files import atomic_write
from drgrade.grading.assembly import Assembly, assemble
from drgrade.grading.base import Photographs
from drgrade.images.dataset import CroppedDataset
from drgrade.params import Robustness
from drgrade.robustness.chart import robustness_chart
from drgrade.robustness.corruptions import CorruptedImages
from drgrade.schema import PREDICTIONS, read_table

log = logging.getLogger(__name__)

CLEAN = "none"
"""Name of the condition without a corruption, severity 0."""
MEAN = "mean"
"""Name of the row with the mean over all corruptions and severities; it has no severity."""
DIGITS = 6


@dataclass(frozen=True)
class Condition:
    """A corruption and its severity, 1-5; CLEAN has severity 0."""

    corruption: str
    severity: int


def measure_robustness(
    params: Robustness, data: CroppedDataset, trainings: Mapping[str, Path], out: Path
) -> None:
    """Write ``robustness.csv`` and ``figures/robustness.png``.

    The table has a row for each experiment and condition, the uncorrupted photographs first, and one for the
    mean over all corruptions and severities: the quadratic weighted kappa and its drop from the uncorrupted
    photographs with 95 % intervals, and the area under the ROC curve for referable DR. The drop is paired:
    both are measured on the same photographs and the same resamples of the patients.

    Corruptions are applied to crops, before they are scaled to a network's input.

    Args:
        params: corruptions, severities, number of resamples and their seed.
        data: the dataset that the experiments were trained and tested on.
        trainings: folder of one training (seed and fold) for each experiment, with ``model/`` and
            ``predictions.parquet``, which says which photographs were tested.
        out: folder to write to.

    Raises:
        UserError: a model or a table is missing or damaged, a grader needs more than crops, or nothing was
            tested.
    """
    graded = data.graded().set_index("image_id")
    measured = []
    for name, folder in trainings.items():
        model = _assembled(folder / "model")
        photographs = Photographs(data.images, _tested(folder / "predictions.parquet", graded))
        conditions = _conditions(params)
        scores = np.stack([_scores(model, photographs, condition) for condition in conditions])
        table = robustness_table(photographs.table, conditions, scores, params)
        log.info("%s: mean drop of QWK %.3f", name, table["drop"].iloc[-1])
        table.insert(0, "experiment", name)
        measured.append(table)
    everything = pd.concat(measured, ignore_index=True)
    with atomic_write(out / "robustness.csv") as partial:
        everything.to_csv(partial, index=False, lineterminator="\n")
    robustness_chart(everything, out / "figures/robustness.png")


def robustness_table(
    photographs: pd.DataFrame, conditions: Sequence[Condition], scores: Floats, params: Robustness
) -> pd.DataFrame:
    """Measure the scores of one experiment.

    Args:
        photographs: patient_id and grade of N photographs.
        conditions: K conditions, CLEAN first.
        scores: (K, N) expected grades.
        params: number of resamples and their seed.

    Returns:
        corruption, severity, n, patients, qwk, qwk_low, qwk_high, drop, drop_low, drop_high and
        referable_auc; a row for each condition, and MEAN last.

    Raises:
        UserError: a score is not a finite number.
    """
    grades, patients = photographs["grade"].to_numpy(np.int64), photographs["patient_id"].to_numpy(str)
    counted = confusions(grades, np.stack([to_grades(row) for row in scores]), patients)
    units = counted.by_patient.shape[0]

    def kappas(weights: Floats | None = None) -> dict[str, Floats]:
        return {"qwk": qwk_of(counted.matrices(weights))}

    qwk = _with_mean(kappas()["qwk"])
    draws = _with_mean(resampled(kappas, units, params.bootstrap, params.seed)["qwk"])
    auc = np.array([[rank(grades >= REFERABLE, row).auroc()[0] for row in scores]])
    (low, high), (drop_low, drop_high) = interval(draws), interval(draws[:, :1] - draws)
    columns = {
        "corruption": [*(condition.corruption for condition in conditions), MEAN],
        "severity": pd.array([*(condition.severity for condition in conditions), None], "Int64"),
        "n": len(photographs),
        "patients": units,
        "qwk": qwk[0], "qwk_low": low, "qwk_high": high,
        "drop": qwk[0, 0] - qwk[0], "drop_low": drop_low, "drop_high": drop_high,
        "referable_auc": _with_mean(auc)[0],
    }  # fmt: skip
    return pd.DataFrame(columns).round(DIGITS)


def _with_mean(values: Floats) -> Floats:
    """Add a column to values (R, K): the mean over all conditions but the first, CLEAN."""
    return np.column_stack([values, values[:, 1:].mean(axis=1)])


def _conditions(params: Robustness) -> list[Condition]:
    """CLEAN, and each corruption at each severity."""
    pairs = product(params.corruptions, sorted(params.severities))
    return [Condition(CLEAN, 0), *(Condition(name, severity) for name, severity in pairs)]


def _scores(model: Assembly, photographs: Photographs, condition: Condition) -> Floats:
    """Expected grades (N,) of photographs under a condition."""
    images = photographs.images
    if condition.severity:
        images = CorruptedImages(images, condition.corruption, condition.severity)
    seen = model.completed(replace(photographs, images=images))
    return np.asarray(model.grader.predict(seen).score, np.float64)


def _assembled(folder: Path) -> Assembly:
    """Load a trained model and those it builds on.

    Raises:
        UserError: one of them is missing or damaged, or needs detected lesions.
    """
    model = assemble(folder)
    for grader in (model.grader, *model.members.values()):
        if "boxes" in grader.needs:
            raise UserError(
                f"robustness.experiments: the grader {grader.params.grader!r} of {folder} needs detected "
                "lesions, which are not searched for in corrupted photographs; take the experiment out"
            )
    return model


def _tested(predictions: Path, graded: pd.DataFrame) -> pd.DataFrame:
    """Rows of the graded photographs, indexed by image_id, that a training was tested on.

    Raises:
        UserError: there are none, or one is no longer in the dataset.
    """
    table = read_table(predictions, PREDICTIONS)
    tested = sorted(table.loc[table["split"] == "test", "image_id"])
    if not tested:
        raise UserError(f"{predictions}: {NOTHING_TESTED}")
    if gone := sorted(set(tested) - set(graded.index)):
        raise UserError(f"{predictions}: {gone[0]} has no grade or crop any more; run the stage grade again")
    return graded.loc[tested].reset_index()
