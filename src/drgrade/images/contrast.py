"""Local light and colour taken out of a crop, as two published systems do so that lesions stand out.

Both subtract the surroundings of each pixel, stretch the rest fourfold about grey 128, and drop the rim of
the eye, where the surroundings reach into the black border.
"""

import cv2
import numpy as np

from drgrade.images.rules import Picture

GREY = 128
KEPT = 0.45
"""Radius, as a share of the crop's side, of the disc that both keep."""


def without_local_mean(crop: Picture) -> Picture:
    """Subtract a Gaussian mean; grey 128 outside the disc of 0.9 radii.

    Kaggle DR 2015 first place (Graham, "Kaggle diabetic retinopathy detection competition report", 2015):
    4 I - 4 Gauss(I, sigma = R / 30) + 128, saturating, and a disc of radius 0.9 R, where R is the radius the
    eye was scaled to. Here R is half the side of the crop; published were 300 and 500 pixels (sides of 600
    and 1000).

    Args:
        crop: uint8 RGB (S, S, 3), the eye's circle inscribed in it.
    """
    radius = crop.shape[0] / 2
    # from inside the disc the kernel, cut at 3 sigma, does not reach over the crop's edge
    mean = cv2.GaussianBlur(crop, (0, 0), radius / 30)
    return _keep_disc(_stretch(crop, mean), int(0.9 * radius), GREY)


def without_local_median(crop: Picture) -> Picture:
    """Subtract a median of each channel; black outside the disc of 0.45 sides.

    CLPI (Yang et al., arXiv 2008.00610, released code): kernel 2 floor(S / 20) + 1, 4 I - 4 median + 128,
    saturating, and a disc of radius floor(90 S / 200): 103 and 460 pixels at the published S = 1024.

    Args:
        crop: uint8 RGB (S, S, 3).
    """
    side = crop.shape[0]
    median = cv2.medianBlur(crop, 2 * (side // 20) + 1)
    return _keep_disc(_stretch(crop, median), side * 90 // 200, 0)


def _stretch(crop: Picture, surroundings: np.ndarray) -> Picture:
    return cv2.addWeighted(crop, 4, surroundings, -4, GREY).astype(np.uint8, copy=False)


def _keep_disc(crop: Picture, radius: int, outside: int) -> Picture:
    side = crop.shape[0]
    kept = cv2.circle(np.zeros((side, side), np.uint8), (side // 2, side // 2), radius, 1, cv2.FILLED)
    return np.where(kept[..., None] > 0, crop, np.uint8(outside))
