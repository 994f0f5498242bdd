"""Grade by the lesions that a segmentation network marks: how many, how large, and where.

Grades are defined by lesions, and few photographs have masks while many have grades. A network learns to mark
lesions from the masks (:mod:`drgrade.segmentation`). The marks in each graded photograph are counted
(:mod:`drgrade.grading.lesion_statistics`), and a ridge regression (:mod:`drgrade.grading.ridge`) learns the
grade from the logarithms of these numbers. The network sees no grade, and the regression no pixel.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from drgrade.errors import UserError
from drgrade.grading.base import GRADERS, Grader, Job, Need, Output, Photographs
from drgrade.grading.ridge import around, regressed
from drgrade.params import Encoded, Segmentation
from drgrade.schema import GRADES

if TYPE_CHECKING:
    from torch import nn

    from drgrade.grading.lesion_statistics import LesionRegression
    from drgrade.segmentation.regions import Region


class Params(Encoded):
    """A regression of the grade on numbers and sizes of lesions; ``input_size`` must be ``crop.size``."""

    grader: Literal["lesion_counts"] = "lesion_counts"
    """The module of ``drgrade.grading``."""
    tile: Annotated[int, Field(ge=64, multiple_of=32)] = 192
    """Side of the tiles that the segmentation learns from, in pixels of the crop."""
    tiles_per_photograph: Annotated[int, Field(ge=1)] = 16
    """Tiles of each photograph with masks in an epoch."""
    lesion_share: Annotated[float, Field(ge=0, le=1)] = 0.7
    """Share of the tiles around a lesion."""
    epochs: Annotated[int, Field(ge=1)] = 28
    """Passes of the segmentation over the photographs with masks."""
    batch_size: Annotated[int, Field(ge=1)] = 8
    """Tiles per step."""
    lr: Annotated[float, Field(gt=0)] = 0.003
    """Peak learning rate of the segmentation: AdamW, one-cycle."""
    alphas: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)] = [
        1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1e3, 3e3, 1e4,
    ]  # fmt: skip
    """Penalties of the regression, as in the grader ``ridge``."""
    stretch: bool = True
    """As in the grader ``ridge``."""

    def segmentation(self, seed: int) -> Segmentation:
        """The segmentation's own params."""
        return Segmentation(
            encoder=self.encoder, start="random", tile=self.tile, epochs=self.epochs, lr=self.lr,
            batch_size=self.batch_size, tiles_per_photograph=self.tiles_per_photograph,
            lesion_share=self.lesion_share, zoom=[0.75, 1.35], seed=seed,
        )  # fmt: skip


@GRADERS.register("lesion_counts")
class LesionCounts(Grader):
    """A segmentation network, numbers of its marks, and one linear unit."""

    Params = Params
    needs: ClassVar[frozenset[Need]] = frozenset({"masks"})
    network: "LesionRegression"
    fitted: dict[str, float]

    def fit(self, job: Job) -> None:
        """Train the segmentation on ``job.masked``, then regress the grades of ``job.train``.

        Raises:
            UserError: ``input_size`` is not the side of the crops, or the start weights are missing.
        """
        from drgrade.evaluate.metrics import qwk, to_grades

        self.network = self._segmented(job)
        found = self._found(job.train)
        regression, self.fitted = regressed(job, found, self.params.alphas, self.params.stretch)
        self.network.set_head(regression.weights, regression.constant)
        if len(job.val):
            self.fitted["val_qwk"] = qwk(job.val.grades, to_grades(self.predict(job.val).score))
        job.run.metrics(self.fitted)

    def predict(self, photographs: Photographs) -> Output:
        """Probabilities (n, 5) around the score, and the lesion statistics (n, D)."""
        found = self._found(photographs)
        weights, constant = self.network.linear()
        scores = found.astype(np.float64) @ weights + constant
        return Output(around(scores, self.fitted["spread"]), scores.clip(GRADES[0], GRADES[-1]), found)

    def tensors(self) -> "nn.Module":
        """The network."""
        return self.network

    def facts(self) -> dict[str, Any]:
        """The chosen penalty, and QWK and error of left-out patients."""
        return dict(self.fitted)

    def rebuild(self, facts: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Create the network with random weights, which loading overwrites."""
        from drgrade.grading.lesion_statistics import LesionRegression
        from drgrade.segmentation.network import SegmentationNetwork

        self.fitted = dict(facts)
        self.network = LesionRegression(SegmentationNetwork(self.params.segmentation(0)))

    def _segmented(self, job: Job) -> "LesionRegression":
        """Train the segmentation."""
        from drgrade.grading.lesion_statistics import LesionRegression
        from drgrade.seeding import seed_everything
        from drgrade.segmentation.network import new_network
        from drgrade.segmentation.train import Training
        from drgrade.training import fit

        params = self.params.segmentation(job.seed)
        seed_everything(job.seed, "segmentation")
        network = new_network(params.model_copy(update={"start": job.start.weights}))
        module = Training(network, params, self._regions(job), [])
        fit(module, name=job.name, epochs=params.epochs, seed=job.seed, key=(job.key,), run=job.run)
        return LesionRegression(network)

    def _regions(self, job: Job) -> "list[Region]":
        """Crops with masks."""
        from drgrade.segmentation.regions import Region

        masked = job.masked
        if masked is None or masked.masks is None:
            raise UserError("experiments.<name>.grader: lesion_counts needs photographs with lesion masks")
        side = masked.images.shape[1]
        if self.params.input_size != side:
            raise UserError(
                f"experiments.<name>.input_size: {self.params.input_size}, but lesions are marked in crops "
                f"of {side} pixels; set it to crop.size"
            )
        return [
            Region(
                str(row["image_id"]), np.asarray(masked.images[row["row"]]), masked.masks[place],
                int(masked.masks.annotated[place]),
            )
            for place, row in enumerate(masked.table.to_dict("records"))
        ]  # fmt: skip

    def _found(self, photographs: Photographs) -> np.ndarray:
        """Lesion statistics, float32 (n, D)."""
        from drgrade.grading.lesion_statistics import statistics_of
        from drgrade.images.scaled import at_size

        images = at_size(photographs.images, self.params.input_size)
        return statistics_of(self.network.segmentation, images, photographs.rows)
