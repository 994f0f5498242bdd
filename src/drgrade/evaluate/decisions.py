"""Decisions on test photographs: referable or not, sets of grades, which to leave to a clinician.

Decisions are made on the mean prediction of all training seeds, as for new photographs, by what was fitted on
validation photographs of the same fold. Intervals are 95 %, by a bootstrap over patients.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from drgrade.bootstrap import Floats, interval
from drgrade.evaluate.conformal import coverage, risk_coverage
from drgrade.evaluate.fits import Fit, Whose, mean_of
from drgrade.evaluate.intervals import resampled
from drgrade.evaluate.metrics import REFERABLE, divide, qwk, to_grades
from drgrade.evaluate.operating import POINTS
from drgrade.evaluate.predictions import PROBABILITIES
from drgrade.params import Calibrate, Evaluate
from drgrade.schema import GRADES

RATES = ("sensitivity", "specificity", "ppv", "npv")
OPERATING_COLUMNS = (
    "experiment", "point", "calibration", "threshold", "val_n", "val_sensitivity", "val_specificity", "n",
    "patients", *(f"{rate}{end}" for rate in RATES for end in ("", "_low", "_high")),
)  # fmt: skip
"""Columns of ``operating.csv``; the threshold is the mean over folds."""
SETS_COLUMNS = (
    "experiment", "alpha", "val_patients", "n", "patients", "coverage", "coverage_low", "coverage_high",
    "mean_size", "single", *(f"coverage_{grade}" for grade in GRADES), "accepted", "accuracy",
    "accuracy_accepted", "qwk", "qwk_accepted", "aurc",
)  # fmt: skip
"""Columns of ``sets.csv``; ``accepted`` is the share of photographs that are not left to a clinician."""
RISK_COLUMNS = ("experiment", "coverage", "risk")
"""Columns of ``risk_coverage.csv``: the share of photographs accepted, and of wrong grades among them."""
SHARES = np.linspace(0.05, 1, 20)
"""Shares at which the risk-coverage curve is written."""


@dataclass(frozen=True)
class Decided:
    """Decisions on the test photographs of one experiment, by the mean of its seeds (N photographs).

    Attributes:
        name: name of the experiment.
        grades: true grades, int64 (N,).
        patients: patient of each photograph, str (N,).
        predicted: grades of the mean score at the midpoints, int64 (N,).
        probabilities: mean probabilities before calibration, float64 (N, 5).
        calibrated: calibrated probabilities, float64 (N, 5).
        referable: calibrated probability of referable DR (N,).
        called: which photographs are called referable, by operating point, each bool (N,).
        sets: which grades are in the set of each photograph, bool (N, 5).
        fits: what the decisions were made by, one for each fold.
    """

    name: str
    grades: NDArray[np.int64]
    patients: NDArray[np.str_]
    predicted: NDArray[np.int64]
    probabilities: Floats
    calibrated: Floats
    referable: Floats
    called: Mapping[str, NDArray[np.bool_]]
    sets: NDArray[np.bool_]
    fits: list[Fit]


def decide(name: str, table: pd.DataFrame, fits: Mapping[Whose, Fit]) -> Decided | None:
    """Decide on the test photographs of an experiment; None if a fold has no validation photographs.

    Args:
        name: name of the experiment.
        table: its predictions, all seeds and folds.
        fits: what was fitted on its validation photographs.
    """
    rows = mean_of(table[table["split"] == "test"])
    folds = [None if pd.isna(fold) else int(fold) for fold in rows["fold"]]
    used = {fold: fits.get((None, fold)) for fold in dict.fromkeys(folds)}
    found = [fit for fit in used.values() if fit is not None and fit.n]
    if len(found) < len(used):
        return None
    probabilities = rows[PROBABILITIES].to_numpy(float)
    points = [point for point in POINTS if all(point in fit.points for fit in found)]
    calibrated, referable = np.empty((len(rows), len(GRADES))), np.empty(len(rows))
    sets = np.empty((len(rows), len(GRADES)), dtype=bool)
    called = {point: np.empty(len(rows), dtype=bool) for point in points}
    for fit in found:
        here = np.array([fold == fit.fold for fold in folds])
        calibrated[here] = fit.calibrated(probabilities[here])
        referable[here] = fit.referable(probabilities[here])
        assert fit.sets is not None
        sets[here] = fit.sets.sets(probabilities[here])
        for point in points:
            called[point][here] = fit.called(probabilities[here], point)
    return Decided(
        name=name,
        grades=rows["grade"].to_numpy(np.int64),
        patients=rows["patient_id"].to_numpy(str),
        predicted=to_grades(rows["score"]).astype(np.int64),
        probabilities=probabilities,
        calibrated=calibrated,
        referable=referable,
        called=called,
        sets=sets,
        fits=found,
    )


def operating_rows(decided: Decided, params: Evaluate) -> list[dict[str, Any]]:
    """Return a row of ``operating.csv`` for each operating point."""
    positive, rows = decided.grades >= REFERABLE, []
    for name, called in decided.called.items():
        counts = np.stack(
            [positive & called, positive & ~called, ~positive & ~called, ~positive & called], axis=1
        )
        points = [fit.points[name] for fit in decided.fits]
        found = sum(point.true_positives for point in points)
        passed = sum(point.true_negatives for point in points)
        row: dict[str, Any] = {
            "experiment": decided.name,
            "point": name,
            "calibration": ", ".join(sorted({fit.method for fit in decided.fits})),
            "threshold": np.mean([point.threshold for point in points]),
            "val_n": sum(fit.n for fit in decided.fits),
            "val_sensitivity": found / (found + sum(point.false_negatives for point in points)),
            "val_specificity": passed / (passed + sum(point.false_positives for point in points)),
            "n": len(called),
            "patients": len(np.unique(decided.patients)),
        }
        rows.append(row | _with_intervals(counts, decided.patients, params))
    return rows


def _with_intervals(
    counts: NDArray[np.bool_], patients: NDArray[np.str_], params: Evaluate
) -> dict[str, float]:
    """RATES and their intervals.

    Args:
        counts: (N, 4) which photographs are true positives, false negatives, true negatives, false positives.
        patients: (N,) their patients.
        params: number of bootstrap resamples and their seed.
    """
    names, place = np.unique(patients, return_inverse=True)
    by_patient = np.zeros((len(names), counts.shape[1]))
    np.add.at(by_patient, place, counts)

    def rates(weights: Floats) -> dict[str, Floats]:
        tp, fn, tn, fp = (weights @ by_patient).T
        return {
            "sensitivity": divide(tp, tp + fn),
            "specificity": divide(tn, tn + fp),
            "ppv": divide(tp, tp + fp),
            "npv": divide(tn, tn + fn),
        }

    values = rates(np.ones((1, len(names))))
    draws = resampled(rates, len(names), params.bootstrap, params.seed)
    found: dict[str, float] = {}
    for rate in RATES:
        low, high = interval(draws[rate])
        found |= {rate: float(values[rate][0]), f"{rate}_low": float(low), f"{rate}_high": float(high)}
    return found


def sets_row(decided: Decided, calibrate: Calibrate, params: Evaluate) -> dict[str, Any]:
    """Return the row of ``sets.csv``: what the sets hold, and what leaving some to a clinician gains."""
    measured = coverage(decided.grades, decided.sets)
    covered = decided.sets[np.arange(len(decided.grades)), decided.grades]
    names, place = np.unique(decided.patients, return_inverse=True)
    by_patient = np.stack([np.bincount(place, covered), np.bincount(place)], axis=1)

    def share(weights: Floats) -> dict[str, Floats]:
        held, n = (weights @ by_patient).T
        return {"coverage": divide(held, n)}

    low, high = interval(resampled(share, len(names), params.bootstrap, params.seed)["coverage"])
    accepted = decided.sets.sum(axis=1) <= calibrate.max_grades
    right = decided.predicted == decided.grades
    return {
        "experiment": decided.name,
        "alpha": calibrate.alpha,
        "val_patients": sum(fit.patients for fit in decided.fits),
        "n": len(decided.grades),
        "patients": len(names),
        "coverage": measured["coverage"],
        "coverage_low": float(low),
        "coverage_high": float(high),
        "mean_size": measured["mean_size"],
        "single": measured["single"],
        **{f"coverage_{row['grade']}": row["coverage"] for row in measured["grades"]},
        "accepted": accepted.mean(),
        "accuracy": right.mean(),
        "accuracy_accepted": right[accepted].mean() if accepted.any() else np.nan,
        "qwk": qwk(decided.grades, decided.predicted),
        "qwk_accepted": qwk(decided.grades[accepted], decided.predicted[accepted])
        if accepted.any()
        else np.nan,
        "aurc": risk_coverage(decided.calibrated.max(axis=1), ~right).area,
    }


def risk_rows(decided: Decided) -> list[dict[str, Any]]:
    """Return the rows of ``risk_coverage.csv``: the most probable grade's probability is the confidence."""
    curve = risk_coverage(decided.calibrated.max(axis=1), decided.predicted != decided.grades)
    return [{"experiment": decided.name, "coverage": share, "risk": curve.risk_at(share)} for share in SHARES]


def decision_tables(
    decided: Sequence[Decided], calibrate: Calibrate, params: Evaluate
) -> dict[str, pd.DataFrame]:
    """Return ``operating``, ``sets`` and ``risk_coverage``, tables with the columns named above.

    Args:
        decided: experiments in the order of the rows.
        calibrate: how much a set may miss, and how many grades it may hold to be accepted.
        params: number of bootstrap resamples and their seed.
    """
    operating = [row for one in decided for row in operating_rows(one, params)]
    sets = [sets_row(one, calibrate, params) for one in decided]
    risks = [row for one in decided for row in risk_rows(one)]
    return {
        "operating": pd.DataFrame(operating, columns=list(OPERATING_COLUMNS)),
        "sets": pd.DataFrame(sets, columns=list(SETS_COLUMNS)),
        "risk_coverage": pd.DataFrame(risks, columns=list(RISK_COLUMNS)),
    }
