"""Extensions of MMEngine's training: reproducible random numbers, AP by lesion, experiment tracking.

Import after :func:`drgrade.lesions.ops.install`; the classes register themselves under their names.
"""

import json
import logging
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS, HOOKS, METRICS
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook

from drgrade.lesions.precision import average_precision
from drgrade.seeding import derive, seed_everything

log = logging.getLogger(__name__)


@DATASETS.register_module()
class TileDataset(CocoDataset):
    """COCO tiles whose augmentation depends only on (seed, epoch, tile), not on workers or restarts.

    Args:
        seed: seed of the augmentation.
        **options: arguments of mmdet's ``CocoDataset``.
    """

    def __init__(self, *args: Any, seed: int = 0, **options: Any) -> None:
        self.seed = seed
        self.epoch = 0
        super().__init__(*args, **options)

    def prepare_data(self, idx: int) -> Any:
        """Return the tile's image and boxes after the data pipeline."""
        value = derive(self.seed, "augment", self.epoch, idx)
        random.seed(value)
        np.random.seed(value % 2**32)  # the pipeline draws from NumPy's global generator
        return super().prepare_data(idx)


@HOOKS.register_module()
class ReseedHook(Hook):
    """Reseeds all generators at each epoch, so that a resumed training equals an uninterrupted one."""

    priority = "VERY_HIGH"

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def before_train_epoch(self, runner: Any) -> None:
        """Seed the process and set the dataset's epoch number."""
        seed_everything(self.seed, runner.epoch)
        runner.train_loop.dataloader.dataset.epoch = runner.epoch


@METRICS.register_module()
class LesionPrecision(BaseMetric):
    """:func:`average_precision` of the detections on a COCO file.

    Args:
        ann_file: the COCO file.
    """

    default_prefix = None

    def __init__(self, ann_file: str) -> None:
        super().__init__(collect_device="cpu")
        self.truth = json.loads(Path(ann_file).read_text())
        self.found: list[dict[str, Any]] = []
        """COCO results of the last validation."""

    def process(self, data_batch: Any, data_samples: list[dict[str, Any]]) -> None:
        """Keep the detections of a batch as COCO results."""
        for sample in data_samples:
            found = sample["pred_instances"]
            boxes = found["bboxes"].float().cpu().numpy()
            boxes[:, 2:] -= boxes[:, :2]
            rows = zip(boxes.tolist(), found["scores"].tolist(), found["labels"].tolist(), strict=True)
            self.results.append(
                [
                    {"image_id": sample["img_id"], "category_id": label + 1, "bbox": box, "score": score}
                    for box, score, label in rows
                ]
            )

    def compute_metrics(self, results: list[list[dict[str, Any]]]) -> dict[str, Any]:
        """AP of the whole file."""
        self.found = [row for rows in results for row in rows]
        return average_precision(self.truth, self.found)


@HOOKS.register_module()
class RecordHook(Hook):
    """Logs each epoch's mean losses and validation metrics, also to ``run``.

    Args:
        run: a :class:`drgrade.tracking.Run`.
    """

    priority = "LOW"

    def __init__(self, run: Any) -> None:
        self.run = run
        self.losses: dict[str, list[torch.Tensor]] = defaultdict(list)
        self.validated: dict[str, Any] = {}
        """Metrics of the last validation."""

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Store a step's losses on the device: reading them here would synchronise with the GPU."""
        for name, value in outputs.items():
            if "loss" in name:
                self.losses[name].append(value.detach())

    def after_train_epoch(self, runner: Any) -> None:
        """Log an epoch's mean losses."""
        means = {name: float(np.mean(torch.stack(values).tolist())) for name, values in self.losses.items()}
        self.losses.clear()
        log.info("epoch %d: %s", runner.epoch + 1, _text(means))
        self.run.metrics({f"train_{name}": value for name, value in means.items()}, step=runner.epoch + 1)

    def after_val_epoch(self, runner: Any, metrics: dict[str, Any] | None = None) -> None:
        """Log the metrics of a validation."""
        self.validated = dict(metrics or {})
        flat = {name: self.validated[name] for name in ("AP", "AP50", "AP75", "AR100")}
        flat |= {f"AP50_{lesion}": row["AP50"] for lesion, row in self.validated["lesions"].items()}
        flat = {f"val_{name}": value for name, value in flat.items() if value is not None}
        log.info("epoch %d: %s", runner.epoch, _text(flat))
        self.run.metrics(flat, step=runner.epoch)


def _text(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in values.items())
