"""Regress the grade on cached features of both eyes: the per-patient blend of o_O (Kaggle DR 2015, 2nd).

The stage ``features`` has stored the mean and the standard deviation of a network's features over many views
of each photograph. A small model reads those of both eyes (:mod:`drgrade.grading.pairing`).

A feature set may come from K networks (:mod:`drgrade.grading.feature_sets`), each trained without one part of
the training patients. Feature j of one network has nothing to do with feature j of another, so this grader
fits one small model for each network, on the training photographs which that network has not seen, and a
prediction is the mean of the K small models. With K = 1, as published, the network was trained on the
photographs whose features the small model is fitted on; features of new photographs then look different.

Deviations from o_O: batches of the class-balanced kind use the class frequencies of the photographs at hand;
the scaler sees only training photographs; validation photographs are never fitted on. Deviation from Huang et
al. in ``fusion``: the head reads which eye it is, and standardised features.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from drgrade.errors import UserError
from drgrade.grading.base import GRADERS, Grader, Job, Output, Photographs, interpolated
from drgrade.params import Experiment
from drgrade.params.block import Fraction, Name

if TYPE_CHECKING:
    from torch import nn

    from drgrade.grading.feature_sets import FeatureSet
    from drgrade.grading.pair_heads import Averaged, MaxoutRecipe, PairRecipe, TreesRecipe
    from drgrade.grading.pairing import Pairs

log = logging.getLogger(__name__)


class Params(Experiment):
    """A small model on cached features of both eyes."""

    grader: Literal["blend"] = "blend"
    """The module of ``drgrade.grading``."""
    features: Annotated[list[Name], Field(min_length=1)]
    """Feature sets; a photograph's features in all of them are concatenated."""
    model: Literal["maxout", "ridge", "boosting", "fusion"] = "maxout"
    """maxout: the blend network of o_O; ridge: a linear regression; boosting: regression trees of LightGBM;
    fusion: the eye-pair head of Huang et al. 2023."""
    per_patient: bool = True
    """Use the features of both eyes and which eye it is; false: those of the photograph alone."""
    std: bool = True
    """Use the features' standard deviations over the views besides their means."""
    repeats: Annotated[int, Field(ge=1)] = 1
    """Models with different random numbers, whose scores are averaged; not for ridge, which has none."""
    epochs: Annotated[int, Field(ge=1)] | None = None
    """Passes over the photographs of maxout and fusion, number of trees of boosting. Null: 100, 50 and
    300."""
    batch_size: Annotated[int, Field(ge=1)] | None = None
    """Photographs a step of maxout and fusion. Null: 128 and 64."""
    lr: Annotated[float, Field(gt=0)] | None = None
    """Learning rate of maxout, fusion and boosting; that of maxout falls tenfold after 60, 80 and 90 percent
    of the epochs. Null: 0.0005, 0.02 and 0.05."""
    balanced: Fraction = 0.2
    """Maxout: probability of a batch from a draw in which all grades are equally likely."""
    uniform: Fraction = 0.3
    """Maxout: probability of a batch of uniformly drawn photographs; other batches follow the table."""
    l1: Annotated[float, Field(ge=0)] = 2e-5
    """Maxout: weight of the first layer's absolute weights in the loss."""
    l2: Annotated[float, Field(ge=0)] = 0.005
    """Maxout: weight of all squared weights in the loss."""
    alphas: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)] = [
        1.0, 10.0, 100.0, 1e3, 1e4, 1e5, 1e6,
    ]  # fmt: skip
    """Ridge: penalties, of which the one with the smallest leave-one-out error is taken."""
    leaves: Annotated[int, Field(ge=2)] = 7
    """Boosting: leaves of a tree."""

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        if self.balanced + self.uniform > 1:
            raise ValueError(f"balanced + uniform is {self.balanced + self.uniform:g}; must be at most 1")
        if self.model == "ridge" and self.repeats > 1:
            raise ValueError("repeats: a ridge regression has no random numbers; leave it at 1")
        return self

    def maxout(self) -> "MaxoutRecipe":
        """Training of the blend network."""
        from drgrade.grading.pair_heads import MaxoutRecipe

        return MaxoutRecipe(**self._given("epochs", "batch_size", "lr", "balanced", "uniform", "l1", "l2"))

    def fusion(self) -> "PairRecipe":
        """Training of the pair head."""
        from drgrade.grading.pair_heads import PairRecipe

        return PairRecipe(**self._given("epochs", "batch_size", "lr"))

    def boosting(self) -> "TreesRecipe":
        """Training of the regression trees."""
        from drgrade.grading.pair_heads import TreesRecipe

        given = self._given("epochs", "lr", "leaves")
        return TreesRecipe(**{{"epochs": "trees"}.get(key, key): value for key, value in given.items()})

    def _given(self, *keys: str) -> dict[str, Any]:
        """Values of keys that are not null."""
        return {key: getattr(self, key) for key in keys if getattr(self, key) is not None}


@GRADERS.register("blend")
class Blend(Grader):
    """One small model, or the mean of several, for each network of the feature sets."""

    Params = Params
    blends: "list[Averaged]"

    def fit(self, job: Job) -> None:
        """Fit on the features of ``job.train``; ``job.val`` is only measured, nothing is selected on it."""
        from drgrade.evaluate.metrics import qwk, to_grades

        sets = self._sets(job.train)
        self.blends = [self._fitted(job, sets, model) for model in range(sets[0].models)]
        if not len(job.val):
            return
        scores = self.predict(job.val).score
        agreement = qwk(job.val.grades, to_grades(scores))
        log.info("%s  %s on %d features  val_qwk %.4g", job.name, self.params.model, self._width, agreement)
        job.run.metrics({"val_qwk": agreement, "val_mse": float(np.mean((scores - job.val.grades) ** 2))})

    def _fitted(self, job: Job, sets: "Sequence[FeatureSet]", model: int) -> "Averaged":
        """The small model for one network, fitted on the training photographs with features of it."""
        from drgrade.device import device
        from drgrade.grading.pair_heads import Averaged
        from drgrade.grading.pairing import Pairs, Standardise, eye_rows
        from drgrade.rng import derive
        from drgrade.seeding import seed_everything

        rows = eye_rows(job.train, sets, model, std=self.params.std)
        if not len(rows.places):
            raise UserError(
                f"features {sets[0].name}: no training photograph has features of model {model} of "
                f"{sets[0].models}; raise label_fraction, or use features of fewer models"
            )
        scaler = Standardise(rows.features.shape[1])
        scaler.adapt(rows.features)
        scaler.to(device())
        pairs = Pairs.of(rows, scaler, per_patient=self.params.per_patient)
        heads = []
        for repeat in range(self.params.repeats):
            seed_everything(job.seed, "blend", model, repeat)
            seed = derive(job.seed, "blend", model, repeat)
            heads.append(self._fitted_head(pairs, job.train.grades[rows.places], seed))
        return Averaged(scaler, heads)

    def _fitted_head(self, pairs: "Pairs", grades: np.ndarray, seed: int) -> "nn.Module":
        """A fitted regressor of the kind ``model``."""
        import torch

        from drgrade.grading import pair_heads

        where = pairs.features.device
        every = torch.arange(len(pairs), device=where)
        if self.params.model == "boosting":
            inputs = pairs.inputs(every).cpu().numpy()
            return pair_heads.fit_trees(inputs, grades, self.params.boosting(), seed)
        head = self._new_head(pairs.features.shape[1]).to(where)
        if self.params.model == "maxout":
            pair_heads.fit_maxout(head, pairs, grades, self.params.maxout(), seed)
        elif self.params.model == "fusion":
            targets = torch.from_numpy(grades.astype(np.float32)).to(where)
            pair_heads.fit_pair_head(
                head, lambda _, items: pairs.inputs(every[items]), targets, self.params.fusion(), seed
            )
        else:
            penalty = head.fit(pairs.inputs(every).cpu().numpy(), grades, self.params.alphas)
            log.info("ridge  penalty %g of %s", penalty, self.params.alphas)
        return head

    def predict(self, photographs: Photographs) -> Output:
        """Probabilities (n, 5), of the mean score of all networks that gave features of a photograph.

        Raises:
            UserError: a feature set is missing, or has no features of one of the photographs.
        """
        from drgrade.device import device
        from drgrade.grading.pairing import Pairs, eye_rows

        sets = self._sets(photographs)
        total, count = np.zeros(len(photographs)), np.zeros(len(photographs))
        for model, blend in enumerate(self.blends):
            rows = eye_rows(photographs, sets, model, std=self.params.std)
            if len(rows.places):
                pairs = Pairs.of(rows, blend.to(device()).scaler, per_patient=self.params.per_patient)
                total[rows.places] += blend.scores(pairs)
                count[rows.places] += 1
        if not count.all():
            lacking = photographs.table["image_id"].iloc[int(np.argmin(count))]
            raise UserError(
                f"features {sets[0].name}: no features of {int((count == 0).sum())} photographs, such as "
                f"{lacking}; run the stage features again"
            )
        return Output(interpolated(total / count))

    def tensors(self) -> "nn.ModuleList":
        """Scalers and regressors of all networks."""
        from torch import nn

        return nn.ModuleList(self.blends)

    def facts(self) -> dict[str, Any]:
        """Numbers of networks and of features, and the regression trees of each network."""
        facts: dict[str, Any] = {"models": len(self.blends), "features": self._width}
        if self.params.model == "boosting":
            facts["trees"] = [[head.text for head in blend.heads] for blend in self.blends]
        return facts

    def rebuild(self, facts: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Create scalers and regressors of the saved sizes."""
        from drgrade.grading.pair_heads import Averaged, Trees
        from drgrade.grading.pairing import Standardise

        features = facts["features"]
        self.blends = []
        for model in range(facts["models"]):
            if self.params.model == "boosting":
                heads = [Trees(text) for text in facts["trees"][model]]
            else:
                heads = [self._new_head(features) for _ in range(self.params.repeats)]
            self.blends.append(Averaged(Standardise(features), heads))

    @property
    def _width(self) -> int:
        """Number of features of one photograph."""
        return len(self.blends[0].scaler.mean)

    def _new_head(self, features: int) -> Any:
        """A regressor before fitting; ``features`` are those of one photograph."""
        from drgrade.grading.pair_heads import MaxoutNetwork, PairHead, Ridge
        from drgrade.grading.pairing import width

        kinds = {"maxout": MaxoutNetwork, "fusion": PairHead, "ridge": Ridge}
        return kinds[self.params.model](width(features, per_patient=self.params.per_patient))

    def _sets(self, photographs: Photographs) -> "list[FeatureSet]":
        """The feature sets of photographs.

        Raises:
            UserError: one is missing, or they are of different numbers of networks.
        """
        names = self.params.features
        lacking = [name for name in names if name not in photographs.features]
        if lacking:
            raise UserError(
                f"features {', '.join(lacking)}: not given for these photographs, and a blend grades by "
                "features alone; run the stage features, or name a model with an encoder"
            )
        sets = [photographs.features[name] for name in names]
        counts = {one.name: one.models for one in sets}
        if len(set(counts.values())) > 1:
            listed = ", ".join(f"{name} of {count}" for name, count in counts.items())
            raise UserError(f"features: must be of equally many networks, not {listed}; use equal ones")
        return sets
