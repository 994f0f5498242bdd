"""Train the lesion detector with MMDetection and evaluate it: ``drgrade detector``.

The model and its schedule are a config in ``workflow/detectors``. An interrupted training resumes at the
start of the interrupted epoch and gives the same result as an uninterrupted one; its checkpoints are in
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
    """Train on the tiles in ``boxes`` and evaluate on the validation tiles.

    ``boxes`` is the output folder of :func:`drgrade.lesions.coco.make_lesion_boxes`. Writes ``out/model.pth``
    (state dict of the last epoch), ``out/config.py`` (from which :func:`load_detector` builds the network)
    and ``out/metrics.json``: the result of :func:`drgrade.lesions.precision.average_precision`. Detections
    on whole photographs are evaluated in :mod:`.measure`.

    Raises:
        UserError: the config or the COCO files do not exist, or the initial weights are missing or do not
            fit the network.
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
    """Return the trained network, in evaluation mode on the CPU, and its config.

    Raises:
        UserError: one of the files is missing, or the weights do not fit the config.
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
    """Import MMDetection with working operators and register drgrade's own classes with it."""
    from drgrade.lesions import ops

    ops.install()
    from drgrade.lesions import amp, backbone, engine, sampler  # noqa: F401


def detector_config(params: Detector) -> "Config":
    """Return the config with the values of ``params`` filled in, but without any file paths.

    Raises:
        UserError: there is no such config.
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
    """Rescale a schedule that was written for ``train_cfg.max_epochs`` epochs to ``epochs``, in place."""
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
    """Keep all annotated images of a COCO file, and a random fraction ``share`` (0-1) of the others."""
    lesioned = {annotation["image_id"] for annotation in coco["annotations"]}
    empty = [image["id"] for image in coco["images"] if image["id"] not in lesioned]
    kept = set(numpy_rng(seed, "background").permutation(empty)[: round(share * len(empty))].tolist())
    return coco | {"images": [image for image in coco["images"] if image["id"] in lesioned | kept]}


def key_of(text: str, boxes: Path, params: Detector, start: dict[str, Any]) -> str:
    """Return the key that identifies a training: see :func:`drgrade.resume.training_key`.

    Args:
        text: the complete config, including its base configs.
        boxes: folder of the COCO files, which contain the digests of their tiles.
        params: the block ``detector``.
        start: record of the initial weights, from :func:`drgrade.encoders.start_record`.

    Raises:
        UserError: the COCO files do not exist.
    """
    files = [boxes / "train.json", boxes / "val.json"]
    for file in files:
        if not file.is_file():
            raise UserError(f"{file}: no such file; make the lesion boxes first")
    return training_key(
        "detector", None, params.model_dump(), files=files, facts={"config": text, "start": start}
    )


def _set_start(config: "Config", params: Detector) -> dict[str, Any]:
    """Set the backbone's initial weights in the config; return the record of the detector's initial weights.

    Raises:
        UserError: the weights do not exist, or the backbone does not accept any.
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
    """Set what the saved config leaves out: file paths, data loader workers, whether to resume."""
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
    # names the newest checkpoint; empty if the training was killed while MMEngine wrote it
    last = work / "last_checkpoint"
    config.resume = last.is_file() and Path(last.read_text()).is_file()
    # MMEngine keeps state under this name within a process and prefers it to a checkpoint's state.
    config.experiment_name = uuid.uuid4().hex


def _fit(config: "Config", params: Detector, run: "Run") -> "tuple[torch.nn.Module, dict[str, Any]]":
    """Run the training; return the network and the metrics of its last validation."""
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
        runner.model.init_weights()  # before loading weights: MMEngine would call it later and overwrite them
        start_from(runner.model, Path(params.start))
    runner.model.to(memory_format=torch.channels_last)  # a third faster on CPUs
    if (half := half_precision()) is not None:
        half_features(runner.model, half)
    record = RecordHook(run)
    runner.register_hook(record)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch's warnings about mmdet's calls
        runner.train()
        if not record.validated:  # interrupted after its last checkpoint, before the validation
            runner.val()
    return runner.model, record.validated


def _of_detector(start: str) -> bool:
    """Whether ``start`` names the weights of a whole detector, not of a backbone alone."""
    from drgrade.lesions.start import is_detector

    return start != "imagenet" and is_detector(Path(start))


def _save(model: "torch.nn.Module", file: Any) -> None:
    """Save the state dict as contiguous CPU tensors, whatever memory format was used in training."""
    import torch

    torch.save({name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}, file)
