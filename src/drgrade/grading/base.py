"""What a grader is, and what it is given.

A grader is one module of this package with one class, registered under the module's name, and its params
model. Its experiments, seeds, folds, predictions and rows of the leaderboard come by themselves:

>>> @GRADERS.register("majority")
... class Majority(Grader): ...

Modules of graders are imported when ``params.yaml`` is checked; that stays fast where torch is imported
inside functions.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import pandas as pd

from drgrade.params import GRADERS, Crop, Experiment
from drgrade.schema import GRADES

if TYPE_CHECKING:
    from torch import nn

    from drgrade.images.preprocess import Preprocess
    from drgrade.images.store import Pictures
    from drgrade.lesions.mask_store import Masks

__all__ = [
    "GRADERS", "Explainable", "Grader", "Job", "Need", "Output", "Photographs", "Start", "interpolated",
]  # fmt: skip

Need = Literal["boxes", "masks"]
"""What a grader may ask for beside crops and grades: lesions that the detector found; photographs with drawn
lesion masks (``Job.masked``)."""


@dataclass(frozen=True)
class Photographs:
    """Crops and what is known of them: a store and the rows of it that belong to one split.

    Attributes:
        images: store of uint8 RGB crops (N, S, S, 3), shared between splits.
        table: one row for each photograph: image_id, patient_id, eye, grade, row (in ``images``).
        boxes: lesions found by the detector, by image_id: x1, y1, x2, y2 in crop pixels, score, lesion; None
            unless the grader needs them.
        members: trained models of the experiments the grader builds on, by name.
        masks: drawn lesions of these photographs, in crop space; ``Job.masked`` alone has them.
    """

    images: "Pictures"
    table: pd.DataFrame
    boxes: "pd.DataFrame | None" = None
    members: "Mapping[str, Grader]" = field(default_factory=dict)
    masks: "Masks | None" = None

    def __len__(self) -> int:
        return len(self.table)

    @property
    def rows(self) -> np.ndarray:
        """Row numbers in ``images``, int64 (n,)."""
        return self.table["row"].to_numpy(np.int64)

    @property
    def grades(self) -> np.ndarray:
        """Grades 0-4, int64 (n,)."""
        return self.table["grade"].to_numpy(np.int64)

    @cached_property
    def outputs(self) -> "dict[str, Output]":
        """Outputs of each member for these photographs, computed on first use."""
        alone = replace(self, members={})
        return {name: member.predict(alone) for name, member in self.members.items()}

    def partner(self) -> np.ndarray:
        """Place of the same patient's other eye among these photographs, int64 (n,); -1 where there is none.

        Of several photographs of the other eye it is the first.
        """
        known = self.table["patient_id"].notna() & self.table["eye"].isin(["left", "right"])
        eyes = self.table.assign(place=np.arange(len(self)))[known]
        other = eyes["eye"].map({"left": "right", "right": "left"})
        first = eyes.drop_duplicates(["patient_id", "eye"]).set_index(["patient_id", "eye"])["place"]
        keys = pd.MultiIndex.from_arrays([eyes["patient_id"], other])
        found = np.full(len(self), -1, np.int64)
        found[eyes["place"]] = first.reindex(keys).fillna(-1).to_numpy(np.int64)
        return found


@dataclass(frozen=True)
class Start:
    """The weights that an encoder starts from.

    Attributes:
        kind: ``random``, ``imagenet``, ``pretrain``, ``experiment`` or ``file``.
        path: of the weights, None for ``random`` and ``imagenet``.
        sha256: of the file that is read; None for ``random``.
    """

    kind: str
    path: Path | None = None
    sha256: str | None = None

    @property
    def weights(self) -> str:
        """As :func:`drgrade.encoders.create_encoder` takes it: a word or a file's path."""
        return self.kind if self.path is None else str(self.path)


@dataclass(frozen=True)
class Job:
    """All that one training of a grader may use.

    Attributes:
        train: photographs to learn from.
        val: photographs to select on; empty when nothing is held out.
        start: weights of the encoder.
        seed: of everything random.
        name: what the log calls it.
        key: identifies the training, for its checkpoints: changes with anything that would make resuming it
            wrong (:func:`drgrade.resume.training_key`).
        run: MLflow run of this training.
        masked: training photographs with drawn lesion masks, of the dataset in ``roles.lesions``, mostly
            without a grade. None unless the grader needs masks.
    """

    train: Photographs
    val: Photographs
    start: Start
    seed: int
    name: str
    key: str
    run: Any
    masked: Photographs | None = None


@dataclass(frozen=True)
class Output:
    """Predictions of a grader for n photographs.

    Attributes:
        probabilities: of each grade, float64 (n, 5), rows sum to 1.
        score: expected grade, 0-4, (n,); the expectation of ``probabilities`` where not given.
        features: what graders that build on this one learn from, float32 (n, D), or None.
    """

    probabilities: np.ndarray
    score: np.ndarray = None  # type: ignore[assignment]
    features: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.score is None:
            object.__setattr__(self, "score", self.probabilities @ np.array(GRADES))


@dataclass(frozen=True)
class Explainable:
    """What an explainer looks into.

    Attributes:
        network: inputs (B, 3, S, S) to scores (B,), (B, 1) or logits of the grades (B, 5).
        preprocess: from crops to its inputs.
    """

    network: "nn.Module"
    preprocess: "Preprocess"


class Grader(ABC):
    """Learns grades from crops and predicts a probability for each grade.

    Args:
        params: the experiment, with the shared keys of the block ``grade`` filled in.
        crop: how the crops were made, kept with the model so that it can grade new photographs.

    Attributes:
        Params: model of the experiment's keys in ``params.yaml``.
        needs: what it is given beside crops and grades.
    """

    Params: ClassVar[type[Experiment]] = Experiment
    needs: ClassVar[frozenset[Need]] = frozenset()

    def __init__(self, params: Any, crop: Crop) -> None:
        self.params = params
        self.crop = crop

    @abstractmethod
    def fit(self, job: Job) -> None:
        """Learn from ``job.train``; choose on ``job.val`` only."""

    @abstractmethod
    def predict(self, photographs: Photographs) -> Output:
        """Grade photographs, whose grades it does not look at."""

    @cached_property
    def preprocess(self) -> "Preprocess":
        """From crops to the inputs of the experiment's encoder."""
        from drgrade.images.preprocess import Preprocess

        return Preprocess.of(self.params.encoder, self.params.input_size, self.crop)

    def explainable(self) -> Explainable | None:
        """The network that heat maps are drawn of; None where there is none."""
        return None

    def tensors(self) -> "nn.Module | None":
        """Holds every tensor of the trained model; None where there are none."""
        return None

    def facts(self) -> dict[str, Any]:
        """What else the trained model must remember, as JSON."""
        return {}

    def rebuild(self, facts: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:  # noqa: B027
        """Prepare a new grader for the tensors of a saved one: afterwards :meth:`tensors` has their places.

        Args:
            facts: of the saved grader.
            shapes: of its tensors, by name.
        """

    def save(self, folder: Path) -> None:
        """Write ``model.json`` and, where there are tensors, ``model.safetensors``."""
        from drgrade.grading.models import write_model

        write_model(self, folder)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The grader that :meth:`save` wrote; every tensor must fit.

        Raises:
            UserError: a file is missing or damaged.
        """
        from drgrade.grading.models import read_model

        return read_model(cls, folder)


def interpolated(scores: np.ndarray) -> np.ndarray:
    """Grade probabilities whose expectation is the regressed score.

    A score between two grades is shared by its neighbours: 2.3 is grade 2 at 0.7 and grade 3 at 0.3.

    Args:
        scores: (n,), clipped to 0-4.

    Returns:
        float64 (n, 5), rows sum to 1.
    """
    clipped = np.clip(np.asarray(scores, np.float64), GRADES[0], GRADES[-1])
    return np.clip(1 - np.abs(clipped[:, None] - np.array(GRADES)), 0, 1)
