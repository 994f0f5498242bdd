"""Shared by the graders on a frozen encoder: feature extraction, and model selection on validation.

The encoder also stays in evaluation mode: in training mode BatchNorm would move its running statistics
towards the probe's photographs although no weight is trained.
"""

import copy
from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from drgrade.encoders import create_encoder, forward_blank, normalisation
from drgrade.errors import UserError
from drgrade.evaluate.metrics import qwk, to_grades
from drgrade.grading.base import Moments
from drgrade.images.augment import Plan
from drgrade.images.scaled import at_size
from drgrade.images.store import Images
from drgrade.inference import moments as moments_of
from drgrade.inference import outputs

BLOCKS = 4
"""Last blocks whose class tokens are the features for a linear probe (vision transformers below ViT-B)."""
WIDE = 768
"""From this width on (ViT-B) the features are the last class token and the mean patch token instead."""


class Frozen(nn.Module):
    """An encoder that is not trained and stays in evaluation mode.

    Input: normalised images (B, 3, size, size). Output: features (B, width).

    Args:
        name: timm backbone; a vision transformer takes any size that is a multiple of its patch.
        start: ``random``, ``imagenet`` or a weights file; or an encoder, which is copied with its weights.
        size: side of the images.
        blocks: use a vision transformer's features as in the linear evaluation of DINO (Caron et al., ICCV
            2021, appendix): the class tokens of the last four blocks after the final norm; from ViT-B on,
            the last class token and the mean patch token. Otherwise timm's own pooling is used: the mean of
            a feature map, or the class token of the last block.

    Attributes:
        width: number of features.
        mean: channel means (RGB, 0-1) that the encoder expects.
        std: channel standard deviations that it expects.
        changes: transforms that features are averaged over, None by default; see
            :meth:`drgrade.images.preprocess.Preprocess.changes`.

    Raises:
        UserError: timm knows no such encoder, its weights do not fit, or it cannot take this size.
    """

    def __init__(self, name: str, start: str | nn.Module, size: int, *, blocks: bool = False) -> None:
        super().__init__()
        encoder = copy.deepcopy(start) if isinstance(start, nn.Module) else create_encoder(name, start)
        self.encoder = encoder.requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.mean, self.std = normalisation(name)
        self.size = size
        self.changes: Plan | None = None
        self.blocks = blocks and _has_class_token(encoder)
        self.eval()
        self.width = forward_blank(self, name, size).shape[1]

    def train(self, mode: bool = True) -> "Frozen":
        """Stay in evaluation mode; ``mode`` is ignored."""
        return super().train(False)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """Features (B, width)."""
        if not self.blocks:
            return self.encoder(batch)
        wide = self.encoder.num_features >= WIDE
        count = 1 if wide else min(BLOCKS, len(self.encoder.blocks))
        found = self.encoder.forward_intermediates(
            batch, count, return_prefix_tokens=True, norm=True, output_fmt="NLC", intermediates_only=True
        )
        tokens = [prefix[:, 0] for _, prefix in found]
        return torch.cat([*tokens, found[-1][0].mean(dim=1)] if wide else tokens, dim=1)


def features(frozen: Frozen, images: Images, rows: np.ndarray) -> np.ndarray:
    """Features of photographs, means over the encoder's transforms if it has any.

    Args:
        frozen: the encoder; moved to the accelerator where there is one.
        images: uint8 RGB crops (N, S, S, 3) of any size.
        rows: indices into ``images``, integers (n,).

    Returns:
        float32 (n, width).

    Raises:
        UserError: a feature is not a finite number.
    """
    found = encode(frozen, images, rows)
    bad = int((~np.isfinite(found).all(axis=1)).sum())
    if bad:
        raise UserError(
            f"experiments.start: the encoder gives {bad} of {len(rows)} photographs features that are not "
            "numbers; its pretraining diverged, lower its learning rate"
        )
    return found


def encode(frozen: Frozen, images: Images, rows: np.ndarray) -> np.ndarray:
    """Return the same as :func:`features`, but allow NaN and infinite values."""
    sized = at_size(images, frozen.size)
    return outputs(frozen, sized, rows, frozen.mean, frozen.std, (frozen.width,), frozen.changes)


def moments(frozen: Frozen, images: Images, rows: np.ndarray, changes: Plan | None) -> Moments:
    """Moments of features over transforms, see :meth:`drgrade.grading.base.Grader.moments`."""
    sized = at_size(images, frozen.size)
    return moments_of(frozen, sized, rows, frozen.mean, frozen.std, (frozen.width,), changes)


def best(scores: Mapping[float, np.ndarray], grades: np.ndarray) -> tuple[float, dict[float, float]]:
    """Select the setting with the highest QWK, the smallest one if several are equal.

    Args:
        scores: expected grades (n,) by setting; scores that are not all finite count as a QWK of -1.
        grades: true grades 0-4, (n,), n >= 1.

    Returns:
        The selected setting, and the QWK of every setting.
    """
    agreement = {
        setting: qwk(grades, to_grades(found)) if np.isfinite(found).all() else -1.0
        for setting, found in scores.items()
    }
    return max(sorted(agreement), key=agreement.__getitem__), agreement


def _has_class_token(encoder: nn.Module) -> bool:
    """Whether it is a vision transformer that is pooled by its class token."""
    from timm.models.vision_transformer import VisionTransformer

    return (
        isinstance(encoder, VisionTransformer) and encoder.has_class_token and encoder.global_pool == "token"
    )
