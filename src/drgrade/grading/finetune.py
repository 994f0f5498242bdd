"""Fine-tune a whole encoder with a mean-squared-error head.

The recipe of Huang et al. (arXiv 2110.14160). The network, its loss and its predictions are in
:mod:`drgrade.grading.regression`; a grader with another head subclasses :class:`Finetune` and overrides
``new_network``.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from drgrade.grading.base import GRADERS, Explainable, Grader, Job, Output, Photographs
from drgrade.params import Encoded, Grade

if TYPE_CHECKING:
    from drgrade.grading.regression import GradedNetwork


class Params(Encoded, Grade):
    """Fine-tune all layers."""

    grader: Literal["finetune"] = "finetune"
    """The module of ``drgrade.grading``."""


@GRADERS.register("finetune")
class Finetune(Grader):
    """Trains a network, keeps the epoch with the best validation QWK."""

    Params = Params
    network: "GradedNetwork"

    def new_network(self, start: str) -> "GradedNetwork":
        """The untrained network: encoder from ``start`` (``random``, ``imagenet`` or a file) and new head."""
        from drgrade.grading.regression import Regressor

        return Regressor(self.params.encoder, start)

    def fit(self, job: Job) -> None:
        """Train all layers from the start weights."""
        from drgrade.grading.regression import FineTune, begin
        from drgrade.seeding import seed_everything
        from drgrade.training import compile_network, fit

        seed_everything(job.seed, "head")
        self.network = begin(self.new_network, job.start)
        module = FineTune(self.network, self.params.model_dump(), self.preprocess, job)
        if self.params.compile:
            compile_network(self.network)
        fit(
            module,
            name=job.name,
            epochs=self.params.epochs,
            seed=job.seed,
            key=(job.key,),
            run=job.run,
            accumulate=self.params.accumulate,
            weights_ema=self.params.weights_ema,
        )
        if module.best_weights:
            self.network.load_state_dict(module.best_weights)

    def predict(self, photographs: Photographs) -> Output:
        """Probabilities (n, 5) and the encoder's pooled features (n, D)."""
        from drgrade.grading.regression import predict

        return predict(self.network, self.preprocess, photographs)

    def explainable(self) -> Explainable:
        """The network with the expected grade as its output."""
        from drgrade.grading.regression import Scores

        return Explainable(Scores(self.network), self.preprocess)

    def tensors(self) -> "GradedNetwork":
        """The network."""
        return self.network

    def rebuild(self, facts: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Create the network with random weights, which loading overwrites."""
        self.network = self.new_network("random")
