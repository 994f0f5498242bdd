"""Run the trained detector on batches of tiles in memory, with a network optimised for inference."""

import copy
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from drgrade.lesions.detector import load_detector
from drgrade.lesions.found import Found
from drgrade.memory import keep_memory

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)


class TileDetector:
    """A trained detector for batches of tiles.

    Runs the detector's validation pipeline on images in memory. On a GPU the backbone and neck run in mixed
    precision (:func:`.amp.half_features`).

    Args:
        folder: output folder of :func:`drgrade.lesions.detector.train_detector`.
        min_score: detections below this score may be dropped before non-maximum suppression, to save time.

    Attributes:
        model: the detector as trained.
        network: a faster copy of ``model`` with batch norms folded; this one is run.
    """

    def __init__(self, folder: Path, min_score: float = 0.0) -> None:
        import torch
        from mmcv.transforms import Compose

        from drgrade.device import device, half_precision, use_fast_kernels
        from drgrade.lesions.amp import half_features

        self.device = device()
        self.model, config = load_detector(folder)
        keep_memory()
        use_fast_kernels()
        network = fold_batch_norm(self.model)  # on the CPU: rounding on a GPU would hide an error
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
        """Return the detections on each tile (h, w, 3) uint8 RGB, in tile pixels."""
        return self.detect([self.prepare(tile) for tile in tiles])

    def prepare(self, tile: np.ndarray) -> "dict[str, torch.Tensor]":
        """Preprocess a tile (h, w, 3) uint8 RGB for :meth:`detect`; thread-safe."""
        shape = tile.shape[:2]
        picture = np.ascontiguousarray(tile[..., ::-1])  # mmdet reads files as BGR
        results = {"img": picture, "img_id": 0, "img_path": "", "ori_shape": shape, "img_shape": shape}
        sample = self.pipeline(results)
        if self.device.type == "cuda":
            sample["inputs"] = sample["inputs"].pin_memory()
        return sample

    def detect(self, samples: "Sequence[dict[str, torch.Tensor]]") -> list[Found]:
        """Return the detections on preprocessed tiles, in tile pixels; boxes are computed in float32."""
        import torch

        from drgrade.device import exact

        with torch.inference_mode(), exact(self.device):
            results = self.network.test_step({key: [sample[key] for sample in samples] for key in samples[0]})
        found = [result.pred_instances.cpu().numpy() for result in results]
        return [Found(one.bboxes.astype(np.float64), one.scores, one.labels) for one in found]


def fold_batch_norm(model: "torch.nn.Module") -> "torch.nn.Module":
    """Return a copy of a detector in evaluation mode, with batch norms folded into preceding convolutions.

    The features must stay the same up to rounding, which is checked. If they do not (the layers are not
    applied in the order of registration), an unchanged copy is returned and a warning logged.
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

    if getattr(module, "order", ("conv", "norm"))[:2] != ("conv", "norm"):  # mmcv's ConvModule, reordered
        return
    before: tuple[str, nn.Conv2d] | None = None
    for name, child in list(module.named_children()):
        if isinstance(child, nn.BatchNorm2d) and before is not None:
            setattr(module, before[0], fuse_conv_bn_eval(before[1], child))
            # timm's batch norm layers include the activation
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
    """Make a detector drop boxes that score below ``min_score`` before non-maximum suppression, in place.

    The remaining detections do not change, because a box is only suppressed by one with a higher score.
    """
    below = float(np.nextafter(np.float32(min_score), np.float32(-1)))  # mmdet keeps scores > threshold
    for name in ("bbox_head", "roi_head"):
        config = getattr(getattr(model, name, None), "test_cfg", None)
        if config is not None and "score_thr" in config:
            config.score_thr = max(config.score_thr, below)
