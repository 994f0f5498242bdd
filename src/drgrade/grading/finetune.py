"""Fine-tune a whole encoder with a small head, by default one linear unit on the mean squared error.

The recipe of Huang et al. (arXiv 2110.14160). The network and its training are in
:mod:`drgrade.grading.regression`, losses in :mod:`drgrade.grading.losses`; a grader with another head
subclasses :class:`Finetune` and overrides ``new_network``.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from drgrade.grading.base import GRADERS, Explainable, Grader, Job, Moments, Output, Photographs, Start
from drgrade.images.preprocess import Preprocess
from drgrade.params import Crop, Encoded, Experiment, Grade
from drgrade.params.grading import recipe

if TYPE_CHECKING:
    from torch import Tensor

    from drgrade.grading.regression import FineTune, GradedNetwork
    from drgrade.images.augment import Plan


EYEPACS_2022: dict[str, Any] = {
    "input_size": 512, "epochs": 25, "batch_size": 16, "loss": "mse", "optimizer": "sgd", "lr": 1e-3,
    "momentum": 0.9, "weight_decay": 5e-4, "schedule": {"name": "cosine"}, "normalisation": "eyepacs",
    "augment": {
        "flip": 0.5, "rotation": 180.0, "scale": [0.87, 1.15], "ratio": [0.7, 1.3], "translate": 0.2,
        "brightness": 0.2, "contrast": 0.2,
    },
}  # fmt: skip
PRESETS: dict[str, dict[str, Any]] = {
    "eyepacs_2021": EYEPACS_2022
    | {
        "schedule": {"name": "clipped_cosine", "min_lr": 1e-4},
        "augment": EYEPACS_2022["augment"] | {"scale": [1.0, 1.0], "ratio": [1.0, 1.0]},
    },
    "eyepacs_2022": EYEPACS_2022,
}
"""Recipes of Huang et al. for EyePACS with a ResNet-50: as of the release of 2021, and since October 2022."""


class Params(Encoded, Grade):
    """Fine-tune all layers."""

    grader: Literal["finetune"] = "finetune"
    """The module of ``drgrade.grading``."""
    preset: Literal["eyepacs_2021", "eyepacs_2022"] | None = None
    """A published recipe: all keys of training have its values, not those of the block ``grade``; keys that
    the experiment sets override both."""

    @classmethod
    def preset_values(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """The values of the preset; none for an unknown one, which is refused later."""
        preset = PRESETS.get(str(values.get("preset")))
        return {} if preset is None else recipe(preset)


@GRADERS.register("finetune")
class Finetune(Grader):
    """Trains a network, keeps the epoch with the best validation QWK."""

    Params: ClassVar[type[Experiment]] = Params
    network: "GradedNetwork"

    def __init__(self, params: Any, crop: Crop) -> None:
        super().__init__(params, crop)
        self._saved: dict[str, dict[str, Tensor]] = {}

    def new_network(self, start: str) -> "GradedNetwork":
        """The untrained network: encoder from ``start`` (``random``, ``imagenet`` or a file) and new head."""
        from drgrade.encoders import create_encoder
        from drgrade.grading.regression import EncoderWithHead

        return EncoderWithHead(create_encoder(self.params.encoder, start), self.params.loss)

    def begin(self, start: Start) -> "GradedNetwork":
        """The network with its start weights; another experiment's matching model gives the head too."""
        from drgrade.grading.regression import begin

        return begin(self.new_network, start)

    def new_module(self, job: Job) -> "FineTune":
        """The training module of the network."""
        from drgrade.grading.regression import FineTune

        return FineTune(self.network, self.params, self.preprocess, job)

    def fit(self, job: Job) -> None:
        """Train all layers from the start weights."""
        from drgrade.seeding import seed_everything
        from drgrade.training import compile_network, fit

        seed_everything(job.seed, "head")
        self._normalise(job.train)
        self.network = self.begin(job.start)
        module = self.new_module(job)
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
            clip=self.params.clip,
        )
        weights = {name: best.weights for name, best in module.best.items() if best.weights}
        weights["last"] = {key: value.clone() for key, value in self.network.state_dict().items()}
        self._saved = {name: weights[name] for name in self.params.checkpoints if name in weights}
        if self.params.select == "best" and "best" in weights:
            self.network.load_state_dict(weights["best"])

    def _normalise(self, train: Photographs) -> None:
        """Replace the encoder's channel means and deviations, see ``normalisation``."""
        from drgrade.images.scaled import at_size
        from drgrade.images.statistics import EYEPACS, measure

        statistics = EYEPACS if self.params.normalisation == "eyepacs" else None
        if self.params.normalisation == "train":
            statistics = measure(at_size(train.images, self.params.input_size), train.rows)
        if statistics is not None:
            self.preprocess = Preprocess.of(
                self.params.encoder, self.params.input_size, self.crop, test_time=self.params.test_time,
                augment=self.params.augment, statistics=statistics,
            )  # fmt: skip

    def predict(self, photographs: Photographs) -> Output:
        """Probabilities (n, 5) and the encoder's pooled features (n, D)."""
        from drgrade.grading.regression import predict

        return predict(self.network, self.preprocess, photographs)

    def moments(self, photographs: Photographs, changes: "Plan | None") -> Moments:
        """Moments of the encoder's pooled features."""
        from drgrade.grading.regression import moments

        return moments(self.network, self.preprocess, photographs, changes)

    def explainable(self) -> Explainable:
        """The network with the expected grade as its output."""
        from drgrade.grading.regression import Scores

        return Explainable(Scores(self.network), self.preprocess)

    def tensors(self) -> "GradedNetwork":
        """The network."""
        return self.network

    def checkpoints(self) -> "Mapping[str, Mapping[str, Tensor]]":
        """Weights of other epochs, as named in ``checkpoints``."""
        return self._saved

    def rebuild(self, facts: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Create the network with random weights, which loading overwrites."""
        self.network = self.new_network("random")
