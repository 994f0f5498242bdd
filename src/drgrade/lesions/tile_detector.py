"""The trained detector as the search runs it: on batches of tiles in memory, its network made faster."""

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from drgrade.lesions.detector import load_detector
from drgrade.memory import keep_memory
from drgrade.seeding import torch_threads

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """Detections on one tile or photograph: boxes (n, 4), scores (n,), labels (n,) into ``LESIONS``."""

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray

    def __getitem__(self, keep: np.ndarray) -> "Found":
        return Found(self.boxes[keep], self.scores[keep], self.labels[keep])


class TileDetector:
    """A trained detector for batches of tiles.

    Runs the test pipeline the detector was validated with, on images in memory. On a GPU backbone and neck
    run in mixed precision (:func:`.amp.half_features`).

    Args:
        folder: of :func:`drgrade.lesions.detector.train_detector`.
        min_score: detections below this may be left out, which spares their suppression.

    Attributes:
        model: the detector as trained.
        network: the same, made faster; what is run.
    """

    def __init__(self, folder: Path, min_score: float = 0.0) -> None:
        import torch
        from mmcv.transforms import Compose

        from drgrade.device import device, half_precision, use_fast_kernels
        from drgrade.lesions.amp import half_features

        torch.set_num_threads(torch_threads())
        self.device = device()
        self.model, config = load_detector(folder)
        keep_memory()
        use_fast_kernels()
        network = fold_batch_norm(self.model)  # still on the CPU: a GPU's rounding would hide a mistake
        raise_threshold(network, min_score)
        self.model.to(self.device)
        network.to(self.device)
        if (half := half_precision()) is not None:
            half_features(network, half)
        network.data_preprocessor._non_blocking = True  # type: ignore[union-attr, assignment]  # see prepare
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        in_memory = [step for step in config.test_pipeline if step["type"] != "LoadImageFromFile"]
        self.pipeline = Compose(in_memory)

    def __call__(self, tiles: list[np.ndarray]) -> list[Found]:
        """Detections on tiles (h, w, 3) uint8 RGB, in tile pixels."""
        return self.detect([self.prepare(tile) for tile in tiles])

    def prepare(self, tile: np.ndarray) -> "dict[str, torch.Tensor]":
        """A tile (h, w, 3) uint8 RGB as :meth:`detect` takes it; any thread may do this."""
        shape = tile.shape[:2]
        picture = np.ascontiguousarray(tile[..., ::-1])  # mmdet reads files as BGR
        results = {"img": picture, "img_id": 0, "img_path": "", "ori_shape": shape, "img_shape": shape}
        sample = self.pipeline(results)
        if self.device.type == "cuda":
            sample["inputs"] = sample["inputs"].pin_memory()
        return sample

    def detect(self, samples: "Sequence[dict[str, torch.Tensor]]") -> list[Found]:
        """Detections on a batch of prepared tiles, in tile pixels; boxes are computed in full precision."""
        import torch

        from drgrade.device import exact

        with torch.inference_mode(), exact(self.device):
            results = self.network.test_step({key: [sample[key] for sample in samples] for key in samples[0]})
        found = [result.pred_instances.cpu().numpy() for result in results]
        return [Found(one.bboxes.astype(np.float64), one.scores, one.labels) for one in found]


def fold_batch_norm(model: "torch.nn.Module") -> "torch.nn.Module":
    """The detector in evaluation mode with its batch norms inside the convolutions before them.

    Its features are the same to rounding, which is checked: a network whose layers are not applied in the
    order they are listed in comes back as a plain copy, and the log says so.
    """
    import torch

    device = next(model.parameters()).device
    picture = torch.randn((1, 3, 128, 128), generator=torch.Generator().manual_seed(0)).to(device)
    folded = copy.deepcopy(model)
    _fold(folded)
    with torch.inference_mode():
        features: list[tuple[torch.Tensor, ...]] = [one.extract_feat(picture) for one in (model, folded)]  # type: ignore[operator]
    if all((a - b).abs().max() <= 1e-3 * a.abs().max() for a, b in zip(*features, strict=True)):
        return folded
    log.warning(
        "%s: batch norms cannot be folded into convolutions; the search is slower", type(model).__name__
    )
    return copy.deepcopy(model)


def _fold(module: "torch.nn.Module") -> None:
    from timm.layers import BatchNormAct2d
    from torch import nn
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    if getattr(module, "order", ("conv", "norm"))[:2] != ("conv", "norm"):  # mmcv's ConvModule, turned round
        return
    before: tuple[str, nn.Conv2d] | None = None
    for name, child in list(module.named_children()):
        if isinstance(child, nn.BatchNorm2d) and before is not None:
            setattr(module, before[0], fuse_conv_bn_eval(before[1], child))
            # timm's norms have the activation inside
            rest = (
                nn.Sequential(child.drop, child.act) if isinstance(child, BatchNormAct2d) else nn.Identity()
            )
            setattr(module, name, rest)
            before = None
        elif isinstance(child, nn.Conv2d):
            before = (name, child)
        else:
            _fold(child)
            before = None if any(True for _ in child.parameters()) else before


def raise_threshold(model: "torch.nn.Module", min_score: float) -> None:
    """Make a detector drop what scores below ``min_score`` before it suppresses overlaps, not after.

    Nothing else changes: a box is only ever suppressed by a better one.
    """
    below = float(np.nextafter(np.float32(min_score), np.float32(-1)))  # mmdet keeps what is above
    for name in ("bbox_head", "roi_head"):
        config = getattr(getattr(model, name, None), "test_cfg", None)
        if config is not None and "score_thr" in config:
            config.score_thr = max(config.score_thr, below)
