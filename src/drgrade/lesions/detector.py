"""Train the lesion detector with MMDetection and measure it.

``drgrade detector``; the model and its schedule are a leaf config in ``workflow/detectors``. A training
that was killed goes on at the epoch it was in, and ends as if it had not been: its checkpoints wait in
``.cache/drgrade/detector-<key>`` (:func:`drgrade.resume.training_key`).
"""

import contextlib
import json
import logging
import shutil
import sys
import uuid
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drgrade.encoders import start_record
from drgrade.errors import UserError
from drgrade.files import atomic_write, write_json
from drgrade.lesions.configs import config_file
from drgrade.memory import keep_memory
from drgrade.params import Detector
from drgrade.resume import training_key
from drgrade.seeding import numpy_rng, seed_everything, torch_threads

if TYPE_CHECKING:
    import torch
    from mmengine.config import Config

    from drgrade.tracking import Run

log = logging.getLogger(__name__)

CACHE = Path(".cache/drgrade")
GPU_WORKERS = 4


def train_detector(boxes: Path, params: Detector, out: Path, run: "Run") -> None:
    """Train on the tiles in ``boxes`` (of :func:`drgrade.lesions.coco.make_lesion_boxes`) and evaluate.

    Writes ``out/model.pth`` (the last epoch's tensors), ``out/config.py`` (what :func:`load_detector` builds
    the network from) and ``out/metrics.json``: for all lesions and for each, what
    :func:`drgrade.lesions.precision.average_precision` says of the validation tiles. What the detector finds
    on photographs is measured apart (:mod:`.measure`).

    Raises:
        UserError: no such config, start weights that are missing or do not fit, or no COCO files.
    """
    with contextlib.redirect_stdout(sys.stderr):  # MMEngine logs to stdout
        register()
        config = detector_config(params)
        text = config.pretty_text
        start = _set_start(config, params)
        work = CACHE / f"detector-{key_of(text, boxes, params, start)[:16]}"
        _point_at(config, boxes, work, params)
        model, validated = _fit(config, params, run)
    with atomic_write(out / "model.pth") as partial, partial.open("wb") as file:
        _save(model, file)
    with atomic_write(out / "config.py") as partial:
        partial.write_text(text)
    write_json(validated, out / "metrics.json")
    shutil.rmtree(work)
    log.info("AP50 %s on the validation tiles", validated["AP50"])


def load_detector(folder: Path) -> "tuple[torch.nn.Module, Config]":
    """The trained network, in evaluation mode on the CPU, and its config.

    Raises:
        UserError: the folder lacks one of the files, or they do not belong together.
    """
    import torch
    from mmengine.config import Config
    from mmengine.registry import init_default_scope

    with contextlib.redirect_stdout(sys.stderr):
        register()
        from mmdet.registry import MODELS

        for name in ("config.py", "model.pth"):
            if not (folder / name).is_file():
                raise UserError(f"{folder / name}: no such file; train the detector first")
        config = Config.fromfile(folder / "config.py")
        init_default_scope("mmdet")
        model = MODELS.build(config.model)
    try:
        model.load_state_dict(torch.load(folder / "model.pth", map_location="cpu", weights_only=True))
    except (RuntimeError, OSError) as error:
        raise UserError(
            f"{folder / 'model.pth'}: {str(error).splitlines()[0]}; train the detector again"
        ) from None
    return model.eval(), config


def register() -> None:
    """Import MMDetection with working operators, and what drgrade adds to its registries."""
    from drgrade.lesions import ops

    ops.install()
    from drgrade.lesions import amp, backbone, engine, sampler  # noqa: F401


def detector_config(params: Detector) -> "Config":
    """The leaf config with the values of ``params`` in place; holds no path.

    Raises:
        UserError: no such leaf, or start weights for a backbone that takes none.
    """
    from mmengine.config import Config

    config = Config.fromfile(config_file(params.config))
    stretch_schedule(config, params.epochs)
    config.merge_from_dict(
        {
            "train_dataloader.batch_size": params.batch_size,
            "train_dataloader.sampler.seed": params.seed,
            "train_dataloader.dataset.seed": params.seed,
            "val_dataloader.batch_size": params.batch_size,
            "optim_wrapper.optimizer.lr": params.lr,
            "custom_hooks": [{"type": "ReseedHook", "seed": params.seed}],
            "randomness": {"seed": params.seed},
        }
    )
    return config


def stretch_schedule(config: "Config", epochs: int) -> None:
    """Fit a schedule that was written for ``train_cfg.max_epochs`` epochs to ``epochs``."""
    factor = epochs / config.train_cfg.max_epochs
    config.train_cfg.max_epochs = epochs
    for schedule in config.param_scheduler:
        if not schedule.get("by_epoch", True):
            continue
        for key in ("begin", "end", "T_max", "milestones"):
            if key in schedule:
                value = schedule[key]
                many = isinstance(value, list)
                schedule[key] = [round(v * factor) for v in value] if many else round(value * factor)


def keep_background(coco: dict[str, Any], share: float, seed: int) -> dict[str, Any]:
    """A COCO file's content with only this share of the images that have no annotation."""
    lesioned = {annotation["image_id"] for annotation in coco["annotations"]}
    empty = [image["id"] for image in coco["images"] if image["id"] not in lesioned]
    kept = set(numpy_rng(seed, "background").permutation(empty)[: round(share * len(empty))].tolist())
    return coco | {"images": [image for image in coco["images"] if image["id"] in lesioned | kept]}


def key_of(text: str, boxes: Path, params: Detector, start: dict[str, Any]) -> str:
    """The key of a training: see :func:`drgrade.resume.training_key`.

    Args:
        text: the leaf config with all that it builds on.
        boxes: folder of the COCO files, which hold the digests of their tiles.
        params: the block ``detector``.
        start: of :func:`drgrade.encoders.start_record`.

    Raises:
        UserError: no COCO files.
    """
    files = [boxes / "train.json", boxes / "val.json"]
    for file in files:
        if not file.is_file():
            raise UserError(f"{file}: no such file; make the lesion boxes first")
    return training_key(
        "detector", None, params.model_dump(), files=files, facts={"config": text, "start": start}
    )


def _set_start(config: "Config", params: Detector) -> dict[str, Any]:
    """Let the backbone begin with its start weights; returns the record of those of the whole detector.

    Raises:
        UserError: no such weights, or a backbone that takes none.
    """
    backbone = config.model.backbone
    if params.start is not None and not _of_detector(params.start):
        if backbone.type != "TimmBackbone":
            raise UserError(
                f"detector.start: {backbone.type} of {params.config} loads its own weights "
                f"(init_cfg); set detector.start to null, or to a whole detector's file"
            )
        backbone.start = params.start
    return start_record(backbone.get("name", ""), params.start, params.seed)


def _point_at(config: "Config", boxes: Path, work: Path, params: Detector) -> None:
    """Put in what the saved config leaves out: files, devices, whether to resume."""
    import torch

    from drgrade.device import half_precision

    work.mkdir(parents=True, exist_ok=True)
    train = keep_background(
        json.loads((boxes / "train.json").read_text()), params.background_tiles, params.seed
    )
    write_json(train, work / "train.json")
    gpu = torch.cuda.is_available()
    for loader, file in (("train_dataloader", work / "train.json"), ("val_dataloader", boxes / "val.json")):
        config[loader].dataset.ann_file = str(file)
        config[loader].dataset.data_prefix = {"img": str(boxes / "images")}
        config[loader].num_workers = GPU_WORKERS if gpu else 0
        config[loader].pin_memory = gpu
    if half_precision() == torch.float16:
        config.optim_wrapper.type, config.optim_wrapper.loss_scale = "ScaledOptimWrapper", "dynamic"
    config.val_evaluator.ann_file = str(boxes / "val.json")
    config.work_dir = str(work)
    config.resume = (work / "last_checkpoint").is_file()
    # MMEngine keeps state by this name within a process, and prefers it over a checkpoint's.
    config.experiment_name = uuid.uuid4().hex


def _fit(config: "Config", params: Detector, run: "Run") -> "tuple[torch.nn.Module, dict[str, Any]]":
    """Train to the end; returns the network and its validation."""
    import torch
    from mmengine.runner import Runner

    from drgrade.device import half_precision, use_fast_kernels
    from drgrade.lesions.amp import half_features
    from drgrade.lesions.engine import RecordHook
    from drgrade.lesions.start import start_from

    torch.set_num_threads(torch_threads())
    keep_memory()
    use_fast_kernels()
    seed_everything(params.seed, "start")
    runner = Runner.from_cfg(config)
    if params.start is not None and "start" not in config.model.backbone:
        runner.model.init_weights()  # now: it does so once, and would undo what comes next
        start_from(runner.model, Path(params.start))
    runner.model.to(memory_format=torch.channels_last)  # a third faster on CPUs
    if (half := half_precision()) is not None:
        half_features(runner.model, half)
    record = RecordHook(run)
    runner.register_hook(record)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of torch, about mmdet's calls
        runner.train()
        if not record.validated:  # it was killed between its last checkpoint and the validation
            runner.val()
    return runner.model, record.validated


def _of_detector(start: str) -> bool:
    """Whether these are the weights of a whole detector."""
    from drgrade.lesions.start import is_detector

    return start != "imagenet" and is_detector(Path(start))


def _save(model: "torch.nn.Module", file: Any) -> None:
    """Tensors alone, laid out alike whatever the training's memory format was."""
    import torch

    torch.save({name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}, file)
