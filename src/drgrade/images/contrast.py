"""Subtraction of local brightness and colour from a crop, as in two published systems, to enhance lesions.

Both subtract a local average from each pixel, multiply the difference by 4, add 128, and mask the rim of the
eye, where the average includes the black border.
"""

import cv2
import numpy as np

from drgrade.images.rules import RGBImage

GREY = 128
KEPT = 0.45
"""Radius of the disc that is kept, as a share of the crop's side."""


def without_local_mean(crop: RGBImage) -> RGBImage:
    """Subtract a Gaussian local mean; grey 128 outside a disc of 0.9 radii.

    Kaggle DR 2015 first place (Graham, "Kaggle diabetic retinopathy detection competition report", 2015):
    4 I - 4 Gauss(I, sigma = R / 30) + 128, saturating, and a disc of radius 0.9 R, where R is the radius the
    eye was scaled to. Here R is half the side of the crop; the publication used 300 and 500 pixels (sides of
    600 and 1000).

    Args:
        crop: uint8 RGB (S, S, 3), in which the eye's circle is inscribed.
    """
    radius = crop.shape[0] / 2
    # inside the disc, the kernel (truncated at 3 sigma) does not extend over the crop's edge
    mean = cv2.GaussianBlur(crop, (0, 0), radius / 30)
    return _keep_disc(_stretch(crop, mean), int(0.9 * radius), GREY)


def without_local_median(crop: RGBImage) -> RGBImage:
    """Subtract the local median of each channel; black outside a disc of radius 0.45 sides.

    CLPI (Yang et al., arXiv 2008.00610, released code): kernel 2 floor(S / 20) + 1, 4 I - 4 median + 128,
    saturating, and a disc of radius floor(90 S / 200): 103 and 460 pixels at the published S = 1024.

    Args:
        crop: uint8 RGB (S, S, 3).
    """
    side = crop.shape[0]
    median = cv2.medianBlur(crop, 2 * (side // 20) + 1)
    return _keep_disc(_stretch(crop, median), side * 90 // 200, 0)


def _stretch(crop: RGBImage, surroundings: np.ndarray) -> RGBImage:
    return cv2.addWeighted(crop, 4, surroundings, -4, GREY).astype(np.uint8, copy=False)


def _keep_disc(crop: RGBImage, radius: int, outside: int) -> RGBImage:
    side = crop.shape[0]
    kept = cv2.circle(np.zeros((side, side), np.uint8), (side // 2, side // 2), radius, 1, cv2.FILLED)
    return np.where(kept[..., None] > 0, crop, np.uint8(outside))
