"""Losses for the grades 0-4, each with its head and the reading of the head's output as a grade.

Regressions give one number a photograph, classifications five logits, ordinal regressions the logits of the
four questions whether the grade is above 0, 1, 2, 3. A criterion has no tensors of its own, so it adds
nothing to the state of a network; its head does.

With class weights w every loss is a weighted mean, sum(w * loss) / sum(w), over the photographs of a batch,
as torch's cross-entropy is. Without, it is the mean. Soft QWK is a ratio of sums over the batch instead, so
for it accumulated gradients of small batches are not the gradient of one large batch.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from drgrade.evaluate.metrics import N_GRADES
from drgrade.grading.base import interpolated
from drgrade.params.training import Loss


class Criterion(ABC):
    """A loss, the head it trains and the grades that follow from the head's output.

    Attributes:
        shape: shape of the output for one photograph: (), (5,) or (4,).
    """

    shape: ClassVar[tuple[int, ...]]

    @abstractmethod
    def new_head(self, features: int) -> nn.Module:
        """A new head that maps pooled features (B, D) to (B, 1), (B, 5) or (B, 4)."""

    @abstractmethod
    def loss(self, outputs: Tensor, grades: Tensor, weights: Tensor | None = None) -> Tensor:
        """The training loss, a scalar; computing it never waits for the device.

        Args:
            outputs: float32 (B, *shape).
            grades: true grades 0-4, int64 (B,).
            weights: class weights, float32 (5,) on the device of the outputs; None: all 1.
        """

    @abstractmethod
    def score(self, outputs: Tensor) -> Tensor:
        """Expected grades (B,), differentiable."""

    @abstractmethod
    def probabilities(self, outputs: Tensor) -> Tensor:
        """Class probabilities, float64 (B, 5); rows sum to 1, and their expectation is the score."""


class Regression(Criterion):
    """One linear unit, whose output is the score: unbounded, about 0-4."""

    shape = ()
    error: ClassVar[Callable[..., Tensor]]
    """Error of each photograph: a torch loss with the argument ``reduction``."""

    def new_head(self, features: int) -> nn.Module:
        """:func:`regression_head`."""
        return regression_head(features)

    def loss(self, outputs: Tensor, grades: Tensor, weights: Tensor | None = None) -> Tensor:
        """Mean error of scores (B,)."""
        errors = self.error(outputs, grades.to(outputs.dtype), reduction="none")
        return _mean(errors, _of_each(grades, weights))

    def score(self, outputs: Tensor) -> Tensor:
        """The outputs, unchanged."""
        return outputs

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Interpolated between the two nearest grades; scores beyond 0-4 count as 0 or 4."""
        return torch.from_numpy(interpolated(outputs.detach().double().cpu().numpy()))


class SquaredError(Regression):
    """Squared error, the best loss for QWK in Huang et al. (arXiv 2110.14160)."""

    error = staticmethod(functional.mse_loss)


class AbsoluteError(Regression):
    """Absolute error."""

    error = staticmethod(functional.l1_loss)


class SmoothL1(Regression):
    """Squared error / 2 up to one grade, absolute error - 1/2 beyond (Girshick, ICCV 2015, equation 3)."""

    error = staticmethod(functional.smooth_l1_loss)


class Classification(Criterion):
    """Five logits; softmax gives the probabilities."""

    shape = (N_GRADES,)

    def new_head(self, features: int) -> nn.Module:
        """A linear layer with torch's initialisation."""
        return nn.Linear(features, N_GRADES)

    def score(self, outputs: Tensor) -> Tensor:
        """Expectation of the probabilities, 0-4."""
        return (outputs.softmax(dim=1) * _numbers(N_GRADES, outputs)).sum(dim=1)

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Softmax of the logits."""
        return outputs.double().softmax(dim=1)


class CrossEntropy(Classification):
    """Cross-entropy."""

    def loss(self, outputs: Tensor, grades: Tensor, weights: Tensor | None = None) -> Tensor:
        """Mean of -log p of the true grade."""
        return functional.cross_entropy(outputs, grades, weight=weights)


class Focal(Classification):
    """Focal loss (Lin et al., ICCV 2017, arXiv 1708.02002, equation 5).

    Attributes:
        alpha: constant factor; Huang et al. train with 5, which only scales the learning rate.
        gamma: 0 gives cross-entropy; larger values reduce the weight of well-graded photographs.
    """

    alpha: ClassVar[float] = 1.0
    gamma: ClassVar[float] = 2.0

    def loss(self, outputs: Tensor, grades: Tensor, weights: Tensor | None = None) -> Tensor:
        """Mean of -alpha (1 - p)^gamma log p of the true grade."""
        log_p = -functional.cross_entropy(outputs, grades, reduction="none")
        each = -self.alpha * (1 - log_p.exp()) ** self.gamma * log_p
        return _mean(each, _of_each(grades, weights))


class SoftQWK(Classification):
    """1 - quadratic weighted kappa, with probabilities in place of predicted grades.

    With the distance D_ij = (i - j)^2 / 16, the soft confusion matrix O (rows: true grades) and the outer
    product E of its marginals over their sum::

        loss = sum(D * O) / (sum(D * E) + eps)

    It is in 0-2; for certain predictions it equals 1 - QWK. Class weights weight the photographs in O, and so
    in E. Use large batches: where all photographs have the same grade the loss is a constant, 1.

    Source: de la Torre, Puig and Valls, Pattern Recognition Letters 2018. Deviation from the form in Huang et
    al., which squares the raw logits: probabilities are the softmax, as everywhere else.
    """

    eps: ClassVar[float] = 1e-10

    def loss(self, outputs: Tensor, grades: Tensor, weights: Tensor | None = None) -> Tensor:
        """Observed over expected disagreement."""
        numbers = _numbers(N_GRADES, outputs)
        distance = (numbers[:, None] - numbers) ** 2 / (N_GRADES - 1) ** 2
        probabilities = outputs.softmax(dim=1)
        each = torch.ones_like(probabilities[:, 0]) if weights is None else weights[grades]
        # sums, not matrix products, which autocast would compute in half precision
        observed = (distance[grades] * probabilities * each[:, None]).sum()
        true = ((grades[:, None] == numbers) * each[:, None]).sum(dim=0)
        predicted = (probabilities * each[:, None]).sum(dim=0)
        expected = (distance * true[:, None] * predicted).sum() / each.sum()
        return observed / (expected + self.eps)


class Ordinal(Criterion):
    """Four logits, from which the probabilities that the grade is above 0, 1, 2, 3 follow."""

    shape = (N_GRADES - 1,)

    @abstractmethod
    def above(self, outputs: Tensor) -> Tensor:
        """Probabilities (B, 4) that the grade is above 0, 1, 2, 3; they never increase along a row."""

    def score(self, outputs: Tensor) -> Tensor:
        """Expected grade, 0-4: the sum of the probabilities of being above each grade."""
        return self.above(outputs).sum(dim=1)

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Differences of neighbouring probabilities of being above a grade."""
        at_least = functional.pad(self.above(outputs.double()), (1, 0), value=1.0)
        return at_least - functional.pad(at_least[:, 1:], (0, 1))


class Coral(Ordinal):
    """CORAL: one weight vector and four biases, a binary cross-entropy for each question.

    Source: Cao, Mirjalili and Raschka, Pattern Recognition Letters 2020, arXiv 1901.07884. Deviations: biases
    are in order by construction, so that all probabilities are >= 0, also early in a training; the mean over
    the questions replaces the sum.
    """

    def new_head(self, features: int) -> nn.Module:
        """:class:`CoralHead`."""
        return CoralHead(features)

    def loss(self, outputs: Tensor, grades: Tensor, weights: Tensor | None = None) -> Tensor:
        """Mean binary cross-entropy of the four questions (equation 4, equal importance)."""
        above = _above(grades, outputs)
        each = functional.binary_cross_entropy_with_logits(outputs, above, reduction="none").mean(dim=1)
        return _mean(each, _of_each(grades, weights))

    def above(self, outputs: Tensor) -> Tensor:
        """Sigmoid of the logits."""
        return outputs.sigmoid()


class CoralHead(nn.Module):
    """Logits (B, 4) that fall from left to right, of features (B, D): one linear unit, minus thresholds.

    The first threshold is 0 (the unit has a bias); each is larger than the one before by softplus(gap).
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.unit = nn.Linear(features, 1)
        self.gaps = nn.Parameter(torch.zeros(N_GRADES - 2))

    def forward(self, features: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.unit(features)
        return logits - functional.pad(functional.softplus(self.gaps).cumsum(0), (1, 0))


class Corn(Ordinal):
    """CORN: logit k is that of P(grade > k | grade > k - 1), trained on photographs of grade k and above.

    Source: Shi, Cao and Raschka, Pattern Analysis and Applications 2023, arXiv 2111.08851.
    """

    def new_head(self, features: int) -> nn.Module:
        """A linear layer with torch's initialisation."""
        return nn.Linear(features, N_GRADES - 1)

    def loss(self, outputs: Tensor, grades: Tensor, weights: Tensor | None = None) -> Tensor:
        """Mean binary cross-entropy over all pairs of a question and a photograph that it is asked of."""
        above = _above(grades, outputs)
        each = functional.binary_cross_entropy_with_logits(outputs, above, reduction="none")
        # question 0 is asked of all; each later one of those that are above the grade before
        asked = functional.pad(above[:, :-1], (1, 0), value=1.0)
        return _mean(each, asked if weights is None else asked * weights[grades][:, None])

    def above(self, outputs: Tensor) -> Tensor:
        """Cumulative products of the conditional probabilities (chain rule), as sums of logarithms."""
        return functional.logsigmoid(outputs).cumsum(dim=1).exp()


CRITERIA: dict[Loss, type[Criterion]] = {
    "mse": SquaredError,
    "mae": AbsoluteError,
    "smooth_l1": SmoothL1,
    "cross_entropy": CrossEntropy,
    "soft_qwk": SoftQWK,
    "focal": Focal,
    "coral": Coral,
    "corn": Corn,
}
"""Criteria by name."""


def criterion(name: Loss) -> Criterion:
    """The criterion of that name."""
    return CRITERIA[name]()


def regression_head(features: int) -> nn.Linear:
    """One linear unit: bias 1, weights of standard deviation 0.01, so that scores start near grade 1."""
    head = nn.Linear(features, 1)
    nn.init.normal_(head.weight, std=0.01)
    nn.init.constant_(head.bias, 1.0)
    return head


def _numbers(count: int, like: Tensor) -> Tensor:
    """The numbers 0 to count - 1, of the type and on the device of another tensor."""
    return torch.arange(count, dtype=like.dtype, device=like.device)


def _above(grades: Tensor, outputs: Tensor) -> Tensor:
    """1 where the grade (B,) is above 0, 1, 2, 3, else 0: (B, 4)."""
    return (grades[:, None] > _numbers(N_GRADES - 1, outputs)).to(outputs.dtype)


def _of_each(grades: Tensor, weights: Tensor | None) -> Tensor | None:
    """Weights (B,) of photographs, from those of their classes (5,)."""
    return None if weights is None else weights[grades]


def _mean(values: Tensor, weights: Tensor | None) -> Tensor:
    """Mean of values, weighted if there are weights of the same shape."""
    return values.mean() if weights is None else (values * weights).sum() / weights.sum()
