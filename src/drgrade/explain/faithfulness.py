"""Insertion and deletion (Petsiuk et al., RISE, BMVC 2018): does the grade depend on what a heat map shows?

Insertion starts from a blurred crop and restores its pixels, the hottest of the map first: the sooner the
grade rises, the larger the area under its curve. Deletion blurs the pixels of the crop in the same order: the
sooner the grade falls, the smaller the area. Deviations from the paper: the explained output is the expected
grade, divided by 4, not the probability of a class; deletion blurs pixels too, instead of setting them to a
constant, because a flat patch on a retina could itself look like a lesion.
"""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from drgrade.explain.base import Heat, expected_grade
from drgrade.explain.score import Floats, Mask, centre_prior
from drgrade.rng import numpy_rng
from drgrade.schema import GRADES

STEPS = 16
"""Steps of a curve, each of an equal share of the field of view."""
BLUR = 0.05
"""Standard deviation of the blur as a fraction of the crop's side: wider than all but the largest lesions."""
AT_ONCE = 2 * (STEPS - 1)
"""Images in a forward pass: both curves of a map, without their ends."""


def faithfulness(
    network: nn.Module, image: Tensor, heat: Heat, fov: Mask, key: str, steps: int = STEPS
) -> dict[str, float]:
    """Return the areas under the insertion and deletion curves of a heat map, and of three baselines.

    Args:
        network: in evaluation mode; returns scores (B,) or (B, 1), or logits of the grades (B, 5).
        image: normalised crop (3, S, S) on the network's device.
        heat: (S, S); only the order of its values in the field of view counts.
        fov: (S, S), true on the field of view; the rest of the crop is never blurred.
        key: name of the photograph, by which the random map is drawn.
        steps: steps of a curve, 2 or more.

    Returns:
        ``insertion`` and ``deletion`` of the heat map; ``random_...`` of a random order of pixels;
        ``prior_...`` of the distance from the edge of the field of view; ``fov_...`` of the field itself,
        whose pixels are all tied, so that it fades from one image to the other. In units of the whole range
        of grades: 0 is grade 0, 1 is grade 4. Empty if there is no field of view.
    """
    if not fov.any():
        return {}
    maps: dict[str, npt.NDArray[Any]] = {
        "": heat,
        "random_": numpy_rng(0, "random map", key).permutation(fov.size).reshape(fov.shape),
        "prior_": centre_prior(fov),
        "fov_": np.ones(fov.shape),
    }
    blurred = torch.from_numpy(blur(image.cpu().numpy(), fov)).to(image)
    low, high = expected_grades(network, torch.stack([blurred, image]))  # all curves have these ends
    found = {}
    for name, values in maps.items():
        shares = torch.from_numpy(inserted(values, fov, steps)[1:-1]).to(image)[:, None]
        grades = expected_grades(network, torch.lerp(blurred, image, torch.cat([shares, 1 - shares])))
        restored, removed = np.split(grades, 2)
        found[f"{name}insertion"] = area([low, *restored, high])
        found[f"{name}deletion"] = area([high, *removed, low])
    return found


def inserted(values: npt.NDArray[Any], fov: Mask, steps: int) -> Floats:
    """Return which part of each pixel is inserted after each step, the hottest pixels first.

    Each step inserts the same share of the field of view. Where it reaches only some of the pixels with equal
    values, each of these is inserted by that share: the mean over all orders in which they could come.

    Args:
        values: (S, S), a map.
        fov: (S, S), true on the field of view.
        steps: number of steps.

    Returns:
        float32 (steps + 1, S, S) in 0-1: all 0 at first, at last 1 in the field of view; 0 outside it.
    """
    _, level, tied = np.unique(values[fov], return_inverse=True, return_counts=True)
    hotter = tied[::-1].cumsum()[::-1] - tied
    reached = np.linspace(0, fov.sum(), steps + 1)[:, None]
    found = np.zeros((steps + 1, *fov.shape), np.float32)
    found[:, fov] = ((reached - hotter) / tied).clip(0, 1)[:, level]
    return found


def blur(image: Floats, fov: Mask) -> Floats:
    """Blur an image (3, S, S) within the field of view (S, S), with a Gaussian of :data:`BLUR`."""
    smooth = cv2.GaussianBlur(image.transpose(1, 2, 0), (0, 0), BLUR * image.shape[-1])
    return np.where(fov, smooth.transpose(2, 0, 1), image)


def area(grades: Sequence[float]) -> float:
    """Return the area under a curve of grades at equal steps from 0 to 1, in units of grade 4."""
    return float(np.trapezoid(np.array(grades) / GRADES[-1], dx=1 / (len(grades) - 1)))


@torch.no_grad()
def expected_grades(network: nn.Module, images: Tensor) -> npt.NDArray[np.float64]:
    """Return the expected grades (B,) of normalised images (B, 3, S, S)."""
    images = images.contiguous(memory_format=torch.channels_last)  # twice as fast on a CPU
    outputs = torch.cat([network(part) for part in images.split(AT_ONCE)])
    return torch.stack([expected_grade(output) for output in outputs.double()]).cpu().numpy()
