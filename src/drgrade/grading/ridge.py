"""Ridge regression of the grade on pooled features of several layers of a frozen encoder.

Nothing is trained by gradient descent: features are computed once (:mod:`drgrade.grading.pooled`), and the
regression has a closed form. So all photographs with a grade can be used for training, and large inputs cost
one pass over the photographs.

The penalty is chosen by leaving out one patient at a time, which has a closed form too. The scores of
left-out patients also say how much a regression shrinks its scores towards the mean grade. ``stretch`` undoes
that: a line maps the left-out scores to the mean and the standard deviation of the grades. Of all lines this
one has the largest concordance correlation with the grades (Lin, Biometrics 45, 1989), which is the quadratic
weighted kappa of scores that are not rounded. They also say how far scores are from the true grades: each
grade's probability is that of a normal distribution around the score with this error.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import Field

from drgrade.grading.base import GRADERS, Explainable, Grader, Job, Moments, Output, Photographs
from drgrade.params import Encoded
from drgrade.schema import GRADES

if TYPE_CHECKING:
    from torch import nn

    from drgrade.grading.features import Frozen
    from drgrade.grading.pooled import FrozenRegression
    from drgrade.images.augment import Plan

log = logging.getLogger(__name__)

Pooling = Literal["mean", "std", "max", "gem", "top", "bottom", "token"]
"""Names of :data:`drgrade.grading.pooled.POOLINGS`, and the class token of a vision transformer."""


class Params(Encoded):
    """A ridge regression of the grade on features of a frozen encoder."""

    grader: Literal["ridge"] = "ridge"
    """The module of ``drgrade.grading``."""
    layers: Annotated[list[int], Field(min_length=1)] = [-1]
    """Stages of a convolutional encoder, or blocks of a vision transformer: from 0, or -1 for the last."""
    pooling: Annotated[list[Pooling], Field(min_length=1)] = ["mean", "std", "gem", "max"]
    """How a layer's responses are pooled over the image: mean, std, max, gem (generalised mean), top and
    bottom (mean of the highest and of the lowest 2 %), token (class token of a vision transformer)."""
    alphas: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)] = [
        10.0, 30.0, 100.0, 300.0, 1e3, 3e3, 1e4, 3e4, 1e5, 3e5, 1e6,
    ]  # fmt: skip
    """Penalties, of which the one with the smallest error on left-out patients is taken."""
    stretch: bool = True
    """Scale the scores so that those of left-out patients have the mean and the spread of the grades."""


class Regression(NamedTuple):
    """A fitted ridge regression: scores are ``features @ weights + constant``.

    Attributes:
        weights: float64 (D,).
        constant: a number.
        left_out: score (n,) of each training photograph by the regression without its patient.
        alpha: the chosen penalty.
    """

    weights: np.ndarray
    constant: float
    left_out: np.ndarray
    alpha: float

    def spread(self, grades: np.ndarray) -> float:
        """Root mean squared error of the left-out scores, for grades (n,)."""
        return float(np.sqrt(np.mean((self.left_out - grades) ** 2)))

    def stretched(self, grades: np.ndarray) -> "Regression":
        """The regression whose left-out scores have the mean and standard deviation of the grades (n,)."""
        spread = float(self.left_out.std())
        slope = float(grades.std()) / spread if spread > 0 else 1.0
        shift = float(grades.mean()) - slope * float(self.left_out.mean())
        left_out = slope * self.left_out + shift
        return Regression(slope * self.weights, slope * self.constant + shift, left_out, self.alpha)


def fit_ridge(
    features: np.ndarray, grades: np.ndarray, patients: Sequence[Any] | np.ndarray, alphas: Sequence[float]
) -> Regression:
    """Regress grades on standardised features, with the penalty that is best for left-out patients.

    With the hat matrix H of all photographs and the residuals r of the fit, the residuals of the photographs
    P of a left-out patient are (I - H_PP)^-1 r_P. From a singular value decomposition only these blocks of H
    are computed. Means and deviations of the features are those of all training photographs, also for the
    left-out scores.

    Args:
        features: (n, D).
        grades: (n,).
        patients: patient of each photograph (n,); photographs without one count as patients of their own.
        alphas: penalties of the squared weights of the standardised features.
    """
    x, y = np.asarray(features, np.float64), np.asarray(grades, np.float64)
    centre, scale = x.mean(axis=0), x.std(axis=0)
    scale[scale == 0] = 1.0
    left, values, right = np.linalg.svd((x - centre) / scale, full_matrices=False)
    mean, along = float(y.mean()), left.T @ (y - y.mean())
    groups = _groups(patients)
    found: dict[float, tuple[float, np.ndarray]] = {}
    for alpha in alphas:
        kept = values**2 / (values**2 + alpha)
        residuals = y - mean - left @ (kept * along)
        left_out = y - _left_out_residuals(left, kept, residuals, groups)
        found[alpha] = float(np.mean((left_out - y) ** 2)), left_out
    alpha = min(found, key=lambda one: found[one][0])
    weights = right.T @ (values / (values**2 + alpha) * along) / scale
    return Regression(weights, mean - float(centre @ weights), found[alpha][1], alpha)


def regressed(
    job: Job, features: np.ndarray, alphas: Sequence[float], stretch: bool
) -> tuple[Regression, dict[str, float]]:
    """Regress the grades of the training photographs on their features (n, D).

    Returns:
        The regression, and what left-out patients say of it: penalty, QWK and root mean squared error.
    """
    from drgrade.evaluate.metrics import qwk, to_grades

    grades = job.train.grades.astype(np.float64)
    fitted = fit_ridge(features, grades, job.train.table["patient_id"].tolist(), alphas)
    if stretch:
        fitted = fitted.stretched(grades)
    agreement = qwk(job.train.grades, to_grades(fitted.left_out))
    log.info(
        "%s  %d features  alpha %g  QWK of left-out patients %.4g",
        job.name, features.shape[1], fitted.alpha, agreement,
    )  # fmt: skip
    return fitted, {"alpha": fitted.alpha, "left_out_qwk": agreement, "spread": fitted.spread(grades)}


def around(scores: np.ndarray, spread: float) -> np.ndarray:
    """Probability of each grade where the truth is normally distributed around the score.

    A grade gets what lies nearer to it than to another; what lies below 0 or above 4 belongs to these.

    Args:
        scores: (n,).
        spread: standard deviation in grades; at 0 all lies at the score.

    Returns:
        float64 (n, 5), rows sum to 1.
    """
    from scipy.special import ndtr

    edges = np.array([-np.inf, *(np.array(GRADES[:-1]) + 0.5), np.inf])
    return np.diff(ndtr((edges - np.asarray(scores, np.float64)[:, None]) / max(spread, 1e-9)), axis=1)


def _groups(patients: Sequence[Any] | np.ndarray) -> list[np.ndarray]:
    """Positions of the photographs of each patient."""
    import pandas as pd

    codes, names = pd.factorize(pd.Series(list(patients), dtype="object"))
    alone = codes < 0
    codes[alone] = len(names) + np.arange(int(alone.sum()))
    ordered = np.argsort(codes, kind="stable")
    return np.split(ordered, np.flatnonzero(np.diff(codes[ordered])) + 1)


def _left_out_residuals(
    left: np.ndarray, kept: np.ndarray, residuals: np.ndarray, groups: list[np.ndarray]
) -> np.ndarray:
    """Residual (n,) of each photograph by the regression without its patient.

    Args:
        left: left singular vectors (n, r); the hat matrix is ``left * kept @ left.T + 1 / n``.
        kept: share (r,) of each direction that the penalty leaves.
        residuals: of the regression on all (n,).
        groups: positions of each patient's photographs.
    """
    found = np.empty(len(residuals))
    for own in groups:
        block = np.eye(len(own)) - (left[own] * kept) @ left[own].T - 1 / len(residuals)
        found[own] = np.linalg.lstsq(block, residuals[own], rcond=None)[0]
    return found


@GRADERS.register("ridge")
class Ridge(Grader):
    """A frozen encoder and one linear unit, which are one network after training."""

    Params = Params
    network: "FrozenRegression"
    fitted: dict[str, float]

    def fit(self, job: Job) -> None:
        """Compute features and regress; ``job.val`` is only measured."""
        import torch

        from drgrade.evaluate.metrics import qwk, to_grades
        from drgrade.grading.features import features
        from drgrade.seeding import seed_everything

        seed_everything(job.seed, "head")
        frozen = self.encoder(job.start.weights)
        found = features(frozen, job.train.images, job.train.rows)
        regression, self.fitted = regressed(job, found, self.params.alphas, self.params.stretch)
        self.network = self._network(frozen)
        with torch.no_grad():
            self.network.head.weight.copy_(torch.from_numpy(regression.weights)[None])
            self.network.head.bias.fill_(regression.constant)
        if len(job.val):
            self.fitted["val_qwk"] = qwk(job.val.grades, to_grades(self.predict(job.val).score))
        job.run.metrics(self.fitted)

    def predict(self, photographs: Photographs) -> Output:
        """Probabilities (n, 5) around the score, and the encoder's features (n, D)."""
        from drgrade.grading.features import features

        found = features(self.network.encoder, photographs.images, photographs.rows)
        head = self.network.head
        weights, constant = head.weight.detach().cpu().double().numpy()[0], float(head.bias.item())
        scores = found.astype(np.float64) @ weights + constant
        return Output(around(scores, self.fitted["spread"]), scores.clip(GRADES[0], GRADES[-1]), found)

    def explainable(self) -> Explainable:
        """The whole network."""
        return Explainable(self.network, self.preprocess)

    def moments(self, photographs: Photographs, changes: "Plan | None") -> Moments:
        """Moments of the frozen encoder's features."""
        from drgrade.grading.features import moments

        return moments(self.network.encoder, photographs.images, photographs.rows, changes)

    def tensors(self) -> "nn.Module":
        """The network."""
        return self.network

    def facts(self) -> dict[str, Any]:
        """The chosen penalty, and QWK and error of left-out patients."""
        return dict(self.fitted)

    def rebuild(self, facts: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Create the network with random weights, which loading overwrites."""
        self.fitted, self.network = dict(facts), self._network(self.encoder("random"))

    def encoder(self, start: str) -> "Frozen":
        """The encoder with pooled layers, its normalisation and test-time transforms."""
        from drgrade.encoders import create_encoder
        from drgrade.grading.features import Frozen
        from drgrade.grading.pooled import PooledLayers

        params = self.params
        pooled = PooledLayers(create_encoder(params.encoder, start), params.layers, params.pooling)
        frozen = Frozen(params.encoder, pooled, params.input_size)
        frozen.mean, frozen.std = list(self.preprocess.mean), list(self.preprocess.std)
        frozen.changes = self.preprocess.changes()
        return frozen

    def _network(self, frozen: "Frozen") -> "FrozenRegression":
        """The encoder with an untrained linear unit."""
        from drgrade.grading.pooled import FrozenRegression

        return FrozenRegression(frozen)
