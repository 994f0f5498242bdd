"""All metrics of one experiment on one dataset, with 95 % intervals from a bootstrap over patients.

Grades are scores rounded at the midpoints, except in FITTED. For referable and sight-threatening DR,
photographs are ranked by the score; for the macro AUROC, by the probability of each grade; both without
calibration. All metrics are means over training seeds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from drgrade.bootstrap import Floats, interval
from drgrade.evaluate.detection import Ranking, macro_auroc, rank, rank_grades
from drgrade.evaluate.fits import METHODS
from drgrade.evaluate.intervals import Confusions, bootstrap, confusions, resampled
from drgrade.evaluate.metrics import REFERABLE, SIGHT_THREATENING, confusion, qwk, recall, summary
from drgrade.evaluate.predictions import Measured
from drgrade.evaluate.reliability import CalibrationSums, calibration_sums
from drgrade.params import Evaluate
from drgrade.schema import GRADES

CLASSES = {"referable": REFERABLE, "sight_threatening": SIGHT_THREATENING}
"""Lowest grade of each class that is detected by the score."""
PER_SEED = ("qwk", "accuracy", "macro_f1", "mae", "referable_auc")
"""Metrics in ``metrics.json`` for each training seed; for other metrics it has only the mean over seeds."""
FITTED = (
    "qwk_fitted", "qwk_fitted_low", "qwk_fitted_high", "fitted_gain", "fitted_gain_low", "fitted_gain_high",
)  # fmt: skip
"""QWK with thresholds fitted on validation photographs, and its gain over ``qwk``; both with intervals.

Empty if a training has no validation photographs.
"""
UNCALIBRATED = "none"
SHOWN_METHOD = "temperature"
"""Calibration behind ``ece_calibrated`` and ``brier_calibrated``: it needs the fewest photographs."""
CALIBRATION = ("ece", "brier", "nll", "referable_ece", "referable_brier")
"""Metrics of calibration, see :meth:`drgrade.evaluate.reliability.CalibrationSums.values`."""


@dataclass(frozen=True)
class Counted:
    """The photographs of one experiment, counted by patient: metrics of any weights of the patients.

    Attributes:
        patients: number of patients.
        confusions: true and predicted grades of all seeds.
        classes: for each of CLASSES, the photographs of each seed ranked by the score.
        grades: for each seed, the photographs ranked by each grade's probability.
        calibration: sums of each seed by method: UNCALIBRATED, and those that could be fitted.
    """

    patients: int
    confusions: Confusions
    classes: Mapping[str, Sequence[Ranking]]
    grades: Sequence[Sequence[Ranking]]
    calibration: Mapping[str, Sequence[CalibrationSums]]

    def values(self, weights: ArrayLike | None = None) -> dict[str, Floats]:
        """Return all metrics by name, each (R, S): a row for each resample, a column for each seed.

        Args:
            weights: (R, patients) weight of each patient; None for the sample itself (R = 1).

        Returns:
            Those of :func:`drgrade.evaluate.metrics.summary`; ``recall_0`` to ``recall_4``; of each class
            those of :meth:`.Ranking.values`, with its name before; ``macro_auroc``; and of each method those
            in CALIBRATION, with its name before, such as ``temperature_ece``.
        """
        matrices = self.confusions.matrices(weights)
        recalls = recall(matrices)
        found = summary(matrices) | {f"recall_{grade}": recalls[..., grade] for grade in GRADES}
        for kind, rankings in self.classes.items():
            by_seed = _by_seed([ranking.values(weights) for ranking in rankings])
            by_seed["auc"] = by_seed.pop("auroc")
            found |= {f"{kind}_{name}": value for name, value in by_seed.items()}
        found["macro_auroc"] = np.stack([macro_auroc(grades, weights) for grades in self.grades], axis=1)
        for method, sums in self.calibration.items():
            by_seed = _by_seed([one.values(weights) for one in sums])
            found |= {f"{method}_{name}": value for name, value in by_seed.items()}
        return found


def _by_seed(values: Sequence[Mapping[str, Floats]]) -> dict[str, Floats]:
    """Stack the metrics (R,) of each seed: (R, S)."""
    return {name: np.stack([one[name] for one in values], axis=1) for name in values[0]}


def count(experiment: Measured) -> Counted:
    """Count the photographs of an experiment by patient."""
    grades, patients = experiment.grades, experiment.patients
    probabilities = {UNCALIBRATED: experiment.probabilities, **experiment.calibrated}
    return Counted(
        patients=len(np.unique(patients)),
        confusions=confusions(grades, experiment.predicted, patients),
        classes={
            kind: [rank(grades >= lowest, score, patients) for score in experiment.score]
            for kind, lowest in CLASSES.items()
        },
        grades=[rank_grades(grades, one, patients) for one in experiment.probabilities],
        calibration={
            method: [calibration_sums(grades, one, patients) for one in of_seeds]
            for method, of_seeds in probabilities.items()
        },
    )


def seed_values(experiment: Measured) -> list[float]:
    """Return the test QWK of each seed."""
    return [qwk(experiment.grades, predicted) for predicted in experiment.predicted]


def qwk_draws(experiment: Measured, params: Evaluate) -> Floats:
    """Return the QWK, mean over seeds, on each bootstrap resample of the patients; (R,)."""
    return bootstrap(
        experiment.grades, experiment.predicted, experiment.patients, params.bootstrap, params.seed
    )


@dataclass(frozen=True)
class Result:
    """The metrics of one experiment.

    Attributes:
        entry: what ``metrics.json`` says of it.
        draws: QWK, mean over seeds, on each resample (R,), to compare experiments pairwise.
    """

    entry: dict[str, Any]
    draws: Floats


def measure(experiment: Measured, params: Evaluate) -> Result:
    """Measure one experiment.

    Args:
        experiment: test predictions.
        params: number of bootstrap resamples and their seed.
    """
    counted = count(experiment)
    by_seed = {name: values[0] for name, values in counted.values().items()}
    draws = {
        name: values.mean(axis=1)
        for name, values in resampled(counted.values, counted.patients, params.bootstrap, params.seed).items()
    }
    means = {name: float(values.mean()) for name, values in by_seed.items()}
    low, high = ends(draws["qwk"])
    entry = {
        **scalars(means),
        "qwk_low": low,
        "qwk_high": high,
        "qwk_sd": float(np.std(by_seed["qwk"], ddof=1)) if len(experiment.seeds) > 1 else np.nan,
        **measure_fitted(experiment, draws["qwk"], params),
        "n": len(experiment.photographs),
        "patients": counted.patients,
        # lists, because `dvc metrics show` skips them and so shows one column per metric and experiment
        "intervals": intervals(means, draws),
        "calibration": calibration(experiment, means, draws),
        "grades": by_grade(experiment, means, draws),
        "seeds": [
            {"seed": seed, **{name: float(by_seed[name][place]) for name in PER_SEED}}
            for place, seed in enumerate(experiment.seeds)
        ],
        "thresholds": [
            {"seed": seed, "fold": fold, "thresholds": list(thresholds)}
            for (seed, fold), thresholds in experiment.thresholds.items()
        ],
    }
    return Result(entry, draws["qwk"])


def ends(draws: Floats) -> tuple[float, float]:
    """Return the ends of the 95 % interval of resampled values (R,)."""
    low, high = interval(draws)
    return float(low), float(high)


def _is_listed(name: str) -> bool:
    """Whether a metric is in a list of its own: recall of a grade, or a metric of calibration."""
    return name.startswith(("recall_", *(f"{method}_" for method in (UNCALIBRATED, *METHODS))))


def scalars(means: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics that ``metrics.json`` has by name."""
    return {
        **{name: value for name, value in means.items() if not _is_listed(name)},
        **{name: means[f"{UNCALIBRATED}_{name}"] for name in ("ece", "brier")},
        **{f"{name}_calibrated": means.get(f"{SHOWN_METHOD}_{name}", np.nan) for name in ("ece", "brier")},
    }


def intervals(means: Mapping[str, float], draws: Mapping[str, Floats]) -> list[dict[str, Any]]:
    """Return the 95 % interval of each metric that is not in a list of its own."""
    rows = []
    for name in means:
        if not _is_listed(name):
            low, high = ends(draws[name])
            rows.append({"metric": name, "low": low, "high": high})
    return rows


def calibration(
    experiment: Measured, means: Mapping[str, float], draws: Mapping[str, Floats]
) -> list[dict[str, Any]]:
    """Return the metrics in CALIBRATION before and after each method, and why a method was not fitted.

    An expected calibration error has no interval: resampled ones lie above the sample's own.
    """
    rows: list[dict[str, Any]] = []
    for method in (UNCALIBRATED, *METHODS):
        row: dict[str, Any] = {"method": method, "reason": experiment.uncalibrated.get(method)}
        for name in CALIBRATION:
            row[name] = means.get(f"{method}_{name}", np.nan)
            if not name.endswith("ece"):
                missing = np.array([np.nan])
                row[f"{name}_low"], row[f"{name}_high"] = ends(draws.get(f"{method}_{name}", missing))
        rows.append(row)
    return rows


def by_grade(
    experiment: Measured, means: Mapping[str, float], draws: Mapping[str, Floats]
) -> list[dict[str, Any]]:
    """Return how many photographs of each grade there are, its recall with interval, and how they are graded.

    ``predicted`` are the numbers that are graded 0, 1, 2, 3 and 4, means over the seeds.
    """
    counts = np.bincount(experiment.grades, minlength=len(GRADES))
    graded = np.mean([confusion(experiment.grades, predicted) for predicted in experiment.predicted], axis=0)
    rows = []
    for grade in GRADES:
        low, high = ends(draws[f"recall_{grade}"])
        rows.append(
            {
                "grade": grade,
                "n": int(counts[grade]),
                "recall": means[f"recall_{grade}"],
                "recall_low": low,
                "recall_high": high,
                "predicted": graded[grade].tolist(),
            }
        )
    return rows


def measure_fitted(experiment: Measured, draws: Floats, params: Evaluate) -> dict[str, float]:
    """Return the metrics in FITTED; NaN if there are no fitted thresholds.

    The interval of the gain is paired: both kinds of thresholds are evaluated on the same resamples.
    """
    if experiment.fitted is None:
        return dict.fromkeys(FITTED, np.nan)
    by_seed = [qwk(experiment.grades, predicted) for predicted in experiment.fitted]
    value, gain = np.mean(by_seed), np.mean(by_seed) - np.mean(seed_values(experiment))
    fitted = qwk_draws(replace(experiment, predicted=experiment.fitted), params)
    values = value, *interval(fitted), gain, *interval(fitted - draws)
    return dict(zip(FITTED, map(float, values), strict=True))
