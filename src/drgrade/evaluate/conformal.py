"""Sets of grades that contain the true grade with a stated probability, and when to abstain.

Split conformal prediction: a score says how badly a grade fits a photograph. The set of a new photograph
holds all grades with a score up to a quantile of the true grades' scores on validation photographs. If the
new photograph and these are exchangeable, the set holds the true grade with a probability of at least
1 - alpha. This holds on average over photographs, not for each grade. Source: Vovk et al., Algorithmic
Learning in a Random World, 2005; Angelopoulos and Bates, arXiv 2107.07511.

Two scores:

- ``ordinal``: ordinal adaptive prediction sets, runs of neighbouring grades. Source: Lu, Angelopoulos and
  Pomerantz, MICCAI 2022, arXiv 2207.02238.
- ``lac``: 1 - probability (least ambiguous sets); sets can have gaps or be empty. Source: Sadinle, Lei and
  Wasserman, JASA 2019.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from drgrade.bootstrap import Floats
from drgrade.errors import UserError
from drgrade.evaluate.metrics import N_GRADES, divide
from drgrade.evaluate.probabilities import checked_probabilities
from drgrade.schema import GRADES

Score = Literal["ordinal", "lac"]
SLACK = 1e-9
"""Relative rounding error that sums of weights and shares of photographs may have."""


@dataclass(frozen=True)
class ConformalSets:
    """Fitted sets of grades; see :func:`fit_sets`.

    Attributes:
        score: ``ordinal`` or ``lac``.
        alpha: largest probability that a set misses the true grade, between 0 and 1.
        quantile: highest score of a grade in the set; None if all grades are, for lack of patients.
        patients: number of validation patients.
    """

    score: Score
    alpha: float
    quantile: float | None
    patients: int

    def sets(self, probabilities: ArrayLike) -> NDArray[np.bool_]:
        """Return which grades are in the set of each photograph, (N, 5), from probabilities (N, 5)."""
        scores = scores_of(probabilities, self.score)
        return scores <= (np.inf if self.quantile is None else self.quantile)


def fit_sets(
    y: ArrayLike,
    probabilities: ArrayLike,
    alpha: float,
    score: Score = "ordinal",
    patients: ArrayLike | None = None,
) -> ConformalSets:
    """Choose the quantile on validation photographs.

    With a photograph for each of n patients, it is the ceil((n + 1) (1 - alpha))-th lowest score; if that is
    more than n, all grades are in every set. Both eyes of a patient are not exchangeable with those of
    others, so patients count once: each photograph has the weight 1 / (photographs of its patient). Source:
    Lee, Barber and Willett, Distribution-free inference with hierarchical data, arXiv 2306.06342.

    Args:
        y: (N,) true grades 0-4. Photographs that a calibrator was fitted on are not exchangeable with new
            ones; with one parameter (temperature) the difference is small.
        probabilities: (N, 5) class probabilities.
        alpha: largest probability that a set misses the true grade.
        score: ``ordinal`` or ``lac``.
        patients: (N,) patient of each photograph; None if each photograph is a patient of its own.

    Raises:
        UserError: alpha is not between 0 and 1, or the probabilities are invalid.
        ValueError: the lengths differ.
    """
    if not 0 < alpha < 1:
        raise UserError(f"alpha is {alpha}, needs a number between 0 and 1, such as 0.1 for 90 % coverage")
    scores, grades = scores_of(probabilities, score), np.asarray(y, dtype=np.int64)
    names = np.arange(len(grades)) if patients is None else np.asarray(patients)
    if not grades.shape == names.shape == scores.shape[:1]:
        raise ValueError(f"{len(scores)} rows of probabilities, {len(grades)} grades, {len(names)} patients")
    _, patient, counts = np.unique(names, return_inverse=True, return_counts=True)
    own = scores[np.arange(len(grades)), grades]
    order = own.argsort(kind="stable")
    reached = (1 / counts[patient])[order].cumsum()  # number of patients with a score up to this one
    needed = (len(counts) + 1) * (1 - alpha)
    place = int(np.searchsorted(reached, needed * (1 - SLACK)))
    quantile = float(own[order[place]]) if place < len(own) else None
    return ConformalSets(score, alpha, quantile, len(counts))


def scores_of(probabilities: ArrayLike, score: Score) -> Floats:
    """Return the score of each grade, (N, 5): the lower, the better it fits the photograph.

    Raises:
        UserError: the score is unknown, or the probabilities are invalid.
    """
    if score not in ("ordinal", "lac"):
        raise UserError(f"the score {score!r} of conformal sets is unknown; use 'ordinal' or 'lac'")
    rows = checked_probabilities(probabilities)
    return 1 - rows if score == "lac" else _ordinal_scores(rows)


def _ordinal_scores(probabilities: Floats) -> Floats:
    """Return the probability that the run of grades holds before it grows to each grade, (N, 5).

    The run starts with the most probable grade and takes in the more probable of its two neighbours, the
    higher grade on a tie, until it holds all grades (Lu et al. 2022, Algorithm 1). Its sets are nested, hence
    all grades with a score up to some value are one run, which always holds the most probable grade.
    """
    rows, photographs = np.arange(len(probabilities)), len(probabilities)
    padded = np.pad(probabilities, ((0, 0), (1, 1)), constant_values=-1)  # grade g is in column g + 1
    low = high = probabilities.argmax(axis=1)
    scores, held = np.zeros((photographs, N_GRADES)), probabilities.max(axis=1, initial=0)
    for _ in GRADES[1:]:
        rises = padded[rows, high + 2] >= padded[rows, low]
        taken = np.where(rises, high + 1, low - 1)
        scores[rows, taken] = held
        held = held + probabilities[rows, taken]
        low, high = np.minimum(low, taken), np.maximum(high, taken)
    return scores


def coverage(y: ArrayLike, sets: ArrayLike) -> dict[str, Any]:
    """Measure sets of grades on graded photographs.

    Args:
        y: (N,) true grades 0-4.
        sets: (N, 5) bool, which grades are in the set of each photograph.

    Returns:
        ``coverage``: share of sets with the true grade; ``mean_size`` of a set, 0 to 5; ``single`` and
        ``empty``: share of sets with one grade and with none; ``grades``: a list with ``grade``, ``n``
        (photographs), ``coverage`` and ``mean_size`` for each true grade. NaN where there are no photographs.
    """
    grades, members = np.asarray(y, dtype=np.int64), np.asarray(sets, dtype=bool)
    covered, size = members[np.arange(len(grades)), grades], members.sum(axis=1)
    return {
        "coverage": _mean(covered),
        "mean_size": _mean(size),
        "single": _mean(size == 1),
        "empty": _mean(size == 0),
        "grades": [
            {
                "grade": grade,
                "n": int((grades == grade).sum()),
                "coverage": _mean(covered[grades == grade]),
                "mean_size": _mean(size[grades == grade]),
            }
            for grade in GRADES
        ],
    }


def _mean(values: NDArray[Any]) -> float:
    return float(divide(values.sum(), len(values)))


@dataclass(frozen=True)
class RiskCoverage:
    """Risk of the accepted photographs if the least confident ones are left to a clinician.

    Attributes:
        coverage: share of photographs that are accepted, 1/N to 1, ascending (N,).
        risk: mean loss of the accepted ones (N,).
    """

    coverage: Floats
    risk: Floats

    @property
    def area(self) -> float:
        """Area under the curve (AURC), the mean risk over all coverages; NaN without photographs.

        Source: Geifman, Uziel and El-Yaniv, ICLR 2019.
        """
        return _mean(self.risk)

    def risk_at(self, share: float) -> float:
        """Return the risk if the most confident photographs are accepted, at least this share (0-1] of all.

        NaN without photographs.
        """
        if not 0 < share <= 1:
            raise ValueError(f"coverage {share}, needs a number above 0 and up to 1")
        n = len(self.risk)
        return float(self.risk[max(int(np.ceil(share * n * (1 - SLACK))), 1) - 1]) if n else float("nan")


def risk_coverage(confidence: ArrayLike, loss: ArrayLike) -> RiskCoverage:
    """Return the risk-coverage curve of a confidence.

    Photographs with equal confidence are accepted in random order; the curve has the expected loss, so that
    it does not depend on the order of the rows.

    Args:
        confidence: (N,) finite numbers, such as the highest probability, or minus the size of the set.
        loss: (N,) loss of accepting a photograph, such as 1 where the predicted grade is wrong.

    Raises:
        ValueError: the lengths differ, or a confidence is not a finite number.
    """
    sure, cost = np.asarray(confidence, dtype=np.float64), np.asarray(loss, dtype=np.float64)
    if sure.shape != cost.shape or sure.ndim != 1:
        raise ValueError(f"confidence and loss of shape {sure.shape} and {cost.shape}, need two (N,)")
    if not np.isfinite(sure).all():
        raise ValueError(f"row {np.flatnonzero(~np.isfinite(sure))[0]}: the confidence is not finite")
    _, place, counts = np.unique(-sure, return_inverse=True, return_counts=True)
    # Accepting a part of the photographs with one confidence costs that part of their loss.
    mean_loss = divide(np.bincount(place, cost, minlength=len(counts)), counts)
    accepted = np.arange(1, len(cost) + 1)
    total = np.repeat(mean_loss, counts).cumsum()
    return RiskCoverage(accepted / max(len(cost), 1), total / accepted)
