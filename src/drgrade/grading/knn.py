"""Grade by the nearest training photographs in the space of a frozen encoder.

Weighted k-NN (:mod:`drgrade.grading.neighbours`). Nothing is learnt, so nothing but the encoder is measured.
Deviations from its use in arXiv 2410.00779: k is chosen on validation, the votes of all grades make a
probability and so an expected grade, and any number of photographs will do. Splits keep patients apart, so
no neighbour is the other eye.
"""

import json
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import nn

from drgrade.encoders import read_tensors
from drgrade.grading.base import GRADERS, Grader, Training
from drgrade.grading.features import Frozen, best, features
from drgrade.grading.finetune import write_model
from drgrade.grading.neighbours import Bank, votes
from drgrade.images.store import Pictures
from drgrade.schema import GRADES
from drgrade.seeding import seed_everything
from drgrade.training import device


@GRADERS.register("knn")
class Knn(Grader):
    """The grader: its score is the expected grade among the neighbours' votes."""

    frozen: Frozen
    bank: Bank
    k: int

    def fit(self, training: Training) -> None:
        """Remember the training photographs; choose k on validation, the first where nothing validates."""
        seed_everything(training.seed, "head")  # as in finetune: the same seed, the same random encoder
        self.frozen = Frozen(self.encoder, training.start, self.settings["input_size"])
        found = features(self.frozen, training.train.images, training.train.rows)
        self.bank = Bank(torch.from_numpy(found), torch.tensor(training.train.grades)).to(device())
        candidates = self.settings["knn"]["k"]
        self.k = candidates[0]
        if not len(training.val):
            return
        found = features(self.frozen, training.val.images, training.val.rows)
        cosines, grades = self.bank.nearest(found, max(candidates))
        scores = {k: self._votes(cosines[:, :k], grades[:, :k]) @ np.array(GRADES) for k in candidates}
        chosen, agreement = best(scores, training.val.grades)
        self.k = int(chosen)
        measured = {f"val_qwk_k{k}": value for k, value in agreement.items()}
        training.run.metrics({**measured, "k": self.k, "val_qwk": agreement[chosen]})

    def predict(self, images: Pictures, rows: np.ndarray) -> np.ndarray:
        """Shares of the votes (n, 5)."""
        return self._votes(*self.bank.nearest(features(self.frozen, images, rows), self.k))

    def save(self, folder: Path) -> None:
        """``model.safetensors`` (encoder; the training features and grades) and ``model.json``."""
        tensors = nn.ModuleDict({"encoder": self.frozen, "bank": self.bank})
        write_model(self, "knn", tensors, folder, k=self.k)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read both files; every tensor must fit."""
        about = json.loads((folder / "model.json").read_text())
        tensors = read_tensors(folder / "model.safetensors")
        grader = cls(about["encoder"], about["settings"])
        grader.k = about["k"]
        grader.frozen = Frozen(about["encoder"], "random", about["settings"]["input_size"])
        grader.bank = Bank(tensors["bank.features"], tensors["bank.grades"])
        nn.ModuleDict({"encoder": grader.frozen, "bank": grader.bank}).load_state_dict(tensors)
        grader.bank.to(device())
        return grader

    def _votes(self, cosines: torch.Tensor, grades: torch.Tensor) -> np.ndarray:
        return votes(cosines, grades, self.settings["knn"]["temperature"])
