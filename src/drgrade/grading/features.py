"""What the probes share: the features of a frozen encoder, and a choice on validation.

Frozen means that nothing drifts either: the encoder stays in evaluation mode, because BatchNorm in training
mode moves its statistics towards the probe's photographs although no weight learns.
"""

import copy
from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from drgrade.encoders import create_encoder, forward_blank, normalisation
from drgrade.errors import UserError
from drgrade.evaluate.metrics import qwk, to_grades
from drgrade.images.scaled import at_size
from drgrade.images.store import Pictures
from drgrade.inference import outputs

BLOCKS = 4
"""Blocks whose class tokens describe an image to a linear probe (a small vision transformer)."""
WIDE = 768
"""From this width on it is one block's class token beside the mean of its patch tokens (ViT-B)."""


class Frozen(nn.Module):
    """An encoder that does not learn and stays in evaluation mode.

    Input: normalised images (B, 3, size, size). Output: features (B, width).

    Args:
        name: timm backbone; a vision transformer takes any size that is a multiple of its patch.
        start: ``random``, ``imagenet`` or a weights file; or the encoder itself, which is copied as it is.
        size: side of the images.
        blocks: read a vision transformer as the linear evaluation of DINO does (Caron et al., ICCV 2021,
            appendix): after the final norm, the class tokens of the last four blocks; of a wide one (ViT-B)
            the last class token and the mean patch token. All else is read as its makers pool it: the mean
            of a feature map, the class token of the last block.

    Attributes:
        width: number of features.
        mean: of the images' channels (RGB, 0-1), which the encoder expects.
        std: of the same.

    Raises:
        UserError: timm knows no such encoder, its weights do not fit, or it cannot take this size.
    """

    def __init__(self, name: str, start: str | nn.Module, size: int, *, blocks: bool = False) -> None:
        super().__init__()
        encoder = copy.deepcopy(start) if isinstance(start, nn.Module) else create_encoder(name, start)
        self.encoder = encoder.requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.mean, self.std = normalisation(name)
        self.size = size
        self.blocks = blocks and _has_class_token(encoder)
        self.eval()
        self.width = forward_blank(self, name, size).shape[1]

    def train(self, mode: bool = True) -> "Frozen":
        """Stay in evaluation mode, whatever the network around it does."""
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


def features(frozen: Frozen, images: Pictures, rows: np.ndarray) -> np.ndarray:
    """Features of photographs, without augmentation.

    Args:
        frozen: the encoder; moved to the accelerator where there is one.
        images: uint8 RGB crops (N, S, S, 3) of any size.
        rows: which of them, integers (n,).

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


def encode(frozen: Frozen, images: Pictures, rows: np.ndarray) -> np.ndarray:
    """Features as of :func:`features`, but NaN and infinite values are allowed."""
    sized = at_size(images, frozen.size)
    return outputs(frozen, sized, rows, frozen.mean, frozen.std, (frozen.width,))


def best(scores: Mapping[float, np.ndarray], grades: np.ndarray) -> tuple[float, dict[float, float]]:
    """The setting whose scores agree best with the grades; of several the smallest.

    Args:
        scores: expected grades (n,) by setting; one that diverged counts as a QWK of -1.
        grades: true grades 0-4, (n,), n >= 1.

    Returns:
        The setting, and the QWK of each.
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
