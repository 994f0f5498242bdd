"""The interface of a grader, and the data it receives.

A grader is one module of this package with one class, registered under the module's name, and its params
model. Experiments, seeds, folds, predictions and leaderboard rows need no further code:

>>> @GRADERS.register("majority")
... class Majority(Grader): ...

Checking ``params.yaml`` imports every grader's module; to keep that fast, import torch inside functions only.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import pandas as pd

from drgrade.errors import UserError
from drgrade.params import GRADERS, Crop, Experiment
from drgrade.schema import GRADES

if TYPE_CHECKING:
    from torch import Tensor, nn

    from drgrade.grading.feature_sets import FeatureSet
    from drgrade.images.augment import Plan
    from drgrade.images.preprocess import Preprocess
    from drgrade.images.store import Images
    from drgrade.lesions.mask_store import Masks

__all__ = [
    "GRADERS", "Explainable", "Grader", "Job", "Moments", "Need", "Output", "Photographs", "Start",
    "interpolated",
]  # fmt: skip

Moments = tuple[np.ndarray, np.ndarray]
"""Mean and standard deviation of features over transforms, float32 (n, D) each."""
Need = Literal["boxes", "masks"]
"""Inputs a grader may require besides crops and grades: ``boxes``, lesions found by the detector; ``masks``,
photographs with annotated lesion masks (``Job.masked``)."""


@dataclass(frozen=True)
class Photographs:
    """The photographs of one split: a store of crops, and a table with one row for each photograph.

    Attributes:
        images: store of uint8 RGB crops (N, S, S, 3), shared between splits.
        table: one row for each photograph: image_id, patient_id, eye, grade, row (in ``images``).
        boxes: lesions found by the detector, by image_id: x1, y1, x2, y2 in crop pixels, score, lesion; None
            unless the grader needs them.
        members: trained models of the experiments the grader builds on, by name.
        masks: annotated lesion masks of these photographs, in crop pixels; None except in ``Job.masked``.
        features: feature sets that the grader or one of its members is fitted on, by name.
        dataset: name of the dataset; empty for new photographs.
    """

    images: "Images"
    table: pd.DataFrame
    boxes: "pd.DataFrame | None" = None
    members: "Mapping[str, Grader]" = field(default_factory=dict)
    masks: "Masks | None" = None
    features: "Mapping[str, FeatureSet]" = field(default_factory=dict)
    dataset: str = ""

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
        """Position in ``table`` of the same patient's other eye, int64 (n,); -1 where there is none.

        If there are several photographs of the other eye, it is the first.
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
    """The initial weights of an encoder.

    Attributes:
        kind: ``random``, ``imagenet``, ``pretrain``, ``experiment`` or ``file``.
        path: weights file, None for ``random`` and ``imagenet``.
        sha256: digest of the file that is read; None for ``random``.
    """

    kind: str
    path: Path | None = None
    sha256: str | None = None

    @property
    def weights(self) -> str:
        """The argument ``start`` of :func:`drgrade.encoders.create_encoder`: a keyword or a file's path."""
        return self.kind if self.path is None else str(self.path)


@dataclass(frozen=True)
class Job:
    """The inputs of one training of a grader.

    Attributes:
        train: training photographs.
        val: validation photographs, for model selection; empty when nothing is held out.
        start: initial weights of the encoder.
        seed: seed of all random numbers.
        name: name of the training in the log.
        key: identifies the training's checkpoints; changes with anything that would make resuming from them
            wrong (:func:`drgrade.resume.training_key`).
        run: MLflow run of this training.
        masked: training photographs with annotated lesion masks, from the dataset ``roles.lesions``; most
            have no grade. None unless the grader needs masks.
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
        probabilities: class probabilities, float64 (n, 5), rows sum to 1.
        score: expected grade, 0-4, (n,); the expectation of ``probabilities`` where not given.
        features: input for graders that build on this one, float32 (n, D), or None.
    """

    probabilities: np.ndarray
    score: np.ndarray = None  # type: ignore[assignment]
    features: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.score is None:
            object.__setattr__(self, "score", self.probabilities @ np.array(GRADES))


@dataclass(frozen=True)
class Explainable:
    """A network that an explainer can compute heat maps for.

    Attributes:
        network: maps inputs (B, 3, S, S) to scores (B,) or (B, 1), or to class logits (B, 5).
        preprocess: converts crops to the network's inputs.
    """

    network: "nn.Module"
    preprocess: "Preprocess"


class Grader(ABC):
    """Learns grades from crops and predicts a probability for each grade.

    Args:
        params: the experiment, with the shared keys of the block ``grade`` filled in.
        crop: how the crops were made, kept with the model so that it can grade new photographs.

    Attributes:
        Params: pydantic model of the experiment's keys in ``params.yaml``.
        needs: inputs it requires besides crops and grades.
    """

    Params: ClassVar[type[Experiment]] = Experiment
    needs: ClassVar[frozenset[Need]] = frozenset()

    def __init__(self, params: Any, crop: Crop) -> None:
        self.params = params
        self.crop = crop

    @abstractmethod
    def fit(self, job: Job) -> None:
        """Train on ``job.train``; use only ``job.val`` for model selection."""

    @abstractmethod
    def predict(self, photographs: Photographs) -> Output:
        """Predict the grades of photographs; their true grades are not used."""

    @cached_property
    def preprocess(self) -> "Preprocess":
        """Conversion of crops to the inputs of the experiment's encoder."""
        from drgrade.images.preprocess import Preprocess

        return Preprocess.of(
            self.params.encoder, self.params.input_size, self.crop, test_time=self.params.test_time,
            augment=self.params.augment,
        )  # fmt: skip

    def moments(self, photographs: Photographs, changes: "Plan | None") -> "Moments":
        """Mean and standard deviation of the encoder's features over test-time transforms, each (n, D).

        Args:
            photographs: n photographs.
            changes: the transforms, the same for all photographs; None: none, and the deviations are 0.

        Raises:
            UserError: the grader has no encoder.
        """
        raise UserError(
            f"features: the grader {self.params.grader!r} has no encoder whose features could be stored; "
            "name another experiment"
        )

    def explainable(self) -> Explainable | None:
        """The network to compute heat maps for; None where there is none."""
        return None

    def tensors(self) -> "nn.Module | None":
        """A module that holds every tensor of the trained model; None where there are none."""
        return None

    def checkpoints(self) -> "Mapping[str, Mapping[str, Tensor]]":
        """Further weights of :meth:`tensors` to save, by name, such as those of another epoch."""
        return {}

    def facts(self) -> dict[str, Any]:
        """State of the trained model other than tensors, as JSON values."""
        return {}

    def rebuild(self, facts: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:  # noqa: B027
        """Prepare a new grader for loading: afterwards :meth:`tensors` has tensors of the saved shapes.

        Args:
            facts: result of :meth:`facts` of the saved grader.
            shapes: shapes of its tensors, by name.
        """

    def save(self, folder: Path) -> None:
        """Write ``model.json``, and where there are tensors ``model.safetensors`` and further checkpoints."""
        from drgrade.grading.models import write_model

        write_model(self, folder)

    @classmethod
    def load(cls, folder: Path, checkpoint: str | None = None) -> Self:
        """Load a grader that :meth:`save` wrote; names and shapes of all tensors must match.

        Args:
            folder: holds ``model.json``.
            checkpoint: name of one of the further :meth:`checkpoints`; None: the selected weights.

        Raises:
            UserError: a file is missing or damaged.
        """
        from drgrade.grading.models import read_model

        return read_model(cls, folder, checkpoint)


def interpolated(scores: np.ndarray) -> np.ndarray:
    """Grade probabilities whose expectation is the regressed score.

    A score between two grades is interpolated linearly: 2.3 gives 0.7 to grade 2 and 0.3 to grade 3.

    Args:
        scores: (n,), clipped to 0-4.

    Returns:
        float64 (n, 5), rows sum to 1.
    """
    clipped = np.clip(np.asarray(scores, np.float64), GRADES[0], GRADES[-1])
    return np.clip(1 - np.abs(clipped[:, None] - np.array(GRADES)), 0, 1)
