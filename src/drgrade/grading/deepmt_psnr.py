"""Validation of the super-resolution of the grader ``deepmt``: PSNR beside that of bicubic interpolation."""

import torch
from torch import Tensor, nn

from drgrade.grading.base import Photographs
from drgrade.grading.deepmt_network import UNCHANGED
from drgrade.inference import outputs
from drgrade.networks.deepmt.super_resolution import bicubic, psnr, shrink


class Errors(nn.Module):
    """Mean squared errors of a super-resolution network and of bicubic interpolation, (B, 2).

    Input: high-resolution images (B, 3, H, W) in 0-1, computed one by one to limit memory.
    """

    def __init__(self, restore: nn.Module) -> None:
        super().__init__()
        self.restore = restore

    def forward(self, images: Tensor) -> Tensor:
        """Errors of each image."""
        return torch.cat([self._errors(image) for image in images.split(1)])

    def _errors(self, images: Tensor) -> Tensor:
        scale: int = self.restore.scale  # type: ignore[assignment]
        low = shrink(images, scale)
        both = [self.restore(low), bicubic(low, scale)]
        return torch.stack([(one - images).square().mean(dim=(1, 2, 3)) for one in both], dim=1)


def restoration_psnr(restore: nn.Module, photographs: Photographs) -> dict[str, float]:
    """Mean PSNR in dB over photographs of a super-resolution network, and of bicubic interpolation."""
    errors = outputs(Errors(restore).eval(), photographs.images, photographs.rows, *UNCHANGED, (2,))
    own, baseline = psnr(torch.from_numpy(errors)).mean(dim=0).tolist()
    return {"val_psnr": own, "val_psnr_bicubic": baseline}
