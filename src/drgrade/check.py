"""Find errors that would stop a run before it starts: ``drgrade check``.

Every name is looked up, every encoder is built without memory (on the device ``meta``) and applied to an
image of its input size, and initial weights are compared with their networks.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from drgrade.errors import UserError
from drgrade.params import Encoded, LesionContrastive, Params

if TYPE_CHECKING:
    import torch


def problems(params: Params) -> list[str]:
    """Return all errors that would stop a run of these params, one line each, starting with the key."""
    stages = (_files, _datasets, _detector, _pretraining, _experiments, _explanations)
    keys: dict[str, list[str]] = {}
    for key, text in (problem for stage in stages for problem in stage(params)):
        keys.setdefault(text, []).append(key)
    # a missing weights file affects many experiments
    return [
        f"{key}{f' (and {len(others)} more keys)' if others else ''}: {text}"
        for text, (key, *others) in keys.items()
    ]


class Problem(NamedTuple):
    """The key of ``params.yaml`` to change, and why."""

    key: str
    text: str


def _problems_of(key: str, call: Callable[..., Any], *arguments: Any) -> list[Problem]:
    """Return the problem with ``key`` that a call raises; an empty list if it succeeds."""
    try:
        call(*arguments)
    except UserError as error:
        head, _, rest = str(error).partition(": ")
        if head.startswith(key) or key.endswith(f".{head}"):  # it names the key itself
            return [Problem(max(key, head, key=len), rest)]
        return [Problem(key, str(error))]
    return []


def _files(params: Params) -> Iterator[Problem]:
    named = {"index.folds_file": params.index.folds_file, "patches.published": params.patches.published}
    for name, dataset in params.datasets.items():
        named |= {
            f"datasets.{name}.split_file": dataset.split_file,
            f"datasets.{name}.exclude": dataset.exclude,
        }
    for key, path in named.items():
        if path is not None and not Path(path).is_file():
            yield Problem(key, f"{path}: no such file")


def _datasets(params: Params) -> Iterator[Problem]:
    from drgrade.data.registry import DATASETS

    for name in params.datasets:
        yield from _problems_of(f"datasets.{name}", DATASETS.get, name)


def _detector(params: Params) -> Iterator[Problem]:
    from drgrade.lesions.configs import backbone, config_file

    wrong = _problems_of("detector.config", config_file, params.detector.config)
    yield from wrong
    start, key = params.detector.start, "detector.start"
    if wrong or start is None:
        return
    name = backbone(params.detector.config)
    if start != "imagenet" and _of_detector(start):
        yield from _problems_of(key, _detector_starts, params)
    elif name is not None:
        yield from _problems_of(key, _check_weights, name, start, True)
    else:
        own = f"{params.detector.config} loads its own weights (init_cfg)"
        yield Problem(key, f"{own}; set it to null, or to a whole detector's file")


def _of_detector(start: str) -> bool:
    from drgrade.lesions.start import is_detector

    try:
        return is_detector(Path(start))
    except UserError:
        return False  # the error is reported elsewhere


def _detector_starts(params: Params) -> None:
    """Load a whole detector's weights into the detector of the config.

    Raises:
        UserError: they are of another architecture.
    """
    from mmengine.registry import init_default_scope

    from drgrade.lesions.detector import detector_config, register
    from drgrade.lesions.start import start_from

    register()
    from mmdet.registry import MODELS

    init_default_scope("mmdet")
    start_from(MODELS.build(detector_config(params.detector).model), Path(str(params.detector.start)))


def _pretraining(params: Params) -> Iterator[Problem]:
    from drgrade.pretrain.base import METHODS

    for name, block in params.pretrain.items():
        key = f"pretrain.{name}"
        learner = METHODS.get(block.method)(block.model_dump())
        wrong = _problems_of(key, learner.check, params.patches.size)
        yield from wrong or _problems_of(f"{key}.start", _check_weights, block.encoder, block.start)
        yield from _compiler(key, block.compile)
        if isinstance(block, LesionContrastive) and learner.needs_kinds and params.patches.published:
            untold = f"'lesion' needs the kind of each box, which {params.patches.published} does not tell"
            yield Problem(f"{key}.positives", f"{untold}; use 'pair'")


def _experiments(params: Params) -> Iterator[Problem]:
    from drgrade.grading.base import GRADERS

    for name in params.experiments:
        experiment, key = params.experiment(name), f"experiments.{name}"
        yield from _problems_of(key, GRADERS.get(experiment.grader), experiment, params.crop)
        yield from _compiler(key, getattr(experiment, "compile", False))
        if isinstance(experiment, Encoded):
            yield from _encoder(params, name, experiment)


def _encoder(params: Params, name: str, experiment: Encoded) -> Iterator[Problem]:
    """Yield problems with an experiment's encoder, its input size, or its initial weights."""
    from drgrade.encoders import forward_blank

    key = f"experiments.{name}"
    try:
        encoder = _meta_encoder(experiment.encoder, **experiment.encoder_options())
    except UserError as error:
        yield Problem(f"{key}.encoder", str(error))
        return
    yield from _problems_of(
        f"{key}.input_size", forward_blank, encoder, experiment.encoder, experiment.input_size
    )
    start = params.start(name)
    assert start is not None
    if start.kind in ("imagenet", "file"):
        yield from _problems_of(f"{key}.start", _check_weights, experiment.encoder, start.name)
        return
    if start.kind == "random":
        return
    source: Any = params.pretrain[start.name] if start.kind == "pretrain" else params.experiment(start.name)
    other = getattr(source, "encoder", None)
    if other is None:
        yield Problem(f"{key}.start", f"{start.name} has no encoder; start from an experiment that has")
    elif not experiment.can_start_from(other) and not _same_architecture(experiment.encoder, other):
        both = f"{start.name} is a {other}, the experiment's encoder a {experiment.encoder}"
        yield Problem(f"{key}.start", f"{both}; set both to the same")


def _explanations(params: Params) -> Iterator[Problem]:
    from drgrade.explain.base import EXPLAINERS
    from drgrade.grading.base import GRADERS, Grader

    for name, block in params.explanations.items():
        yield from _problems_of(f"explanations.{name}.method", EXPLAINERS.get, block.method)
        for experiment in block.experiments:
            grader = params.experiments[experiment].grader
            if GRADERS.get(grader).explainable is Grader.explainable:
                none = f"the grader {grader!r} of {experiment} has no network to explain"
                yield Problem(f"explanations.{name}.experiment", f"{none}; choose another")


def _compiler(key: str, wanted: bool) -> list[Problem]:
    from drgrade.training import find_compiler

    return _problems_of(f"{key}.compile", find_compiler) if wanted else []


def _meta_encoder(name: str, trunk: bool = False, **options: Any) -> "torch.nn.Module":
    """Create an encoder on the device ``meta``, with names and shapes but without values.

    Args:
        name: timm name.
        trunk: create its feature maps only.
        **options: options for timm.

    Raises:
        UserError: timm knows no such encoder.
    """
    import torch

    from drgrade.encoders import create_encoder

    with torch.device("meta"):
        return create_encoder(name, None, features_only=trunk, **options).eval()


def _check_weights(name: str, start: str, trunk: bool = False) -> None:
    """Check that start weights (``imagenet``, ``random`` or a file) exist and fit an encoder.

    ImageNet weights that the run makes from a package need not be there yet.

    Raises:
        UserError: timm knows no such encoder, or the weights are missing or do not fit.
    """
    from drgrade.encoders import placed_file, start_tensors
    from drgrade.weights.sources import SOURCES, convert

    if start == "imagenet" and name in SOURCES and placed_file(name) is None:
        convert(name)
    elif start != "random":
        start_tensors(_meta_encoder(name, trunk), name, start, trunk=trunk)


def _same_architecture(one: str, other: str) -> bool:
    """Whether two encoders have tensors of the same names and shapes."""
    if one == other:
        return True
    try:
        first, second = (_meta_encoder(name).state_dict() for name in (one, other))
    except UserError:
        return True  # reported for the encoder that timm does not know
    return {key: value.shape for key, value in first.items()} == {
        key: value.shape for key, value in second.items()
    }
