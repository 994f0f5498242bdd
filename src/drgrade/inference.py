"""Inference: batches that fit the device, read ahead in the background, in mixed precision on a GPU.

Grading, feature extraction by frozen encoders and lesion detection all use :func:`run_batches`.
"""

import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from drgrade.background import read_ahead
from drgrade.device import autocast, device, exact, use_fast_kernels
from drgrade.distributed import rank, sum_over_processes, world
from drgrade.images.augment import Plan, apply, in_unit_range, normalise, repeated, transforms
from drgrade.images.store import Images
from drgrade.memory import keep_memory

log = logging.getLogger(__name__)
R = TypeVar("R")

CPU_BATCH = 32
"""Batch size on a CPU for any image size. Another value would change the last digits of results."""
GPU_PIXELS = 256 * 224**2
"""Pixels of a batch on a GPU: 256 images of 224 px. Where they do not fit, the batch is halved."""
LEAST = 8
"""Minimum batch size on a GPU."""


def batch_size(side: int, cpu: int) -> int:
    """Batch size for square images of ``side`` pixels on this machine's device; ``cpu`` on a CPU."""
    return max(LEAST, GPU_PIXELS // side**2) if torch.cuda.is_available() else cpu


def run_batches(forward: Callable[[Any], R], batches: Iterable[Any]) -> Iterator[R]:
    """Yield ``forward(batch)`` of each, in inference mode and mixed precision (:func:`.device.autocast`).

    A batch that does not fit in GPU memory is halved until it does, and all later ones are split to that
    size; there is then one result for each part, in order.

    Args:
        forward: takes a batch, or a part of one.
        batches: tensors, lists or other objects with a length that can be sliced.

    Raises:
        torch.OutOfMemoryError: a single item does not fit.
    """
    largest = sys.maxsize
    for batch in batches:
        start = 0
        while start < len(batch):
            part = batch[start : start + largest]
            result, fits = _attempt(forward, part)
            if not fits:
                largest = len(part) // 2
                torch.cuda.empty_cache()
                log.info("a batch of %d does not fit the GPU's memory; now %d", len(part), largest)
                continue
            start += len(part)
            yield result


def _attempt(forward: Callable[[Any], R], part: Any) -> tuple[Any, bool]:
    """Result, and whether memory sufficed; a function, so that an exception's tensors are freed on return."""
    try:
        with torch.inference_mode(), autocast():
            return forward(part), True
    except torch.OutOfMemoryError:
        if len(part) == 1:
            raise
        return None, False


def outputs(
    network: nn.Module,
    images: Images,
    rows: np.ndarray,
    mean: Sequence[float],
    std: Sequence[float],
    shape: tuple[int, ...] = (),
    changes: Plan | None = None,
) -> np.ndarray:
    """Outputs of a network for images; with test-time augmentation, their means over all transforms.

    In distributed training each process runs its share of the batches and all get the whole result, so all
    must call this.

    Args:
        network: takes normalised images (B, 3, S, S); moved to the GPU where there is one. Its mode,
            training or evaluation, is left as it is.
        images: uint8 RGB (N, S, S, 3), of the network's size.
        rows: indices into ``images``, integers (n,).
        mean: channel means (0-1) that the network expects.
        std: channel standard deviations that it expects.
        shape: shape of the output for one image.
        changes: transforms, the same for every image, see :func:`drgrade.images.quasi.quasi_random`; None:
            images stay as they are.

    Returns:
        float32 (n, *shape).
    """

    def forward(batch: torch.Tensor) -> torch.Tensor:
        return _moments(_each_output(network, batch, mean, std, changes))[0].float()

    return _run(network, images, rows, forward, shape)


def moments(
    network: nn.Module,
    images: Images,
    rows: np.ndarray,
    mean: Sequence[float],
    std: Sequence[float],
    shape: tuple[int, ...],
    changes: Plan | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of a network's outputs over the transforms of test-time augmentation.

    Arguments are those of :func:`outputs`, also for distributed training.

    Returns:
        Means and standard deviations, each float32 (n, *shape). Deviations divide by the number of transforms
        less one and are 0 for one transform; they are never NaN for finite outputs.
    """

    def forward(batch: torch.Tensor) -> torch.Tensor:
        return torch.stack(_moments(_each_output(network, batch, mean, std, changes)), dim=1).float()

    found = _run(network, images, rows, forward, (2, *shape))
    return found[:, 0], found[:, 1]


def _run(
    network: nn.Module,
    images: Images,
    rows: np.ndarray,
    forward: Callable[[torch.Tensor], torch.Tensor],
    shape: tuple[int, ...],
) -> np.ndarray:
    """Results of ``forward``, which takes images (B, 3, S, S), uint8 on the device: float32 (n, *shape)."""
    target = device()
    network.to(target)
    if target.type == "cuda":
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    keep_memory()
    use_fast_kernels()
    size = batch_size(images.shape[1], CPU_BATCH)
    places = [np.arange(start, min(start + size, len(rows))) for start in range(0, len(rows), size)]
    places = places[rank() :: world()] if world() > 1 else places

    def read(part: np.ndarray) -> torch.Tensor:
        batch = torch.from_numpy(np.ascontiguousarray(images[rows[part]]))
        return batch.pin_memory() if target.type == "cuda" else batch

    def moved(batch: torch.Tensor) -> torch.Tensor:
        return forward(batch.to(target, non_blocking=True).permute(0, 3, 1, 2))

    found = torch.zeros((len(rows), *shape), device=target)
    if parts := list(run_batches(moved, read_ahead(read, places))):
        found[torch.from_numpy(np.concatenate(places)).to(target)] = torch.cat(parts)
    return sum_over_processes(found).cpu().numpy()


def _each_output(
    network: nn.Module, batch: torch.Tensor, mean: Sequence[float], std: Sequence[float], changes: Plan | None
) -> Iterator[torch.Tensor]:
    """Yield the outputs for uint8 images (B, 3, S, S) on their device, transform by transform, float32."""
    plan = Plan(*(part if part is None else part.to(batch.device) for part in changes or Plan(None, None)))
    with exact(batch.device):
        whole = in_unit_range(batch)
    for place in range(transforms(plan)):
        with exact(batch.device):
            inputs = apply(whole, repeated(plan, place, len(batch)), batch.shape[-1])
            inputs = normalise(inputs, mean, std).contiguous(memory_format=torch.channels_last)
        yield network(inputs).float()


def _moments(values: Iterable[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Elementwise mean and standard deviation of one or more tensors, float64.

    Welford, Technometrics 1962: the difference of large sums, as in o_O, would lose all digits.
    """
    means = squares = torch.zeros(())
    for count, value in enumerate(values, 1):
        value = value.double()
        if count == 1:
            means, squares = value, torch.zeros_like(value)
            continue
        step = value - means
        means = means + step / count
        squares = squares + step * (value - means)
    return means, (squares / max(1, count - 1)).sqrt()
