"""Score how well a heat map locates lesions, compared with maps that know nothing of the image.

All scores use only pixels inside the field of view, so black borders do not improve them.
"""

import cv2
import numpy as np
import numpy.typing as npt
from sklearn.metrics import roc_auc_score

from drgrade.images.geometry import CropGeometry

Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]

TOLERANCE = 0.02
"""Maximum distance of a point from a lesion it hits, as a fraction of the diameter of the field of view
(Zhang et al., IJCV 2018, use 15 pixels for images about 500 pixels wide)."""


def to_original(heat: Floats, geometry: CropGeometry, width: int, height: int) -> Floats:
    """Resample a heat map of a crop to the pixels of its photograph.

    Args:
        heat: (h, w) over the whole crop, at any resolution.
        geometry: position of the crop in the photograph.
        width: width of the photograph in pixels.
        height: height of the photograph in pixels.

    Returns:
        float32 (height, width), interpolated bilinearly; 0 outside the crop.

    """
    x0, y0, x1, y1 = geometry.box
    spread = cv2.resize(heat.astype(np.float32), (x1 - x0, y1 - y0), interpolation=cv2.INTER_LINEAR)
    original = np.zeros((height, width), np.float32)
    inside = spread[max(-y0, 0) : max(height - y0, 0), max(-x0, 0) : max(width - x0, 0)]
    top, left = max(y0, 0), max(x0, 0)
    original[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    return original


def scores(heat: Floats, lesion: Mask, fov: Mask, tolerance: float = TOLERANCE) -> dict[str, float]:
    """Return how well a heat map and three maps without image content locate lesions.

    Args:
        heat: (H, W) in original pixels.
        lesion: (H, W), true on lesions of any kind.
        fov: (H, W), true on the field of view; holes in it are filled.
        tolerance: see ``TOLERANCE``.

    Returns:
        ``auc``: probability that a lesion pixel has a higher value than another pixel, ties count half.
        ``pointing``: 1 if the maximum lies on a lesion or within the tolerance of one, else 0 (for several
        maxima, the share that does). ``energy``: share of the map's sum that lies on lesions, 0-1 (see
        :func:`energy`). ``prior_auc``, ``prior_pointing``, ``prior_energy``: the same for a map of the
        distance from the edge of the field of view. ``random_auc``, ``random_pointing``, ``random_energy``:
        the expected values for a random map. ``fov_auc``, ``fov_pointing``, ``fov_energy``: the values for
        the field of view itself, a map that is 1 in it; they are those of a random map, because only pixels
        in the field count and all of them are tied. Empty if no pixel of the field of view, or every pixel,
        is a lesion.

    """
    fov = filled(fov)
    inside = lesion[fov]
    if not inside.any() or inside.all():
        return {}
    diameter = 2 * np.sqrt(fov.sum() / np.pi)
    near = _squared_distance(~lesion)[fov] <= (tolerance * diameter) ** 2
    prior = centre_prior(fov)[fov]
    chance = {"auc": 0.5, "pointing": float(near.mean()), "energy": float(inside.mean())}
    return {
        "auc": float(roc_auc_score(inside, heat[fov])),
        "pointing": _pointing(heat[fov], near),
        "energy": energy(heat[fov], inside),
        "prior_auc": float(roc_auc_score(inside, prior)),
        "prior_pointing": _pointing(prior, near),
        "prior_energy": energy(np.sqrt(prior), inside),
        **{f"random_{name}": value for name, value in chance.items()},
        **{f"fov_{name}": value for name, value in chance.items()},
    }


def centre_prior(fov: Mask) -> Floats:
    """Return the squared distance (H, W) of each pixel from the edge of the field of view."""
    return _squared_distance(np.pad(fov, 1))[1:-1, 1:-1]


def energy(values: Floats, lesion: Mask) -> float:
    """Return the share of a map's sum that lies on lesions: the energy-based pointing game, 0-1.

    Source: Wang et al., Score-CAM, CVPR workshops 2020; there on bounding boxes, here on masks.

    Args:
        values: values of the map at the pixels of the field of view; negative ones count as 0.
        lesion: true where the pixel lies on a lesion, of the same shape.

    Returns:
        The share. A map without positive values points nowhere: like a constant map, it gets the value of a
        random map, the share of the pixels that lie on lesions.
    """
    positive = values.clip(0)
    total = positive.sum(dtype=np.float64)
    return float(positive[lesion].sum(dtype=np.float64) / total if total else lesion.mean())


def _squared_distance(mask: Mask) -> Floats:
    """Return the squared distance of each pixel to the nearest false pixel, in whole numbers.

    OpenCV's distances differ in the last bit between runs and machines, which would break ties between pixels
    at equal distance; the squares are integers, so rounding restores the ties.
    """
    distance = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.rint(distance.astype(np.float32) ** 2)


def _pointing(values: Floats, hit: Mask) -> float:
    return float(hit[values == values.max()].mean())


def filled(fov: Mask) -> Mask:
    """Return the largest region of a mask (H, W) without its holes: dark vessels and lesions belong to it."""
    outlines, _ = cv2.findContours(fov.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    found = np.zeros(fov.shape, np.uint8)
    if outlines:
        largest = max(outlines, key=cv2.contourArea)
        cv2.drawContours(found, [largest], -1, 1, cv2.FILLED)
    return found.astype(bool)
