"""A trained model together with all models that it builds on, to grade new photographs.

Blends and ensembles read what other experiments computed. In the pipeline that comes from tables of the
results; for new photographs it is computed here, by the same models, which are found in the results by the
names of their experiments.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from drgrade.errors import UserError
from drgrade.grading.base import Grader, Photographs
from drgrade.grading.extract import load_network
from drgrade.grading.feature_sets import FeatureSet, read_facts
from drgrade.grading.models import load_model
from drgrade.params import Features

if TYPE_CHECKING:
    from drgrade.images.augment import Plan


@dataclass(frozen=True)
class FeatureSource:
    """The networks that compute a feature set.

    Attributes:
        name: name of the set.
        networks: trained graders with an encoder, one for each left-out part or one, with the transforms that
            their features are averaged over.
    """

    name: str
    networks: "Sequence[tuple[Grader, Plan | None]]"

    def compute(self, photographs: Photographs) -> FeatureSet:
        """The features of new photographs, by all networks."""
        found = [network.moments(photographs, changes) for network, changes in self.networks]
        mean, std = (np.concatenate(parts) for parts in zip(*found, strict=True))
        rows = pd.concat(
            [photographs.table[["image_id"]].assign(dataset="", model=n) for n in range(len(found))],
            ignore_index=True,
        )
        rows["row"] = range(len(rows))
        return FeatureSet(self.name, len(found), False, rows, mean, std)


@dataclass(frozen=True)
class Assembly:
    """A trained grader and the models it builds on.

    Attributes:
        grader: the trained grader.
        members: its members, by experiment.
        sources: what computes the feature sets that it or a member reads.
    """

    grader: Grader
    members: Mapping[str, Grader]
    sources: Sequence[FeatureSource]

    def completed(self, photographs: Photographs) -> Photographs:
        """New photographs with members and features."""
        features = {source.name: source.compute(photographs) for source in self.sources}
        return replace(photographs, members=self.members, features=features)


def assemble(folder: Path) -> Assembly:
    """Load a trained model and those it builds on.

    Args:
        folder: such as ``results/eyepacs/grade/ensemble/seed0/model``. Models that others are needed for must
            lie in such a folder, beside the others' results.

    Raises:
        UserError: a model is missing or damaged, or one was trained on other crops.
    """
    grader = load_model(folder)
    training, grade = folder.resolve().parent.name, folder.resolve().parents[2:3]
    names = grader.params.members
    sets = _sets(grader)
    if (names or sets) and not (grade and grade[0].name == "grade"):
        raise UserError(
            f"{folder}: builds on other experiments, so it is needed in its place in the results, such as "
            "results/eyepacs/grade/ensemble/seed0/model"
        )
    members = {name: load_model(grade[0] / name / training / "model") for name in names}
    for member in members.values():
        sets += [name for name in _sets(member) if name not in sets]
    sources = [_source(grade[0].parent, name, training) for name in sets]
    for other in [*members.values(), *(network for source in sources for network, _ in source.networks)]:
        if other.crop != grader.crop:
            raise UserError(f"{folder}: builds on models of other crops; run the pipeline again")
    return Assembly(grader, members, sources)


def _sets(grader: Grader) -> list[str]:
    """Names of the feature sets that a grader reads itself."""
    return list(getattr(grader.params, "features", []))


def _source(results: Path, name: str, training: str) -> FeatureSource:
    """The networks of a feature set, as its stage recorded them."""
    facts = read_facts(results / "features" / name / training, name)
    params = Features.model_validate(facts["params"])
    count = int(facts["models"])
    labels = [training] if count == 1 else [f"{training}_part{part}of{count}" for part in range(count)]
    folders = [results / "grade" / params.experiment / label / "model" for label in labels]
    return FeatureSource(name, [load_network(params, folder) for folder in folders])
