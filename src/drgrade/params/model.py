"""The whole of ``params.yaml``."""

from typing import Any, Self

from pydantic import field_validator, model_validator

from drgrade.params.block import Block, Name
from drgrade.params.grading import Experiment, Grade
from drgrade.params.images import Crop, Dataset, Download, Index, Overlaps, Roles, Scheme
from drgrade.params.lesions import Detector, LesionBoxes, LesionMetrics, Lesions, Patches
from drgrade.params.pretraining import LesionContrastive, Pretraining
from drgrade.params.results import Evaluate, Explain, Report


class Params(Block):
    """Everything that decides a result."""

    datasets: dict[Name, Dataset] = {"demo": Dataset(), "demo_site": Dataset()}
    """The datasets that take part."""
    roles: Roles = Roles(external=["demo_site"])
    download: Download = Download()
    index: Index = Index()
    overlaps: Overlaps = Overlaps()
    crop: Crop = Crop()
    lesion_boxes: LesionBoxes = LesionBoxes()
    detector: Detector = Detector()
    lesions: Lesions = Lesions()
    lesion_metrics: LesionMetrics = LesionMetrics()
    patches: Patches = Patches()
    pretrain: dict[Name, Pretraining] = {
        "lesion_contrastive": LesionContrastive(epochs=16, boxes_per_image=4, knn_every=4)
    }
    """Encoders pretrained without grades, by name; the name is the method where ``method`` is not given."""
    grade: Grade = Grade()
    experiments: dict[Name, Experiment] = {
        "majority": Experiment(grader="majority"),
        "random": Experiment(start="random", seeds=[0, 1]),
        "imagenet": Experiment(start="imagenet", seeds=[0, 1]),
        "lesion_contrastive": Experiment(start="lesion_contrastive", seeds=[0, 1]),
    }
    """The rows of the leaderboard, by name."""
    evaluate: Evaluate = Evaluate()
    explain: Explain = Explain()
    report: Report = Report()

    def scheme(self, dataset: str) -> Scheme:
        """How a dataset is split: its own scheme, else that of ``index``."""
        return self.datasets[dataset].scheme or self.index.scheme

    def grading(self, experiment: str) -> Grade:
        """The block ``grade`` as an experiment has it."""
        return self.experiments[experiment].graded_by(self.grade)

    @field_validator("pretrain", mode="before")
    @classmethod
    def _named_after_the_method(cls, blocks: Any) -> Any:
        if not isinstance(blocks, dict):
            return blocks
        return {
            name: {"method": name} | block if isinstance(block, dict) else block
            for name, block in blocks.items()
        }

    @model_validator(mode="after")
    def _possible(self) -> Self:
        for role, names in self.roles.model_dump().items():
            for dataset in names if isinstance(names, list) else [names]:
                if dataset not in self.datasets:
                    raise ValueError(
                        f"roles.{role}: {dataset!r} is not one of datasets "
                        f"({', '.join(self.datasets)}); add it there or change the role"
                    )
        taken = {"random", "imagenet"} & set(self.pretrain)
        if taken:
            raise ValueError(
                f"pretrain.{min(taken)}: experiments start from {min(taken)} weights; name it otherwise"
            )
        if self.roles.grade in self.roles.external:
            raise ValueError(
                f"roles.external: {self.roles.grade!r} trains the graders; an external test is on other data"
            )
        for name, dataset in self.datasets.items():
            if self.scheme(name) == "file" and dataset.split_file is None:
                raise ValueError(
                    f"datasets.{name}.split_file: the scheme 'file' needs a CSV (image_id, split); name it"
                )
        if self.explain.experiment not in self.experiments:
            raise ValueError(
                f"explain.experiment: {self.explain.experiment!r} is not one of experiments "
                f"({', '.join(self.experiments)})"
            )
        scheme = self.scheme(self.roles.grade)
        selects = any(self.grading(name).select == "best" for name in self.experiments)
        if scheme == "kfold" and selects and self.index.folds < 3:
            raise ValueError(
                "grade.select: 'best' needs a validation fold beside the test fold; "
                "set index.folds to 3 or more, or grade.select to last"
            )
        if scheme == "holdout" and self.index.val_fraction + self.index.test_fraction >= 1:
            raise ValueError(
                "index.val_fraction: leaves no training patients; lower it or index.test_fraction"
            )
        if self.patches.size > self.crop.size:
            raise ValueError("patches.size: larger than crop.size; a patch is cut from a crop")
        if self.patches.published and (self.crop.rule, self.crop.aspect) != ("o_O", "squash"):
            raise ValueError(
                "patches.published: its boxes lie in crops of crop.rule o_O and crop.aspect squash; set both"
            )
        return self
