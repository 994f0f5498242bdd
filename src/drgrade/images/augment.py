"""Random augmentation of a batch of images, on its device: one affine warp and one colour map per image.

All steps are composed first, so that every pixel is interpolated once and clamped once. The random numbers of
a sample come from its own seed only, so its augmentation does not depend on the rest of the batch.
"""

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy.special import ndtri
from torch import Tensor

from drgrade.images.statistics import PUBLISHED
from drgrade.rng import uniforms

Floats = npt.NDArray[np.float64]

LUMA = np.array([0.299, 0.587, 0.114])
"""Weights of red, green and blue in luma (ITU-R BT.601)."""
TO_YIQ = np.array([LUMA, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
FROM_YIQ = np.linalg.inv(TO_YIQ)
DRAWS = 14
"""Random numbers per sample, always all drawn, so that switching one change off does not alter the others."""
ZOOM, NOISE = slice(16, 18), slice(18, 21)
"""Rows of the random numbers of zoom and PCA colour noise; 14 and 15 place the windows of lesion views."""
ALL_DRAWS = NOISE.stop
"""``DRAWS``, with those of zoom and PCA colour noise."""


class Plan(NamedTuple):
    """Augmentation of each image of a batch, as tensors that are drawn on the CPU and moved to the device.

    Attributes:
        colours: (B, 3, 4), from :func:`colour_matrices`; None: no colour changes.
        moves: (B, 2, 3), from :func:`affine_matrices`; None: no geometric changes.
        offsets: (B, 3), from :func:`colour_offsets`; None: no PCA colour noise.
    """

    colours: Tensor | None
    moves: Tensor | None
    offsets: Tensor | None = None


def augment(batch: Tensor, params: Mapping[str, Any], seeds: npt.ArrayLike, out_size: int) -> Tensor:
    """Randomly flip, crop and resize, rotate, shift and change the colours of each image.

    The order is that of lesion-based contrastive learning: colour, then geometry, black outside the image.
    PCA colour noise comes last, as in o_O: it is added to every pixel, also to black ones around the eye.
    Areas over 1 shrink the image with a black border, a deliberate deviation: the published random crop
    rejects them and so never zooms out.

    Args:
        batch: (B, 3, S, S) RGB, uint8 or float in 0-1, on any device.
        params: the keys of ``drgrade.params.Augment``.
        seeds: one for each sample, integers (B,); equal seeds give the same augmentation.
        out_size: side of the result in pixels.

    Returns:
        (B, 3, out_size, out_size) float32 in 0-1; PCA colour noise may lead out of this range.

    Raises:
        ValueError: images are not square, or the numbers of seeds and images differ.

    """
    if batch.shape[2] != batch.shape[3] or len(np.asarray(seeds)) != len(batch):
        raise ValueError(
            f"expected {len(np.asarray(seeds))} square images, one a seed, got {tuple(batch.shape)}"
        )
    return apply(batch, plan(params, draw(params, seeds)), out_size)


def plan(
    params: Mapping[str, Any], draws: Mapping[str, Floats], axes: npt.ArrayLike = PUBLISHED.axes
) -> Plan:
    """Convert the result of :func:`draw` to tensors on the CPU; ``axes``: see :func:`colour_offsets`."""
    colours = None if keeps_colour(params) else _single(colour_matrices(draws))
    moves = None if keeps_geometry(params) else _single(affine_matrices(draws))
    offsets = _single(colour_offsets(draws, axes)) if params.get("pca") else None
    return Plan(colours, moves, offsets)


def _single(values: Floats) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))


def apply(batch: Tensor, plan: Plan, out_size: int) -> Tensor:
    """Augment images by a plan on their device, see :func:`augment`; without host-device synchronisation."""
    batch = in_unit_range(batch)
    if batch.shape[-1] > 1.5 * out_size:  # avoid aliasing of bilinear sampling: average first
        batch = resize(batch, math.ceil(1.25 * out_size))
    if plan.colours is not None:
        batch = recolour(batch, plan.colours)
    batch = resize(batch, out_size) if plan.moves is None else warp(batch, plan.moves, out_size)
    return batch if plan.offsets is None else batch + plan.offsets[:, :, None, None]


def draw(params: Mapping[str, Any], seeds: npt.ArrayLike) -> dict[str, Floats]:
    """Draw the augmentation parameters: arrays of length B by name (angles in radians)."""
    return changes(params, uniforms(seeds, ALL_DRAWS))


def changes(params: Mapping[str, Any], uniform: Floats) -> dict[str, Floats]:
    """Convert uniform random numbers (``ALL_DRAWS``, B) to the result of :func:`draw`.

    ``zoom`` and ``pca`` are off where ``params`` lacks them; if both are off, ``DRAWS`` rows suffice.
    """
    both_ways = 2 * uniform - 1
    low, high = params["scale"]
    area = low + (high - low) * uniform[3]
    narrow, wide = np.log(params["ratio"])
    ratio = np.exp(narrow + (wide - narrow) * uniform[4])
    return {
        "flip_x": uniform[0] < params["flip"],
        "flip_y": uniform[1] < params["flip"],
        "angle": np.deg2rad(params["rotation"] * both_ways[2]),
        "width": np.sqrt(area * ratio),
        "height": np.sqrt(area / ratio),
        "place_x": both_ways[5],
        "place_y": both_ways[6],
        "shift_x": params["translate"] * both_ways[7],
        "shift_y": params["translate"] * both_ways[8],
        "brightness": 1 + params["brightness"] * both_ways[9],
        "contrast": 1 + params["contrast"] * both_ways[10],
        "saturation": 1 + params["saturation"] * both_ways[11],
        "hue": 2 * np.pi * params["hue"] * both_ways[12],
        "grayscale": uniform[13] < params["grayscale"],
        **_zooms(params.get("zoom", [1, 1]), uniform[ZOOM]),
        **_noise(params.get("pca", 0), uniform[NOISE]),
    }


def _zooms(limits: Sequence[float], uniform: Floats) -> dict[str, Floats]:
    low, high = np.log(limits)
    off = low == high == 0
    across, down = np.ones((2, uniform.shape[1])) if off else np.exp(low + (high - low) * uniform)
    return {"zoom_x": across, "zoom_y": down}


def _noise(spread: float, uniform: Floats) -> dict[str, Floats]:
    """Factors of the three principal components, normally distributed around 0."""
    shape = (3, uniform.shape[1])
    # the inverse of the normal distribution is infinite at 0, which is among the uniform numbers
    factors = spread * ndtri(np.maximum(uniform, 2.0**-54)) if spread else np.zeros(shape)
    return {f"pca_{number}": values for number, values in enumerate(factors)}


def affine_matrices(draws: Mapping[str, Floats]) -> Floats:
    """Matrices (B, 2, 3) from output to input coordinates, both from -1 to 1 across the image.

    The image is flipped, a box of it is resized to the output, which is rotated clockwise by ``angle``,
    shifted by a share of the side and zoomed about its centre; the matrices are the inverse of this.
    """
    cosine, sine = np.cos(draws["angle"]), np.sin(draws["angle"])
    turn_back = np.array([[cosine, sine], [-sine, cosine]]).transpose(2, 0, 1)  # (B, 2, 2)
    stretch = np.stack([draws["width"], draws["height"]], axis=1)  # (B, 2), shares of the image
    place = np.stack([draws["place_x"], draws["place_y"]], axis=1) * (1 - stretch)
    shift = 2 * np.stack([draws["shift_x"], draws["shift_y"]], axis=1)
    mirror = 1 - 2.0 * np.stack([draws["flip_x"], draws["flip_y"]], axis=1)
    linear = stretch[:, :, None] * turn_back
    constant = place - (linear @ shift[:, :, None])[:, :, 0]
    linear = linear / np.stack([draws["zoom_x"], draws["zoom_y"]], axis=1)[:, None, :]
    return mirror[:, :, None] * np.concatenate([linear, constant[:, :, None]], axis=2)


def warp(batch: Tensor, moves: Tensor, out_size: int) -> Tensor:
    """Warp images by affine matrices (B, 2, 3), bilinear, black outside: (B, 3, out_size, out_size)."""
    theta = moves[..., None, None]
    centres = (torch.arange(out_size, dtype=torch.float32, device=batch.device) + 0.5) * (2 / out_size) - 1
    # elementwise products: the last bits of a matrix product would depend on the batch size
    grid = theta[:, :, 0] * centres + theta[:, :, 1] * centres[:, None] + theta[:, :, 2]  # (B, 2, out, out)
    return F.grid_sample(
        batch, grid.permute(0, 2, 3, 1), mode="bilinear", padding_mode="zeros", align_corners=False
    )


def mean_grey(batch: Tensor) -> Tensor:
    """Mean grey level (B,) of each image of a batch (B, 3, H, W), the fixed point of contrast changes."""
    red, green, blue = batch.mean(dim=(2, 3)).unbind(1)
    return red * LUMA[0] + green * LUMA[1] + blue * LUMA[2]


def colour_matrices(draws: Mapping[str, Floats]) -> Floats:
    """Compose brightness, contrast, saturation, hue and greyscale, in this order, to an affine map per image.

    Args:
        draws: from :func:`draw`.

    Returns:
        (B, 3, 4): a 3 x 3 matrix and, in the last column, a constant that is multiplied by the mean grey
        level g of the unchanged image: new colour = matrix @ colour + constant * g.

    """
    cosine, sine = np.cos(draws["hue"]), np.sin(draws["hue"])
    one, zero = np.ones_like(cosine), np.zeros_like(cosine)
    turn = np.array([[one, zero, zero], [zero, cosine, -sine], [zero, sine, cosine]]).transpose(2, 0, 1)
    hue = FROM_YIQ @ turn @ TO_YIQ  # a rotation of the chroma plane; grey is unchanged
    to_grey = np.tile(LUMA, (3, 1))
    keep = np.where(draws["grayscale"], 0.0, 1.0)[:, None, None]
    saturation = draws["saturation"][:, None, None]
    colours = keep * np.eye(3) + (1 - keep) * to_grey
    colours = colours @ hue @ (saturation * np.eye(3) + (1 - saturation) * to_grey)
    gain = draws["brightness"] * draws["contrast"]
    constant = (1 - draws["contrast"]) * draws["brightness"]  # grey, so unchanged by the later steps
    return np.dstack([gain[:, None, None] * colours, np.repeat(constant[:, None], 3, axis=1)])


def colour_offsets(draws: Mapping[str, Floats], axes: npt.ArrayLike = PUBLISHED.axes) -> Floats:
    """PCA colour noise: the colour that is added to each image.

    o_O adds it in standardised units after normalisation. Here it is in units of the image, before
    normalisation; both are equal for images that are normalised by the published standard deviations.

    Args:
        draws: from :func:`draw`.
        axes: principal axes of pixel colours (3, 3), see :class:`drgrade.images.statistics.Statistics`.

    Returns:
        (B, 3), in units of the images' range 0-1.

    """
    # one product at a time: the last bits of a matrix product would depend on the batch size
    parts = [draws[f"pca_{number}"][:, None] * axis for number, axis in enumerate(np.asarray(axes, float))]
    return parts[0] + parts[1] + parts[2]


def recolour(batch: Tensor, colours: Tensor) -> Tensor:
    """Apply :func:`colour_matrices` (B, 3, 4) to images (B, 3, H, W), float32 in 0-1; clamped to 0-1."""
    count, _, height, width = batch.shape
    constant = colours[:, :, 3:] * mean_grey(batch)[:, None, None]
    changed = torch.baddbmm(constant, colours[:, :, :3], batch.reshape(count, 3, height * width))
    return changed.clamp_(0, 1).view(count, 3, height, width)


def in_unit_range(batch: Tensor) -> Tensor:
    """Convert images to float32 in 0-1; uint8 is divided by 255, float is not scaled."""
    return batch.float() / 255 if batch.dtype == torch.uint8 else batch.float()


def resize(batch: Tensor, size: int) -> Tensor:
    """Resize images (B, 3, S, S), float32 in 0-1, with antialiasing when shrinking."""
    batch = in_unit_range(batch)
    if batch.shape[-1] == size:
        return batch
    return F.interpolate(batch, size=(size, size), mode="bilinear", antialias=True).clamp_(0, 1)


def normalise(batch: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Normalise images (B, 3, H, W) in 0-1 by the encoder's channel means and standard deviations."""
    centre, spread = (_constant(tuple(values), batch.dtype, batch.device) for values in (mean, std))
    if batch.is_contiguous(memory_format=torch.channels_last):
        width = batch.shape[3]  # whole lines of pixels: operations on 3 channels are slow on a CPU
        lines = batch.permute(0, 2, 3, 1).flatten(2)  # (B, H, 3 W), a view
        lines = (lines - centre.repeat(width)).div_(spread.repeat(width))
        return lines.unflatten(2, (width, 3)).permute(0, 3, 1, 2)
    return (batch - centre.view(3, 1, 1)) / spread.view(3, 1, 1)


@cache
def _constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Cache a constant on its device: copying it in each step would synchronise with the host."""
    with torch.inference_mode(False):  # cached values may also be used in training
        return torch.tensor(values, dtype=dtype, device=device)


def keeps_colour(params: Mapping[str, Any]) -> bool:
    """Whether these parameters never change colours."""
    return not any(params[key] for key in ("brightness", "contrast", "saturation", "hue", "grayscale"))


def keeps_geometry(params: Mapping[str, Any]) -> bool:
    """Whether these parameters never move pixels; resampling is then skipped."""
    moves = params["flip"] or params["rotation"] or params["translate"]
    ranges = (params["scale"], params["ratio"], params.get("zoom", [1, 1]))
    return not moves and all(list(limits) == [1, 1] for limits in ranges)


def transforms(plan: Plan) -> int:
    """Number of changes in a plan; 1 if it changes nothing."""
    return next((len(part) for part in plan if part is not None), 1)


def repeated(plan: Plan, place: int, count: int) -> Plan:
    """A plan that changes each of ``count`` images in the way of the one image at ``place`` of ``plan``."""
    return Plan(*(part if part is None else part[place].expand(count, *part.shape[1:]) for part in plan))
