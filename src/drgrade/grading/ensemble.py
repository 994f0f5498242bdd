"""Combine the scores of other experiments' models: the mean, a weighted mean, or a linear regression.

Weights are fitted on validation: the members were trained on the training photographs, where their scores are
better than on new ones. Members whose epoch was selected on the same validation photographs look somewhat
better there than they are, which favours none of them in a plain mean.
"""

import logging
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from drgrade.errors import UserError
from drgrade.grading.base import GRADERS, Grader, Job, Output, Photographs, interpolated
from drgrade.params import Experiment
from drgrade.params.block import Name

log = logging.getLogger(__name__)

ALPHAS = tuple(10.0**power for power in range(-3, 5))
"""Penalties of the regression ``stacked``; the one with the smallest leave-one-out error is taken."""


class Params(Experiment):
    """A combination of the scores of other experiments."""

    grader: Literal["ensemble"] = "ensemble"
    """The module of ``drgrade.grading``."""
    members: Annotated[list[Name], Field(min_length=1)]
    """Experiments whose scores are combined, each with the same seed and fold."""
    how: Literal["mean", "weighted", "stacked"] = "mean"
    """mean: all members count the same; weighted: a weighted mean, with weights from 0 to 1 fitted on
    validation; stacked: a ridge regression fitted on validation, whose weights may be negative."""


@GRADERS.register("ensemble")
class Ensemble(Grader):
    """The score is a constant plus a weighted sum of the members' scores."""

    Params = Params
    weights: np.ndarray
    constant: float = 0.0

    def fit(self, job: Job) -> None:
        """Fit the weights on ``job.val``; ``mean`` needs none.

        Raises:
            UserError: there is no validation set to fit weights on.
        """
        from drgrade.evaluate.metrics import qwk, to_grades

        names, how = self.params.members, self.params.how
        self.weights = np.full(len(names), 1 / len(names))
        if not len(job.val):
            if how == "mean":
                return
            raise UserError(f"how: {how} is fitted on validation photographs, and there are none; use mean")
        grades = job.val.grades.astype(np.float64)
        if how == "weighted":
            self.weights = simplex_weights(self._scores(job.val), grades)
        elif how == "stacked":
            self.weights, self.constant = ridge(self._scores(job.val), grades)
        agreement = qwk(job.val.grades, to_grades(self.predict(job.val).score))
        measured = {f"weight_{name}": float(one) for name, one in zip(names, self.weights, strict=True)}
        log.info("%s  weights %s  val_qwk %.4g", job.name, np.round(self.weights, 3).tolist(), agreement)
        job.run.metrics({**measured, "constant": self.constant, "val_qwk": agreement})

    def predict(self, photographs: Photographs) -> Output:
        """The combined score, and the mixture of the members' probabilities (n, 5) by their weights.

        For ``stacked``, whose weights may be negative, probabilities are interpolated from the score.
        """
        scores = self._scores(photographs) @ self.weights + self.constant
        if self.params.how == "stacked":
            return Output(interpolated(scores))
        chances = [photographs.outputs[name].probabilities for name in self.params.members]
        return Output(np.tensordot(self.weights, np.stack(chances), 1), scores)

    def facts(self) -> dict[str, Any]:
        """Weights, in the order of ``members``, and constant."""
        return {"weights": self.weights.tolist(), "constant": self.constant}

    def rebuild(self, facts: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Restore weights and constant."""
        self.weights, self.constant = np.array(facts["weights"], np.float64), facts["constant"]

    def _scores(self, photographs: Photographs) -> np.ndarray:
        """Scores of the members, float64 (n, M)."""
        outputs = photographs.outputs
        return np.column_stack([outputs[name].score for name in self.params.members]).astype(np.float64)


def simplex_weights(scores: np.ndarray, grades: np.ndarray) -> np.ndarray:
    """Weights >= 0 with sum 1 of the weighted mean with the least squared error.

    With D = scores - grades, the error of weights w with sum 1 is |D w|. Non-negative least squares finds the
    u >= 0 that minimises |D u|^2 + (sum(u) - 1)^2. For u = t w the minimum over t is |D w|^2 / (1 + |D w|^2),
    which grows with |D w|: so u divided by its sum is the best w.

    Args:
        scores: (n, M).
        grades: (n,).

    Returns:
        float64 (M,).
    """
    from scipy.optimize import nnls

    rows = np.vstack([scores - grades[:, None], np.ones(scores.shape[1])])
    found, _ = nnls(rows, np.append(np.zeros(len(scores)), 1.0))
    return found / found.sum()


def ridge(scores: np.ndarray, grades: np.ndarray) -> tuple[np.ndarray, float]:
    """Weights float64 (M,) and constant of a ridge regression of grades (n,) on scores (n, M)."""
    from sklearn.linear_model import RidgeCV

    found = RidgeCV(ALPHAS).fit(scores, grades)
    return np.asarray(found.coef_, np.float64), float(found.intercept_)
