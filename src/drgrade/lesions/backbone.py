"""MMDetection backbone that wraps any timm network.

Import after :func:`drgrade.lesions.ops.install`.
"""

from collections.abc import Sequence
from typing import Any, Self

import torch
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch.nn.modules.batchnorm import _BatchNorm

from drgrade.encoders import create_encoder


@MODELS.register_module()
class TimmBackbone(BaseModule):
    """Feature maps of a timm network.

    Args:
        name: timm model name.
        start: ``imagenet``, a weights file, or None for random initialisation.
        out_indices: levels to return, in timm's numbering: 0 has stride 2, 1 stride 4, 2 stride 8, ...
        frozen_level: the weights up to and including this level are frozen (None: everything is trained).
        norm_eval: BatchNorm keeps its running statistics in training.
    """

    def __init__(
        self,
        name: str,
        start: str | None = None,
        out_indices: Sequence[int] = (1, 2, 3, 4),
        frozen_level: int | None = None,
        norm_eval: bool = False,
    ) -> None:
        super().__init__()
        self.net = create_encoder(name, start, features_only=True, out_indices=tuple(out_indices))
        self.levels: list[dict[str, Any]] = self.net.feature_info.info  # type: ignore[assignment, union-attr]
        self.norm_eval = norm_eval
        self.frozen = [] if frozen_level is None else self._modules_up_to(frozen_level)
        for module in self.frozen:
            module.requires_grad_(False)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return feature maps (B, C_i, H / stride_i, W / stride_i) of normalised images (B, 3, H, W)."""
        return tuple(self.net(images))

    def init_weights(self) -> None:
        """Do nothing: weights are loaded in the constructor and must not be initialised again."""

    def train(self, mode: bool = True) -> Self:
        """Set training mode, but keep frozen layers (and BatchNorm if ``norm_eval``) in evaluation mode."""
        super().train(mode)
        if mode and self.norm_eval:
            for module in self.net.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        for module in self.frozen:
            module.eval()
        return self

    def _modules_up_to(self, level: int) -> list[torch.nn.Module]:
        """Return the modules that own parameters, up to and including the last one of a level.

        They come in the order of registration, which is the order of timm's forward pass.
        """
        last = self.levels[level]["module"].replace(".", "_") + "_"
        found = [(name.replace(".", "_") + "_", module) for name, module in self.net.named_modules()]
        end = max(place for place, (name, _) in enumerate(found) if name.startswith(last))
        return [module for _, module in found[: end + 1] if module._parameters]
