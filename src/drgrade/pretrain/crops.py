"""Multi-crop views of a fundus photograph: two global crops and many small ones (DINO, section 3).

Each view is one affine warp, one colour matrix, a blur and a solarisation, for a whole batch on its device.
A view depends on its own seed alone, never on the batch it is in. Deviations from the published augmentation
(docs/deviations.md): bilinear sampling from an averaged image pyramid in place of bicubic; colour jitter in a
fixed order; and a minimum share of retina in local crops.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from drgrade.images.augment import (
    Floats,
    colour_matrices,
    in_unit_range,
    normalise,
    recolour,
    resize,
    warp,
)
from drgrade.params import LocalToGlobal
from drgrade.rng import derive_each, uniforms

SEEN = 0.6
"""Least share of a local crop that lies in the field of view."""
RATIO = 4 / 3
"""Largest aspect ratio of a crop before it is resized to a square."""
SIGMAS = (0.1, 2.0)
"""Range of the blur's standard deviation in pixels of the view."""
BRIGHT = 128 / 255
"""Solarisation inverts channel values (0-1) from this threshold on."""
TRIES = 20
CHANCES = 13
"""Random numbers drawn for a view besides those for its position."""


@dataclass(frozen=True)
class Preset:
    """Augmentation settings, the same for all views of a photograph.

    Attributes:
        flip_y: probability of a vertical flip; that of a horizontal flip is 0.5 in all presets.
        rotation: largest angle in degrees.
        jitter: strengths of brightness, contrast, saturation and hue, applied together with probability 0.8.
        grey: probability of conversion to greyscale.
        solarise: probability of solarisation of the second global crop.
        lesions: whether the first local crop is centred on a lesion.
    """

    flip_y: float
    rotation: float
    jitter: tuple[float, float, float, float]
    grey: float
    solarise: float
    lesions: bool


# fundus: orientation carries no information at this scale, and colour distinguishes lesion types
PRESETS = {
    "dino": Preset(0.0, 0.0, (0.4, 0.4, 0.2, 0.1), 0.2, 0.2, lesions=False),
    "fundus": Preset(0.5, 180.0, (0.2, 0.2, 0.0, 0.0), 0.0, 0.0, lesions=False),
    "lesion": Preset(0.5, 180.0, (0.2, 0.2, 0.0, 0.0), 0.0, 0.0, lesions=True),
}


@dataclass(frozen=True)
class View:
    """Settings of one crop: side in pixels, range of its share of the photograph's area, blur probability.

    Attributes:
        keeps_retina: redraw until :data:`SEEN` of the crop lies in the field of view.
        solarise: whether the preset's solarisation applies.
        lesion: whether the preset's centring on a lesion applies.
    """

    size: int
    area: tuple[float, float]
    blur: float
    keeps_retina: bool = False
    solarise: bool = False
    lesion: bool = False


def views(params: LocalToGlobal) -> list[View]:
    """The views of a photograph, the two global ones first (section 3.2)."""
    large, small = params.global_size, params.local_size
    globals_ = [View(large, (0.4, 1.0), 1.0), View(large, (0.4, 1.0), 0.1, solarise=True)]
    locals_ = [
        View(small, (0.05, 0.4), 0.5, keeps_retina=True, lesion=number == 0)
        for number in range(params.local_crops)
    ]
    return globals_ + locals_


def share_in_view(centre: Floats, half: Floats, strips: int = 64) -> Floats:
    """Share of a box's area inside the unit disc, the field of view inscribed in a photograph of side 2.

    Args:
        centre: x and y of the boxes' centres, (..., 2).
        half: half their width and height, (..., 2).
        strips: vertical strips for the numerical integration; 64 give an error of about 1e-3.

    Returns:
        (...), 0-1.
    """
    middles = (np.arange(strips) + 0.5) * (2 / strips) - 1
    x = centre[..., :1] + half[..., :1] * middles
    reach = np.sqrt(np.maximum(0, 1 - x**2))
    y, height = centre[..., 1:], half[..., 1:]
    covered = np.minimum(y + height, reach) - np.maximum(y - height, -reach)
    return np.asarray(np.maximum(0, covered).mean(axis=-1) / (2 * half[..., 1]))


def pulled_in(centre: Floats, half: Floats) -> Floats:
    """Centres of boxes (..., 2), moved towards the photograph's centre just far enough for :data:`SEEN`.

    Found by bisection: box and disc are convex and symmetric, so the share grows steadily towards the centre.
    """
    inside, outside = np.zeros_like(centre[..., :1]), np.ones_like(centre[..., :1])
    for _ in range(20):
        middle = (inside + outside) / 2
        seen = (share_in_view(middle * centre, half) >= SEEN)[..., None]
        inside, outside = np.where(seen, middle, inside), np.where(seen, outside, middle)
    seen = (share_in_view(centre, half) >= SEEN)[..., None]
    return np.where(seen, centre, inside * centre)


def place(view: View, uniform: Floats, lesions: Floats) -> tuple[Floats, Floats]:
    """Centres and half side lengths (B, 2) of crops, in coordinates from -1 to 1 across the photograph.

    Without a lesion a crop lies inside the photograph, its area uniform in ``view.area`` and the logarithm
    of its aspect ratio uniform, as in torchvision's RandomResizedCrop; of :data:`TRIES` draws the first that
    fits is used. With a lesion it is centred on it and may extend beyond the photograph's edge; near the rim
    of the retina it is moved inwards.

    Args:
        view: settings of the crops.
        uniform: uniform random numbers in [0, 1), (4 * TRIES, B).
        lesions: points to centre the crops on, (B, 2); NaN for crops without a lesion.
    """
    area, stretch, *across = uniform.reshape(TRIES, 4, -1).transpose(1, 0, 2)  # each (TRIES, B)
    low, high = view.area
    side = np.sqrt(low + (high - low) * area)
    stretch = np.sqrt(RATIO ** (2 * stretch - 1))
    half = np.stack([side * stretch, side / stretch], axis=-1)  # (TRIES, B, 2)
    fits = half.max(axis=-1) <= 1
    half = np.minimum(half, 1)
    centre = (1 - half) * (2 * np.stack(across, axis=-1) - 1)
    lesioned = ~np.isnan(lesions[:, 0])
    every = left = np.arange(len(lesioned))
    first = np.full(len(every), TRIES - 1)
    for number in range(TRIES):
        good = fits[number, left]
        if view.keeps_retina:
            good &= lesioned[left] | (share_in_view(centre[number, left], half[number, left]) >= SEEN)
        first[left[good]], left = number, left[~good]
    centre, half = np.where(lesioned[:, None], lesions, centre[first, every]), half[first, every]
    pulled = lesioned.copy()
    pulled[left] |= view.keeps_retina
    centre[pulled] = pulled_in(centre[pulled], half[pulled])
    return centre, half


@dataclass(frozen=True)
class Draws:
    """Augmentation of each photograph of a batch for one view.

    Attributes:
        moves: (B, 2, 3), affine maps from view to photograph coordinates; see ``images.augment.warp``.
        spans: (B,), the crop's side as a share of the photograph's.
        colours: draws for ``images.augment.colour_matrices``, each (B,).
        sigmas: (B,), standard deviation of the blur in pixels, 0 for none.
        solarised: (B,), bool.
    """

    moves: Floats
    spans: Floats
    colours: dict[str, Floats]
    sigmas: Floats
    solarised: np.ndarray


def draw(preset: Preset, view: View, seeds: npt.ArrayLike, lesions: Sequence[Floats]) -> Draws:
    """Draw a view of each photograph.

    Args:
        preset: one of :data:`PRESETS`.
        view: one of :func:`views`.
        seeds: one for each photograph, integers (B,); equal seeds give equal views.
        lesions: centres of each photograph's lesions, (k, 2) from -1 to 1, k may be 0.
    """
    # always draw all numbers, so that the crop's position is the same in all presets
    uniform = uniforms(seeds, CHANCES + 4 * TRIES)
    chance = uniform[:CHANCES]
    angle = math.radians(preset.rotation) * (2 * chance[2] - 1)
    cosine, sine = np.cos(angle), np.sin(angle)
    mirror = 1 - 2.0 * np.stack([chance[0] < 0.5, chance[1] < preset.flip_y], axis=1)[:, :, None]
    # about the centre, so the disc is unchanged
    turn = mirror * np.array([[cosine, -sine], [sine, cosine]]).transpose(2, 0, 1)  # (B, 2, 2)
    chosen = np.full((len(turn), 2), np.nan)
    if preset.lesions and view.lesion:
        for row, centres in enumerate(lesions):
            if len(centres):
                chosen[row] = centres[int(chance[3, row] * len(centres))]
    centre, half = place(view, uniform[CHANCES:], np.einsum("bi,bij->bj", chosen, turn))  # rotated back
    moves = np.dstack([turn * half[:, None], np.einsum("bij,bj->bi", turn, centre)])
    low, high = SIGMAS
    sigmas = np.where(chance[4] < view.blur, low + (high - low) * chance[5], 0.0)
    solarised = view.solarise & (chance[12] < preset.solarise)
    return Draws(moves, np.sqrt(half.prod(axis=1)), _colours(preset, chance), sigmas, solarised)


def _colours(preset: Preset, drawn: Floats) -> dict[str, Floats]:
    jittered = drawn[6] < 0.8
    brightness, contrast, saturation, hue = (
        strength * jittered * (2 * chance - 1)
        for strength, chance in zip(preset.jitter, drawn[7:11], strict=True)
    )
    return {
        "brightness": 1 + brightness,
        "contrast": 1 + contrast,
        "saturation": 1 + saturation,
        "hue": 2 * np.pi * hue,
        "grayscale": drawn[11] < preset.grey,
    }


class Plan(NamedTuple):
    """Augmentation of a batch for one view, as tensors that are made on the host and moved to the device.

    Attributes:
        levels: pyramid levels, each with the indices of the photographs sampled from it, int64.
        moves: (B, 2, 3), see ``images.augment.warp``.
        colours: (B, 3, 4), see ``images.augment.colour_matrices``.
        blurred: indices of the photographs that are blurred, int64 (b,).
        kernels: their Gaussian kernels, (3 b, taps), one for each channel.
        solarised: (B, 1, 1, 1), bool.
    """

    levels: tuple[tuple[int, Tensor], ...]
    moves: Tensor
    colours: Tensor
    blurred: Tensor
    kernels: Tensor
    solarised: Tensor


def plan(draws: Draws, side: int, size: int) -> Plan:
    """Convert drawn augmentations to tensors on the CPU.

    Args:
        draws: result of :func:`draw`.
        side: side of the photographs in pixels.
        size: side of the view in pixels.
    """
    # bilinear sampling skips pixels when shrinking to less than half: sample from an averaged pyramid level
    level = np.maximum(0, np.floor(np.log2(draws.spans * side / size))).astype(np.int64)
    blurred = np.flatnonzero(draws.sigmas)
    return Plan(
        tuple((int(one), torch.from_numpy(np.flatnonzero(level == one))) for one in np.unique(level)),
        torch.from_numpy(draws.moves.astype(np.float32)),
        torch.from_numpy(colour_matrices(draws.colours).astype(np.float32)),
        torch.from_numpy(blurred),
        torch.from_numpy(gaussians(draws.sigmas[blurred], size)),
        torch.from_numpy(np.asarray(draws.solarised, bool))[:, None, None, None],
    )


class MultiCrop:
    """Multi-crop augmentation of a batch: random numbers drawn on the host, views made on the device.

    Args:
        params: view sizes, number of local crops and preset.
        mean: channel means of the encoder.
        std: channel standard deviations of the encoder.
    """

    def __init__(self, params: LocalToGlobal, mean: Sequence[float], std: Sequence[float]) -> None:
        self.preset = PRESETS[params.preset]
        self.views = views(params)
        self.mean, self.std = mean, std

    def plan(
        self, side: int, boxes: Sequence[np.ndarray], rows: np.ndarray, seed: int, epoch: int
    ) -> tuple[Plan, ...]:
        """Draw the augmentation of all views of a batch.

        Args:
            side: side of the photographs in pixels.
            boxes: lesion boxes (k, 4) of each photograph in its pixels; k may be 0.
            rows: row of each photograph in the store; its views depend on it, ``seed`` and ``epoch`` alone.
            seed: seed of all random numbers.
            epoch: pass over the photographs, from 0.
        """
        lesions = [middles(found, side) for found in boxes]
        plans = []
        for number, view in enumerate(self.views):
            seeds = derive_each(rows, seed, "view", epoch, number)
            plans.append(plan(draw(self.preset, view, seeds, lesions), side, view.size))
        return tuple(plans)

    def __call__(self, photographs: Tensor, plans: Sequence[Plan]) -> list[Tensor]:
        """The views, normalised: two global crops (B, 3, G, G) and the local crops (B, 3, L, L), float32.

        Args:
            photographs: RGB (B, 3, S, S), uint8 or float in 0-1, on any device.
            plans: result of :meth:`plan`, on the same device.
        """
        pyramid = [in_unit_range(photographs)]
        made = [render(pyramid, one, view.size) for one, view in zip(plans, self.views, strict=True)]
        return [normalise(crops, self.mean, self.std) for crops in made]


def middles(boxes: np.ndarray, side: int) -> Floats:
    """Centres (k, 2), in coordinates from -1 to 1, of boxes (k, 4) in pixels of a photograph."""
    corners = np.asarray(boxes, np.float64).reshape(-1, 2, 2)
    return corners.mean(axis=1) * (2 / side) - 1


def render(pyramid: list[Tensor], plan: Plan, size: int) -> Tensor:
    """The planned view of each photograph.

    Args:
        pyramid: photographs (B, 3, S, S) float32 in 0-1, then each level at half the side of the one before;
            missing levels are appended.
        plan: on the photographs' device.
        size: side of the view in pixels.

    Returns:
        (B, 3, size, size) float32 in 0-1, black outside the photograph.
    """
    while len(pyramid) <= max(level for level, _ in plan.levels):
        pyramid.append(resize(pyramid[-1], math.ceil(pyramid[-1].shape[-1] / 2)))
    crops = pyramid[0].new_empty(len(plan.moves), 3, size, size)
    for level, chosen in plan.levels:
        crops[chosen] = warp(pyramid[level][chosen], plan.moves[chosen], size)
    crops = blur(recolour(crops, plan.colours), plan.blurred, plan.kernels)
    inverted = torch.where(crops >= BRIGHT, 1 - crops, crops)
    return torch.where(plan.solarised, inverted, crops)


def gaussians(sigmas: Floats, side: int) -> npt.NDArray[np.float32]:
    """1-D Gaussian kernels (3 b, taps), one for each channel, for standard deviations (b,) in pixels."""
    reach = min(math.ceil(3 * SIGMAS[1]), side - 1)
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigmas[:, None]) ** 2)
    return np.repeat(taps / taps.sum(axis=1, keepdims=True), 3, axis=0).astype(np.float32)


def blur(batch: Tensor, chosen: Tensor, kernels: Tensor) -> Tensor:
    """Blur some images of a batch (B, 3, S, S), each with a Gaussian of its own.

    Args:
        batch: images.
        chosen: indices of the images to blur, int64 (b,); the others are unchanged.
        kernels: result of :func:`gaussians`, (3 b, taps).
    """
    if not len(chosen):
        return batch
    side, reach = batch.shape[-1], kernels.shape[1] // 2
    channels = batch[chosen].reshape(1, -1, side, side)
    padded = F.pad(channels, (reach, reach, reach, reach), mode="reflect")
    across = F.conv2d(padded, kernels[:, None, None, :], groups=len(kernels))
    blurred = F.conv2d(across, kernels[:, None, :, None], groups=len(kernels))
    result = batch.clone()
    result[chosen] = blurred.view(-1, 3, side, side)
    return result
