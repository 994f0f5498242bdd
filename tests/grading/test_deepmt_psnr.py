"""PSNR of super-resolution and of bicubic interpolation, on photographs for which both are known."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from drgrade.grading.base import Photographs
from drgrade.grading.deepmt_psnr import restoration_psnr
from drgrade.networks.deepmt.super_resolution import Bicubic


class Off(nn.Module):
    """Enlarges twice, by the nearest pixel, and adds 0.1."""

    scale = 2

    def forward(self, low: Tensor) -> Tensor:
        return low.repeat_interleave(2, 2).repeat_interleave(2, 3) + 0.1


def test_psnr_of_one_colour():
    """Bicubic interpolation is exact, which counts as 100 dB; an error of 0.1 is 20 dB."""
    colours = np.array([10, 128, 200], np.uint8)
    images = np.broadcast_to(colours[:, None, None, None], (3, 16, 16, 3)).copy()
    found = restoration_psnr(Off(), Photographs(images, pd.DataFrame({"row": [0, 1, 2]})))
    assert found == {"val_psnr": pytest.approx(20, abs=1e-3), "val_psnr_bicubic": pytest.approx(100)}


def test_psnr_is_the_mean_over_photographs():
    """Not the PSNR of the mean error; and a network that is bicubic interpolation has its PSNR."""
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    images[1] //= 4
    each = []
    for row in (0, 1):
        batch = torch.from_numpy(images[row]).permute(2, 0, 1)[None] / 255
        low = torch.nn.functional.avg_pool2d(batch, 2)
        off = torch.nn.functional.interpolate(low, scale_factor=2, mode="bicubic").clamp(0, 1) - batch
        each.append(-10 * np.log10(float(off.square().mean())))
    found = restoration_psnr(Bicubic(2), Photographs(images, pd.DataFrame({"row": [0, 1]})))
    assert found["val_psnr"] == found["val_psnr_bicubic"] == pytest.approx(np.mean(each), rel=1e-4)
    assert abs(each[0] - each[1]) > 3
