"""The model of the whole ``params.yaml``."""

from collections.abc import Iterator
from typing import Annotated, Any, Self

from pydantic import Field, field_serializer, field_validator, model_validator

from drgrade.params.block import Block, Name
from drgrade.params.grading import BY_GRADER, GRADERS, Encoded, Experiment, Features, Grade
from drgrade.params.images import Crop, Dataset, Download, Index, Overlaps, Roles, Scheme
from drgrade.params.lesions import (
    Detector,
    LesionBoxes,
    LesionMasks,
    LesionMetrics,
    Lesions,
    Patches,
    Segmentation,
    SegmentationMetrics,
)
from drgrade.params.pretraining import LesionContrastive, Pretraining
from drgrade.params.results import Calibrate, Evaluate, Explanation, Report, Robustness
from drgrade.params.start import StartFrom, parse_start


class Params(Block):
    """All parameters that affect results."""

    datasets: dict[Name, Dataset] = {"demo": Dataset(), "demo_site": Dataset()}
    """The datasets that are used."""
    # a factory: in a file with other roles, external stays empty instead of the demo's
    roles: Roles = Field(default_factory=lambda: Roles(external=["demo_site"]))
    download: Download = Download()
    index: Index = Index()
    overlaps: Overlaps = Overlaps()
    crop: Crop = Crop()
    lesion_boxes: LesionBoxes = LesionBoxes()
    lesion_masks: LesionMasks = LesionMasks()
    detector: Detector = Detector()
    lesions: Lesions = Lesions()
    lesion_metrics: LesionMetrics = LesionMetrics()
    segmentation: Segmentation = Segmentation()
    segmentation_metrics: SegmentationMetrics = SegmentationMetrics()
    patches: Patches = Patches()
    pretrain: dict[Name, Pretraining] = {
        "lesion_contrastive": LesionContrastive(boxes_per_image=4, knn_every=4)
    }
    """Encoders pretrained without grades, by name; the name is the method if ``method`` is not given."""
    grade: Grade = Grade()
    experiments: dict[Name, Annotated[Experiment, BY_GRADER]] = Field(
        default={
            "majority": {"grader": "majority"},
            "random": {"start": "random"},
            "imagenet": {"start": "imagenet"},
            "lesion_contrastive": {"start": "lesion_contrastive"},
        },
        validate_default=True,
    )
    """The rows of the leaderboard, by name; each grader has its own keys."""
    features: dict[Name, Features] = {}
    """Feature sets that graders such as ``blend`` are fitted on, by name."""
    calibrate: Calibrate = Calibrate()
    evaluate: Evaluate = Evaluate()
    explanations: dict[Name, Explanation] = {"cam": Explanation()}
    """Heat maps, by name."""
    robustness: Robustness = Robustness()
    report: Report = Report()

    def scheme(self, dataset: str) -> Scheme:
        """Split scheme of a dataset: its own, else that of ``index``."""
        return self.datasets[dataset].scheme or self.index.scheme

    def experiment(self, name: str) -> Experiment:
        """An experiment with the values of the block ``grade`` for the shared keys it does not set."""
        return self.experiments[name].over(self.grade)

    def start(self, name: str) -> StartFrom | None:
        """Initial weights of an experiment's encoder; None for a grader without an encoder.

        Raises:
            ValueError: the experiment's ``start`` is not valid.
        """
        experiment = self.experiments[name]
        return parse_start(experiment.start, self.pretrain) if isinstance(experiment, Encoded) else None

    def built_on(self, name: str) -> list[str]:
        """Experiments whose models an experiment needs: that of its initial weights, and its members."""
        start = self.start(name)
        first = [start.name] if start and start.kind == "experiment" else []
        return [*first, *self.experiments[name].members]

    def parts_of_features(self, name: str) -> int:
        """Number of networks, each without one part of the patients, that give a feature set; or 0."""
        features = self.features[name]
        return self.experiments[features.experiment].out_of_fold if features.out_of_fold else 0

    def feature_sets(self, name: str) -> list[str]:
        """Feature sets that an experiment or one of its members is fitted on."""
        own = list(getattr(self.experiments[name], "features", []))
        others = [self.feature_sets(member) for member in self.experiments[name].members]
        return list(dict.fromkeys([*own, *(one for sets in others for one in sets)]))

    def depends_on(self, name: str) -> list[str]:
        """Experiments that an experiment needs: those it is built on, and those that give its features."""
        sets = getattr(self.experiments[name], "features", [])
        return [*self.built_on(name), *(self.features[one].experiment for one in sets)]

    @field_validator("pretrain", mode="before")
    @classmethod
    def _named_after_the_method(cls, blocks: Any) -> Any:
        if not isinstance(blocks, dict):
            return blocks
        return {
            name: {"method": name} | block if isinstance(block, dict) else block
            for name, block in blocks.items()
        }

    @field_serializer("experiments")
    def _as_written(self, experiments: dict[str, Experiment]) -> dict[str, dict[str, Any]]:
        return {name: experiment.written() for name, experiment in experiments.items()}

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if reasons := list(self._missing()) or list(self._impossible()):
            raise ValueError("\n".join(reasons))
        return self

    def _missing(self) -> Iterator[str]:
        """Yield a line for each name that is unknown or ambiguous."""
        for name in sorted({"random", "imagenet"} & set(self.pretrain)):
            yield f"pretrain.{name}: experiments start from {name} weights; name it otherwise"
        for role, names in self.roles.model_dump().items():
            for dataset in names if isinstance(names, list) else [names]:
                if dataset not in self.datasets:
                    yield (
                        f"roles.{role}: {dataset!r} is not one of datasets "
                        f"({', '.join(self.datasets)}); add it there or change the role"
                    )
        there = f"is not one of experiments ({', '.join(self.experiments)})"
        for name, block in self.explanations.items():
            keys = ["experiment", *("also" for _ in block.also)]
            for key, other in zip(keys, block.experiments, strict=False):  # lesion methods have none
                if other not in self.experiments:
                    yield f"explanations.{name}.{key}: {other!r} {there}"
            if len(set(block.experiments)) < len(block.experiments):
                yield f"explanations.{name}.also: an experiment is named twice; name each once"
        for other in self.robustness.experiments:
            if other not in self.experiments:
                yield f"robustness.experiments: {other!r} {there}"
        for name, features in self.features.items():
            if features.experiment not in self.experiments:
                yield f"features.{name}.experiment: {features.experiment!r} {there}"
        for name in self.experiments:
            for one in getattr(self.experiments[name], "features", []):
                if one not in self.features:
                    known = ", ".join(self.features) or "none"
                    yield f"experiments.{name}.features: {one!r} is not one of features ({known})"
            try:
                others = self.built_on(name)
            except ValueError as error:
                yield f"experiments.{name}.{error}"
                continue
            for other in others:
                if other not in self.experiments:
                    yield f"experiments.{name}: builds on {other!r}, which {there}"

    def _impossible(self) -> Iterator[str]:
        """Yield a line for each combination of values that is not possible."""
        if self.roles.grade in self.roles.external:
            trains = f"{self.roles.grade!r} trains the graders"
            yield f"roles.external: {trains}; an external test is on other data"
        for name, dataset in self.datasets.items():
            if self.scheme(name) == "file" and dataset.split_file is None:
                yield f"datasets.{name}.split_file: the scheme 'file' needs a CSV (image_id, split); name it"
        for name in self.experiments:
            yield from self._unbuildable(name)
        for name in self.features:
            yield from self._not_stored(name)
        scheme = self.scheme(self.roles.grade)
        selects = any(getattr(self.experiment(name), "select", "") == "best" for name in self.experiments)
        if scheme == "kfold" and selects and self.index.folds < 3:
            yield (
                "grade.select: 'best' needs a validation fold beside the test fold; "
                "set index.folds to 3 or more, or grade.select to last"
            )
        if scheme == "holdout" and self.index.val_fraction + self.index.test_fraction >= 1:
            yield "index.val_fraction: leaves no training patients; lower it or index.test_fraction"
        if self.lesions.source == "segmentation" and self.segmentation.folds is not None:
            yield (
                f"segmentation.folds: {self.segmentation.folds} folds train as many networks, and "
                "lesions.source needs one; set it to null, or lesions.source to detector"
            )
        if self.patches.size > self.crop.size:
            yield "patches.size: larger than crop.size; a patch is cut from a crop"
        if self.patches.published and (self.crop.rule, self.crop.aspect) != ("o_O", "squash"):
            crops = "crops of crop.rule o_O and crop.aspect squash"
            yield f"patches.published: its boxes lie in {crops}; set both"

    def _unbuildable(self, name: str) -> Iterator[str]:
        """Yield a line for each reason why an experiment cannot be trained."""
        yield from self._out_of_fold(name)
        for other in self.depends_on(name):
            lacking = set(self.experiments[name].seeds) - set(self.experiments[other].seeds)
            if lacking:
                yield (
                    f"experiments.{name}.seeds: builds on {other!r}, which has no seed {min(lacking)}; "
                    "models are matched by seed and fold, so add it there"
                )
        needs = GRADERS.get(self.experiments[name].grader).needs
        if "boxes" in needs and self.roles.pretrain != self.roles.grade:
            yield (
                f"experiments.{name}: its grader needs lesions of {self.roles.grade}, but the detector "
                f"searches {self.roles.pretrain}; set roles.pretrain to {self.roles.grade}"
            )
        path, todo = {name}, self.depends_on(name)
        while todo:
            other = todo.pop()
            if other == name:
                yield f"experiments.{name}: builds on itself, through {', '.join(sorted(path))}"
                return
            if other not in path:
                path.add(other)
                todo += self.depends_on(other)

    def _out_of_fold(self, name: str) -> Iterator[str]:
        """Yield a line for each reason why an experiment's parts cannot be trained or do not match."""
        experiment = self.experiments[name]
        sets, start = getattr(experiment, "features", []), self.start(name)
        if experiment.out_of_fold and (experiment.members or sets):
            yield f"experiments.{name}.out_of_fold: not for an experiment that builds on others; leave it out"
        if experiment.out_of_fold and start and start.kind == "experiment":
            other = self.experiments[start.name].out_of_fold
            if other != experiment.out_of_fold:
                yield (
                    f"experiments.{start.name}.out_of_fold: {other}, but {name}, which starts from it, has "
                    f"{experiment.out_of_fold}; its start weights must not have seen the left-out part "
                    "either, so set both the same"
                )
        counts = {one: self.parts_of_features(one) for one in sets}
        if len(set(counts.values())) > 1:
            listed = ", ".join(f"{one} {count}" for one, count in counts.items())
            yield f"experiments.{name}.features: of different out_of_fold ({listed}); set all the same"

    def _not_stored(self, name: str) -> Iterator[str]:
        """Yield a line for each reason why there are no such features."""
        wanted, source = self.features[name].checkpoint, self.features[name].experiment
        experiment = self.experiment(source)
        if not isinstance(experiment, Encoded):
            yield (
                f"features.{name}.experiment: the grader {experiment.grader!r} of {source} has no encoder; "
                "name another experiment"
            )
        elif wanted not in ("selected", *getattr(experiment, "checkpoints", [])):
            yield (
                f"features.{name}.checkpoint: {source} does not save {wanted!r}; "
                "add it to that experiment's checkpoints"
            )
        elif wanted.startswith("best") and not self._validates(experiment):
            kfold = self.scheme(self.roles.grade) == "kfold"
            remedy = f"experiments.{source}.select to best" if kfold else "index.val_fraction above 0"
            yield (
                f"features.{name}.checkpoint: {source} has no validation photographs to choose {wanted!r} "
                f"by; take last, or set {remedy}"
            )

    def _validates(self, experiment: Encoded) -> bool:
        """Whether an experiment's trainings have validation photographs; with a split file they may."""
        scheme = self.scheme(self.roles.grade)
        if scheme == "kfold":
            return experiment.select == "best"
        return scheme == "file" or self.index.val_fraction > 0
