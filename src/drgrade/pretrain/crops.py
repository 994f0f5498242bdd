"""Multi-crop views of a fundus photograph: two global crops and many small ones (DINO, section 3).

Each view is one affine warp, one colour matrix, a blur and a solarisation, for a whole batch on its device.
What a view looks like depends on its own seed alone, never on the batch it is in. Deviations from the
published augmentation (docs/deviations.md): bilinear from a pyramid of averaged sizes in place of bicubic;
the jitter's steps always in one order; and a small crop must show the retina.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from drgrade.images.augment import (
    Floats,
    colour_matrices,
    in_unit_range,
    mean_grey,
    normalise,
    recolour,
    resize,
    warp,
)
from drgrade.params import LocalToGlobal
from drgrade.seeding import derive

SEEN = 0.6
"""Least share of a local crop that lies in the field of view."""
RATIO = 4 / 3
"""Longest side over shortest of a crop before it is made square."""
SIGMAS = (0.1, 2.0)
"""Range of the blur's standard deviation in pixels of the view."""
BRIGHT = 128 / 255
"""Solarisation inverts channels from here on."""
TRIES = 20


@dataclass(frozen=True)
class Preset:
    """Changes a photograph may go through, the same for all its views.

    Attributes:
        flip_y: probability of turning upside down; left-right is 0.5 in all presets.
        rotation: largest angle in degrees.
        jitter: brightness, contrast, saturation and hue, applied together with probability 0.8.
        grey: probability of losing colour.
        solarise: probability of solarisation of the second global crop.
        lesions: whether the first local crop is centred on a lesion.
    """

    flip_y: float
    rotation: float
    jitter: tuple[float, float, float, float]
    grey: float
    solarise: float
    lesions: bool


# an eye has no up or down at this scale, and a lesion's colour is what tells its kind
PRESETS = {
    "dino": Preset(0.0, 0.0, (0.4, 0.4, 0.2, 0.1), 0.2, 0.2, lesions=False),
    "fundus": Preset(0.5, 180.0, (0.2, 0.2, 0.0, 0.0), 0.0, 0.0, lesions=False),
    "lesion": Preset(0.5, 180.0, (0.2, 0.2, 0.0, 0.0), 0.0, 0.0, lesions=True),
}


@dataclass(frozen=True)
class View:
    """One of the crops: side in pixels, range of its share of the photograph, probability of blur.

    Attributes:
        keeps_retina: redraw until :data:`SEEN` of the crop lies in the field of view.
        solarise: whether the preset's solarisation applies.
        lesion: whether the preset's lesions apply.
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


def share_in_view(centre: Floats, half: Floats, strips: int = 64) -> float:
    """Share of a box that lies in the unit disc, the field of view inscribed in a photograph of side 2.

    Args:
        centre: x and y of the box's middle.
        half: half its width and height.
        strips: upright slices the box is cut into; 64 are right to about 1e-3.
    """
    x = centre[0] + half[0] * ((np.arange(strips) + 0.5) * (2 / strips) - 1)
    reach = np.sqrt(np.maximum(0, 1 - x**2))
    low, high = np.maximum(centre[1] - half[1], -reach), np.minimum(centre[1] + half[1], reach)
    return float(np.maximum(0, high - low).mean() / (2 * half[1]))


def pulled_in(centre: Floats, half: Floats) -> Floats:
    """The centre, moved towards the photograph's middle by as little as :data:`SEEN` asks for.

    Box and disc are convex and symmetric, so the share grows all the way to the middle.
    """
    if share_in_view(centre, half) >= SEEN:
        return centre
    inside, outside = 0.0, 1.0
    for _ in range(20):
        middle = (inside + outside) / 2
        if share_in_view(middle * centre, half) >= SEEN:
            inside = middle
        else:
            outside = middle
    return inside * centre


def place(view: View, rng: np.random.Generator, lesion: Floats | None) -> tuple[Floats, Floats]:
    """Middle and half sides of a crop in a photograph that reaches from -1 to 1.

    Without a lesion the crop lies inside the photograph, its area uniform in ``view.area`` and the logarithm
    of its ratio uniform, as in torchvision's RandomResizedCrop. With one it is centred there and may look
    over the photograph's edge; at the rim of the retina it is pulled in.
    """
    for _ in range(TRIES):
        area = rng.uniform(*view.area)
        stretch = math.sqrt(RATIO ** rng.uniform(-1, 1))
        half = math.sqrt(area) * np.array([stretch, 1 / stretch])
        if half.max() > 1:
            continue
        if lesion is not None:
            return pulled_in(lesion, half), half
        centre = (1 - half) * rng.uniform(-1, 1, 2)
        if not view.keeps_retina or share_in_view(centre, half) >= SEEN:
            return centre, half
    half = np.minimum(half, 1)
    return pulled_in((1 - half) * rng.uniform(-1, 1, 2), half), half


@dataclass(frozen=True)
class Plans:
    """What happens to each photograph of a batch for one view.

    Attributes:
        moves: (B, 2, 3), where each point of the view is taken from; see ``images.augment.warp``.
        spans: (B,), the crop's side as a share of the photograph's.
        colours: draws for ``images.augment.colour_matrices``, each (B,).
        sigmas: (B,) of the blur in pixels, 0 for none.
        solarised: (B,) of bool.
    """

    moves: Floats
    spans: Floats
    colours: dict[str, Floats]
    sigmas: Floats
    solarised: np.ndarray


def plan(preset: Preset, view: View, seeds: Sequence[int], lesions: Sequence[Floats]) -> Plans:
    """Draw a view of each photograph.

    Args:
        preset: of :data:`PRESETS`.
        view: of :func:`views`.
        seeds: one a photograph; equal seeds give equal views.
        lesions: middles of each photograph's lesions, (k, 2) from -1 to 1, k may be 0.
    """
    moves, spans, chances = np.empty((len(seeds), 2, 3)), np.empty(len(seeds)), []
    for row, (seed, centres) in enumerate(zip(seeds, lesions, strict=True)):
        rng = np.random.default_rng(seed)
        chance = rng.random(13)  # all of them, whatever the preset: the crop that follows is the same in all
        angle = math.radians(preset.rotation) * (2 * chance[2] - 1)
        cosine, sine = math.cos(angle), math.sin(angle)
        mirror = 1 - 2 * np.array([[chance[0] < 0.5], [chance[1] < preset.flip_y]])
        turn = mirror * np.array([[cosine, -sine], [sine, cosine]])  # about the middle: the disc stays
        lesion = None
        if preset.lesions and view.lesion and len(centres):
            lesion = centres[int(chance[3] * len(centres))] @ turn  # the inverse of a rotation
        centre, half = place(view, rng, lesion)
        moves[row] = np.column_stack([turn * half, turn @ centre])
        spans[row] = math.sqrt(half[0] * half[1])
        chances.append(chance)
    drawn = np.array(chances).T
    low, high = SIGMAS
    sigmas = np.where(drawn[4] < view.blur, low + (high - low) * drawn[5], 0.0)
    return Plans(moves, spans, _colours(preset, drawn), sigmas, view.solarise & (drawn[12] < preset.solarise))


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


class MultiCrop:
    """Views of a batch of photographs, normalised.

    Args:
        params: sizes, number and preset.
        mean: channel means of the encoder.
        std: channel standard deviations of the encoder.
    """

    def __init__(self, params: LocalToGlobal, mean: Sequence[float], std: Sequence[float]) -> None:
        self.preset = PRESETS[params.preset]
        self.views = views(params)
        self.mean, self.std = mean, std

    def __call__(
        self, photographs: Tensor, boxes: Sequence[np.ndarray], rows: Sequence[int], seed: int, epoch: int
    ) -> list[Tensor]:
        """All views of a batch.

        Args:
            photographs: RGB (B, 3, S, S), uint8 or float in 0-1, on any device.
            boxes: lesion boxes (k, 4) of each photograph in its pixels; k may be 0.
            rows: number of each photograph; its views depend on it, ``seed`` and ``epoch`` alone.
            seed: of everything random.
            epoch: pass over the photographs, from 0.

        Returns:
            Two global crops (B, 3, G, G) and the local crops (B, 3, L, L), float32.
        """
        side = photographs.shape[-1]
        lesions = [middles(found, side) for found in boxes]
        pyramid = [in_unit_range(photographs)]
        crops = []
        for number, view in enumerate(self.views):
            seeds = [derive(seed, "view", epoch, int(row), number) for row in rows]
            plans = plan(self.preset, view, seeds, lesions)
            crops.append(normalise(render(pyramid, plans, view.size), self.mean, self.std))
        return crops


def middles(boxes: np.ndarray, side: int) -> Floats:
    """Middles of boxes (k, 4) in pixels of a photograph, (k, 2) from -1 to 1."""
    corners = np.asarray(boxes, np.float64).reshape(-1, 2, 2)
    return corners.mean(axis=1) * (2 / side) - 1


def render(pyramid: list[Tensor], plans: Plans, size: int) -> Tensor:
    """Carry out the plans: crop, colour, blur, solarise, in the published order.

    Args:
        pyramid: the photographs (B, 3, S, S) in 0-1, then at S/2, S/4, ...; grown as far as needed.
        plans: of :func:`plan`.
        size: side of the views.

    Returns:
        (B, 3, size, size) float32 in 0-1, black outside the photograph.
    """
    side = pyramid[0].shape[-1]
    # bilinear sampling skips pixels where a crop shrinks to less than half: take it from an averaged size
    levels = np.maximum(0, np.floor(np.log2(plans.spans * side / size))).astype(np.int64)
    while len(pyramid) <= levels.max():
        pyramid.append(resize(pyramid[-1], math.ceil(pyramid[-1].shape[-1] / 2)))
    crops = pyramid[0].new_empty(len(levels), 3, size, size)
    for level in np.unique(levels):
        chosen = np.flatnonzero(levels == level)
        crops[chosen] = warp(pyramid[level][chosen], plans.moves[chosen], size)
    crops = blur(recolour(crops, *colour_matrices(plans.colours, mean_grey(crops))), plans.sigmas)
    inverted = torch.where(crops >= BRIGHT, 1 - crops, crops)
    solarised = torch.from_numpy(plans.solarised).to(crops.device)[:, None, None, None]
    return torch.where(solarised, inverted, crops)


def blur(batch: Tensor, sigmas: Floats) -> Tensor:
    """Blur each picture (B, 3, S, S) with its own Gaussian; a standard deviation of 0 leaves it as it is."""
    chosen = np.flatnonzero(sigmas)
    if not len(chosen):
        return batch
    side = batch.shape[-1]
    reach = min(math.ceil(3 * SIGMAS[1]), side - 1)
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigmas[chosen, None]) ** 2)  # (b, taps)
    taps = np.repeat(taps / taps.sum(axis=1, keepdims=True), 3, axis=0)
    kernels = torch.as_tensor(taps, dtype=batch.dtype, device=batch.device)[:, None]
    channels = batch[chosen].reshape(1, -1, side, side)
    padded = F.pad(channels, (reach, reach, reach, reach), mode="reflect")
    across = F.conv2d(padded, kernels[:, :, None], groups=len(kernels))
    blurred = F.conv2d(across, kernels[..., None], groups=len(kernels))
    result = batch.clone()
    result[chosen] = blurred.view(-1, 3, side, side)
    return result
