"""Grade by the nearest training photographs in the space of a frozen encoder.

Weighted k-NN (:mod:`drgrade.grading.neighbours`). Nothing is trained, so results depend on the encoder alone.
Deviations from its use in arXiv 2410.00779: k is chosen on validation; the votes give class probabilities and
from these an expected grade; the number of training photographs is not fixed. Splits are by patient, so no
neighbour is the same patient's other eye.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field

from drgrade.grading.base import GRADERS, Grader, Job, Moments, Output, Photographs
from drgrade.params import Encoded
from drgrade.schema import GRADES

if TYPE_CHECKING:
    import torch
    from torch import nn

    from drgrade.grading.features import Frozen
    from drgrade.grading.neighbours import Bank
    from drgrade.images.augment import Plan


class Params(Encoded):
    """Weighted votes of the nearest training photographs in the space of a frozen encoder."""

    grader: Literal["knn"] = "knn"
    """The module of ``drgrade.grading``."""
    k: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)] = [5, 10, 15, 20]
    """Neighbours that vote; the best of several by validation QWK, the first where nothing validates."""
    temperature: Annotated[float, Field(gt=0)] = 0.07
    """A neighbour's vote weighs exp(cosine / temperature)."""


@GRADERS.register("knn")
class Knn(Grader):
    """Weighted k-NN; the score is the expected grade under the neighbours' votes."""

    Params = Params
    frozen: "Frozen"
    bank: "Bank"
    k: int

    def fit(self, job: Job) -> None:
        """Store the training features; choose k on validation, or take the first k if there is none."""
        import torch

        from drgrade.device import device
        from drgrade.grading.features import best, features
        from drgrade.grading.neighbours import Bank
        from drgrade.seeding import seed_everything

        seed_everything(job.seed, "head")  # as in finetune: equal seeds give equal random encoders
        self.frozen = self._frozen(job.start.weights)
        found = features(self.frozen, job.train.images, job.train.rows)
        self.bank = Bank(torch.from_numpy(found), torch.tensor(job.train.grades)).to(device())
        self.k = self.params.k[0]
        if not len(job.val):
            return
        found = features(self.frozen, job.val.images, job.val.rows)
        cosines, grades = self.bank.nearest(found, max(self.params.k))
        scores = {k: self._votes(cosines[:, :k], grades[:, :k]) @ np.array(GRADES) for k in self.params.k}
        chosen, agreement = best(scores, job.val.grades)
        self.k = int(chosen)
        measured = {f"val_qwk_k{k}": value for k, value in agreement.items()}
        job.run.metrics({**measured, "k": self.k, "val_qwk": agreement[chosen]})

    def predict(self, photographs: Photographs) -> Output:
        """Vote shares as class probabilities (n, 5), and the encoder's features (n, D)."""
        from drgrade.grading.features import features

        found = features(self.frozen, photographs.images, photographs.rows)
        return Output(self._votes(*self.bank.nearest(found, self.k)), features=found)

    def moments(self, photographs: Photographs, changes: "Plan | None") -> Moments:
        """Moments of the frozen encoder's features."""
        from drgrade.grading.features import moments

        return moments(self.frozen, photographs.images, photographs.rows, changes)

    def tensors(self) -> "nn.Module":
        """The encoder, and the bank of training features and grades."""
        from torch import nn

        return nn.ModuleDict({"encoder": self.frozen, "bank": self.bank})

    def facts(self) -> dict[str, Any]:
        """The number of neighbours k."""
        return {"k": self.k}

    def rebuild(self, facts: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Create the encoder with random weights and a bank of zeros of the saved size."""
        import torch

        from drgrade.device import device
        from drgrade.grading.neighbours import Bank

        self.k = facts["k"]
        self.frozen = self._frozen("random")
        blank = torch.zeros(shapes["bank.features"]), torch.zeros(shapes["bank.grades"], dtype=torch.int64)
        self.bank = Bank(*blank).to(device())

    def _frozen(self, start: str) -> "Frozen":
        from drgrade.grading.features import Frozen

        frozen = Frozen(self.params.encoder, start, self.params.input_size)
        frozen.mean, frozen.std = list(self.preprocess.mean), list(self.preprocess.std)
        frozen.changes = self.preprocess.changes()
        return frozen

    def _votes(self, cosines: "torch.Tensor", grades: "torch.Tensor") -> np.ndarray:
        from drgrade.grading.neighbours import votes

        return votes(cosines, grades, self.params.temperature)
