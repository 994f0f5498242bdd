"""Fine-tune a whole encoder with a mean-squared-error head.

The recipe of Huang et al. (arXiv 2110.14160); the network and its training are in
:mod:`drgrade.grading.regression`.
"""

import json
from pathlib import Path
from typing import Any, Self

import numpy as np
from torch import nn

from drgrade.encoders import normalisation, read_tensors
from drgrade.files import write_json
from drgrade.grading.base import GRADERS, Grader, Training, interpolated
from drgrade.grading.regression import FineTune, Regressor, infer
from drgrade.images.scaled import at_size
from drgrade.images.store import Pictures
from drgrade.seeding import seed_everything
from drgrade.training import compile_network, fit, save_tensors


@GRADERS.register("finetune")
class Finetune(Grader):
    """The grader: trains a :class:`Regressor`, predicts probabilities around its score."""

    network: Regressor

    def fit(self, training: Training) -> None:
        """Train all layers from the start weights."""
        seed_everything(training.seed, "head")
        self.network = Regressor(self.encoder, training.start)
        module = FineTune(self.network, self.encoder, self.settings, training)
        if self.settings["compile"]:
            compile_network(self.network)
        fit(
            module,
            name=training.name,
            epochs=self.settings["epochs"],
            seed=training.seed,
            key=(training.key, self.encoder, training.start, self.settings),
            run=training.run,
            accumulate=self.settings["accumulate"],
            weights_ema=self.settings["weights_ema"],
        )
        if module.best_weights:
            self.network.load_state_dict(module.best_weights)

    def predict(self, images: Pictures, rows: np.ndarray) -> np.ndarray:
        """Probabilities (n, 5); the score is their expectation."""
        sized = at_size(images, self.settings["input_size"])
        return interpolated(infer(self.network, sized, rows, *normalisation(self.encoder)))

    def save(self, folder: Path) -> None:
        """``model.safetensors`` and ``model.json``."""
        write_model(self, "finetune", self.network, folder)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read both files; every tensor must fit."""
        about = json.loads((folder / "model.json").read_text())
        grader = cls(about["encoder"], about["settings"])
        grader.network = Regressor(about["encoder"], "random")
        grader.network.load_state_dict(read_tensors(folder / "model.safetensors"))
        return grader


def write_model(grader: Grader, name: str, network: nn.Module, folder: Path, **more: Any) -> None:
    """Write a network's ``model.safetensors`` and the ``model.json`` that says how to use it.

    Args:
        grader: whose encoder and settings are written.
        name: it is registered under.
        network: its tensors.
        folder: to write to.
        **more: further entries of ``model.json``.
    """
    save_tensors(network, folder / "model.safetensors")
    mean, std = normalisation(grader.encoder)
    about = {"grader": name, "encoder": grader.encoder, "mean": mean, "std": std, "settings": grader.settings}
    use = {"output": "expected grade, 0-4", "use": "research only, not a diagnosis"}
    write_json(about | use | more, folder / "model.json")
