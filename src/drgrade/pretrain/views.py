"""Two augmented windows around each lesion, the views of lesion-based contrastive learning.

Huang et al., MICCAI 2021, arXiv 2107.08274; window and list of augmentations as in its published code.
On a CPU a view takes one pass for its colours and one for its geometry, both on uint8; for a GPU the windows
are transferred as uint8 and :func:`drgrade.images.augment.apply` augments them there. Both are equivalent.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import torch

from drgrade.device import device
from drgrade.errors import UserError
from drgrade.images.augment import (
    ALL_DRAWS,
    DRAWS,
    LUMA,
    Floats,
    Plan,
    affine_matrices,
    apply,
    changes,
    colour_matrices,
    colour_offsets,
    keeps_colour,
    keeps_geometry,
    plan,
)
from drgrade.images.store import CropStore, Images, Pixels
from drgrade.rng import uniforms

Corners = npt.NDArray[np.int64]


class Pairs(NamedTuple):
    """Two views of each of n samples, or the data to make them from.

    Attributes:
        pixels: (2n, 3, P, P), first views first: the views, float32 in 0-1, or uint8 windows to augment.
        changes: augmentation of the windows; None: ``pixels`` are the views.
    """

    pixels: torch.Tensor
    changes: Plan | None


def pair_views(
    images: Images,
    rows: np.ndarray,
    boxes: np.ndarray,
    patch: int,
    augment: Mapping[str, Any],
    seeds: np.ndarray,
    *,
    window: str = "inside",
    order: str = "fused",
) -> Pairs:
    """Two views of each box: two random windows that contain the box, augmented independently.

    Equal seeds give equal views, independent of batch, threads and process. Everything runs on the host,
    except that for a GPU and ``fused`` the windows are only cut here, and :func:`made` augments them there.

    Args:
        images: square crops, uint8 RGB (N, S, S, 3).
        rows: index of each box's crop, (n,).
        boxes: (x1, y1, x2, y2) in crop pixels, no side longer than ``patch``, (n, 4).
        patch: side P of windows and views in pixels.
        augment: the keys of ``drgrade.params.Augment``.
        seeds: below 2^63, one for each view, (n, 2).
        window: inside: windows lie inside the crop; published: they may extend beyond it on the right and
            below, where they are black.
        order: fused: one colour transform, then one affine transform, see
            :func:`drgrade.images.augment.augment`; published: step by step with torchvision on Pillow
            images, on one thread and ten times slower (differences: docs/deviations.md).

    Returns:
        Views or windows; channels last in memory.

    Raises:
        UserError: the crops are smaller than a patch, or cannot be read; zoom or PCA colour noise with the
            published order, which has neither.
        ValueError: an unknown ``window`` or ``order``, or arrays of different lengths.
    """
    rows, boxes, seeds = np.asarray(rows), np.asarray(boxes, float), np.asarray(seeds)
    size = images.shape[1]
    if size < patch:
        raise UserError(f"patches.size: {patch} px are more than the crops have ({size}); see crop.size")
    if window not in WINDOWS or order not in ("fused", "published"):
        raise ValueError(f"window {window!r}, order {order!r}")
    if order == "published" and (list(augment.get("zoom", [1, 1])) != [1, 1] or augment.get("pca")):
        raise UserError("augment.zoom and augment.pca: not in the published order; use fused")
    if boxes.shape != (len(rows), 4) or seeds.shape != (len(rows), 2):
        raise ValueError(f"{len(rows)} rows, boxes {boxes.shape}, seeds {seeds.shape}")
    if not len(rows):
        return Pairs(torch.empty((0, 3, patch, patch)), None)
    flat = seeds.T.ravel()  # all first views, then all second views, as in the result
    uniform = uniforms(flat, ALL_DRAWS)
    corners = WINDOWS[window](np.tile(boxes, (2, 1)), patch, size, uniform[DRAWS : DRAWS + 2].T)
    cuts = Cuts(images, rows, corners, patch)
    if order == "published":
        return Pairs(_channels_first(_one_by_one(cuts, augment, flat.tolist())), None)
    draws = changes(augment, uniform)
    if device().type == "cpu":
        return Pairs(_channels_first(_fused(cuts, augment, draws)), None)
    return Pairs(_channels_first(cuts.copy()), plan(augment, draws))


def made(pairs: Pairs) -> torch.Tensor:
    """Views (2n, 3, P, P), float32 in 0-1, first views first, on the device that ``pairs`` are on."""
    pixels, changes = pairs
    return pixels if changes is None else apply(pixels, changes, pixels.shape[-1])


def inside(boxes: Floats, patch: int, size: int, uniform: Floats) -> Corners:
    """Left and top edge of windows, uniform among those that contain the box and lie inside the crop.

    Args:
        boxes: (x1, y1, x2, y2) in crop pixels, (n, 4).
        patch: side of the windows.
        size: side of the crops, at least ``patch``.
        uniform: uniform random numbers in [0, 1) for x and y, (n, 2).

    Returns:
        int64 (n, 2).
    """
    low, high = boxes[:, :2], boxes[:, 2:]
    first = np.minimum(np.maximum(0, np.ceil(high - patch)), size - patch)
    last = np.maximum(first, np.minimum(np.floor(low), size - patch))
    return np.asarray(first + np.floor(uniform * (last - first + 1)), np.int64)


def published(boxes: Floats, patch: int, size: int, uniform: Floats) -> Corners:
    """Left and top edge of windows as in the published code; they may extend beyond the crop.

    A window's left edge is at that of its box or further left, as far as there is room, so it can extend
    beyond the crop if the box starts less than a patch from the right edge; likewise for the top edge.
    Arguments and result as in :func:`inside`.
    """
    low, high = boxes[:, :2], boxes[:, 2:]
    slack = np.maximum(0, patch - (high - low))
    left = low - np.floor(uniform * np.minimum(low, slack))
    # mirrored for boxes that touch the right or lower edge, which the filter of border boxes removes
    right = high + np.floor(uniform * np.minimum(size - (high - low), slack)) - patch
    return np.asarray(np.maximum(0, np.round(np.where(high < size, left, right))), np.int64)


WINDOWS: dict[str, Callable[[Floats, int, int, Floats], Corners]] = {"inside": inside, "published": published}


class Cuts:
    """The windows of a batch of pairs; each crop is read or decoded once.

    Args:
        images: crops (N, S, S, 3).
        rows: index of each pair's crop, (n,).
        corners: left and top edges, first those of the first views, (2n, 2).
        patch: side of the windows.
    """

    def __init__(self, images: Images, rows: np.ndarray, corners: Corners, patch: int) -> None:
        self.rows, self.corners, self.patch = rows, corners, patch
        self._read = images.picture if isinstance(images, CropStore) else images.__getitem__
        if isinstance(images, CropStore):
            tops = corners[:, 1].reshape(2, -1)
            images.prefetch(rows, tops[0], patch)
            images.prefetch(rows, tops[1], patch)

    def __len__(self) -> int:
        """Number of windows, 2n."""
        return len(self.corners)

    def of(self, pair: int) -> Iterator[tuple[int, Pixels]]:
        """Yield index and pixels (P, P, 3) of each window of a pair, read-only, black beyond the crop."""
        picture = self._read(int(self.rows[pair]))
        for place in (pair, pair + len(self.rows)):
            x, y = self.corners[place]
            part = picture[y : y + self.patch, x : x + self.patch]
            if part.shape[:2] != (self.patch, self.patch):
                whole = np.zeros((self.patch, self.patch, 3), np.uint8)
                whole[: part.shape[0], : part.shape[1]] = part
                part = whole
            yield place, part

    def each(self, work: Callable[[int, Pixels], None]) -> None:
        """Call ``work(index, pixels)`` for all windows, with one thread for each core."""
        parts = np.array_split(np.arange(len(self.rows)), min(len(os.sched_getaffinity(0)), len(self.rows)))

        def do(part: np.ndarray) -> None:
            for pair in part:
                for place, pixels in self.of(int(pair)):
                    work(place, pixels)

        if len(parts) == 1:
            do(parts[0])
            return
        with ThreadPoolExecutor(len(parts)) as pool:  # not kept: a persistent pool would break on fork
            list(pool.map(do, parts))

    def copy(self) -> Pixels:
        """All windows, (2n, P, P, 3)."""
        out = np.empty((len(self), self.patch, self.patch, 3), np.uint8)
        self.each(out.__setitem__)
        return out


def _fused(cuts: Cuts, augment: Mapping[str, Any], draws: Mapping[str, Floats]) -> npt.NDArray[np.float32]:
    """Recolour, warp and scale to 0-1 each window, (2n, P, P, 3)."""
    patch = cuts.patch
    out = np.empty((len(cuts), patch, patch, 3), np.float32)
    recolour, move = not keeps_colour(augment), not keeps_geometry(augment)
    colours = colour_matrices(draws)
    moves = _in_pixels(affine_matrices(draws), patch)
    offsets = colour_offsets(draws).astype(np.float32) if augment.get("pca") else None
    how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP

    def work(place: int, window: Pixels) -> None:
        pixels: npt.NDArray[Any] = window
        if recolour:
            grey = np.dot(cv2.sumElems(pixels)[:3], LUMA) / patch**2  # 0-255, as the pixels are
            pixels = cv2.transform(pixels, colours[place] * (1, 1, 1, grey))
        if move:
            four = cv2.cvtColor(pixels, cv2.COLOR_RGB2RGBA)  # OpenCV warps four bytes faster than three
            four = cv2.warpAffine(four, moves[place], (patch, patch), flags=how)
            pixels = cv2.cvtColor(four, cv2.COLOR_RGBA2RGB)
        np.divide(pixels, np.float32(255), out=out[place])
        if offsets is not None:
            out[place] += offsets[place]

    cuts.each(work)
    return out


def _in_pixels(moves: Floats, side: int) -> Floats:
    """Convert affine matrices (B, 2, 3) from coordinates in -1 to 1 to pixel-centre coordinates."""
    # -1 and 1 are the outer edges of the image: pixel i lies at (2i + 1) / side - 1
    first = 1 / side - 1
    constant = moves[:, :, :2].sum(axis=2) * first + moves[:, :, 2]
    return np.dstack([moves[:, :, :2], (constant - first) * side / 2])


def _one_by_one(cuts: Cuts, augment: Mapping[str, Any], seeds: list[int]) -> npt.NDArray[np.float32]:
    """Augment each window step by step in the published order, (2n, P, P, 3)."""
    from PIL import Image
    from torchvision.transforms import v2

    shift = augment["translate"]
    steps = v2.Compose([
        v2.RandomHorizontalFlip(augment["flip"]),
        v2.RandomVerticalFlip(augment["flip"]),
        v2.ColorJitter(augment["brightness"], augment["contrast"], augment["saturation"], augment["hue"]),
        v2.RandomResizedCrop(cuts.patch, tuple(augment["scale"]), tuple(augment["ratio"])),
        v2.RandomAffine(augment["rotation"], (shift, shift)),
        v2.RandomGrayscale(augment["grayscale"]),
    ])  # fmt: skip
    out = np.empty((len(cuts), cuts.patch, cuts.patch, 3), np.float32)
    with torch.random.fork_rng(devices=[]):  # torchvision uses the generator that all threads share
        for pair in range(len(cuts.rows)):
            for place, pixels in cuts.of(pair):
                torch.random.default_generator.manual_seed(seeds[place])
                np.divide(steps(Image.fromarray(pixels)), np.float32(255), out=out[place])
    return out


def _channels_first(batch: npt.NDArray[Any]) -> torch.Tensor:
    """Images (B, P, P, 3) as a tensor (B, 3, P, P) over the same memory."""
    return torch.from_numpy(batch).permute(0, 3, 1, 2)
