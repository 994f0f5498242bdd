"""Networks in use: batches, halving, reading ahead, mixed precision."""

import logging
import multiprocessing
import socket

import numpy as np
import pytest
import torch
from torch import nn

from drgrade import device, inference
from drgrade.images.augment import Plan, apply, normalise, repeated, transforms
from drgrade.images.quasi import quasi_random
from drgrade.inference import batch_size, moments, outputs, run_batches
from drgrade.params.block import Augment, TestTime

MEAN, STD = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]
IMAGES = np.random.default_rng(0).integers(0, 256, (70, 8, 8, 3), np.uint8)
ROWS = np.random.default_rng(1).integers(0, 70, 67)
CHANGES = quasi_random(TestTime(transforms=5), Augment(zoom=[0.9, 1.1], pca=0.25))


class Means(nn.Module):
    """Channel means (B, 3) of what it is given; notes the batches."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(batch))
        assert batch.is_contiguous(memory_format=torch.channels_last)
        assert torch.is_inference_mode_enabled()
        return batch.mean(dim=(2, 3))


def expected(rows: np.ndarray) -> np.ndarray:
    """The same by NumPy, in double precision."""
    return (IMAGES[rows].mean(axis=(1, 2)) / 255 - MEAN) / STD


@pytest.mark.parametrize("count", [0, 1, 67])
def test_every_row_has_the_output_of_its_picture(count):
    network = Means()
    found = outputs(network, IMAGES, ROWS[:count], MEAN, STD, (3,))
    assert (found.dtype, found.shape) == (np.float32, (count, 3))
    np.testing.assert_allclose(found, expected(ROWS[:count]), atol=1e-5)
    assert network.batches == {0: [], 1: [1], 67: [32, 32, 3]}[count]


def test_a_cpus_scores_are_those_of_the_plain_loop_bit_for_bit():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(288, 1), nn.Flatten(0)
    )
    network.eval()
    plain = []
    with torch.no_grad():
        for start in range(0, 67, 32):
            batch = torch.from_numpy(IMAGES[ROWS[start : start + 32]]).permute(0, 3, 1, 2).float() / 255
            centre, spread = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
            batch = ((batch - centre) / spread).contiguous(memory_format=torch.channels_last)
            plain.append(network(batch))
    np.testing.assert_array_equal(outputs(network, IMAGES, ROWS, MEAN, STD), torch.cat(plain))


def by_transform(network: nn.Module, changes: Plan) -> np.ndarray:
    """Outputs (n, transforms, ...), transform by transform, each for all rows at once."""
    batch = torch.from_numpy(IMAGES[ROWS]).permute(0, 3, 1, 2)
    found = []
    with torch.inference_mode():
        for place in range(transforms(changes)):
            inputs = normalise(apply(batch, repeated(changes, place, len(ROWS)), 8), MEAN, STD)
            found.append(network(inputs.contiguous(memory_format=torch.channels_last)))
    return torch.stack(found, dim=1).double().numpy()


def test_outputs_are_means_over_the_transforms():
    network = Means()
    found = outputs(network, IMAGES, ROWS, MEAN, STD, (3,), CHANGES)
    assert network.batches == [32] * 5 + [32] * 5 + [3] * 5
    each = by_transform(network, CHANGES)
    assert each.std(axis=1).min() > 0.001
    np.testing.assert_allclose(found, each.mean(axis=1), atol=1e-5)
    np.testing.assert_allclose(each[:, 0], expected(ROWS), atol=1e-5)  # the first transform changes nothing


def test_images_are_read_once_for_all_transforms():
    class Counting:
        shape, reads = IMAGES.shape, 0

        def __getitem__(self, rows: np.ndarray) -> np.ndarray:
            self.reads += len(rows)
            return IMAGES[rows]

    images = Counting()
    outputs(Means(), images, ROWS, MEAN, STD, (3,), CHANGES)
    assert images.reads == 67


def test_moments_are_those_of_the_outputs_of_all_transforms():
    mean, std = moments(Means(), IMAGES, ROWS, MEAN, STD, (3,), CHANGES)
    each = by_transform(Means(), CHANGES)
    assert (mean.dtype, std.dtype, mean.shape, std.shape) == (np.float32, np.float32, (67, 3), (67, 3))
    np.testing.assert_allclose(mean, each.mean(axis=1), atol=1e-5)
    np.testing.assert_allclose(std, each.std(axis=1, ddof=1), atol=1e-5)
    np.testing.assert_array_equal(mean, outputs(Means(), IMAGES, ROWS, MEAN, STD, (3,), CHANGES))


@pytest.mark.parametrize("changes", [None, quasi_random(TestTime(), Augment()), Plan(None, None)])
def test_one_transform_has_no_deviation(changes):
    mean, std = moments(Means(), IMAGES, ROWS, MEAN, STD, (3,), changes)
    np.testing.assert_allclose(mean, expected(ROWS), atol=1e-5)
    np.testing.assert_array_equal(std, 0)


def test_moments_without_rows():
    mean, std = moments(Means(), IMAGES, ROWS[:0], MEAN, STD, (3,), CHANGES)
    assert mean.shape == std.shape == (0, 3)


class Noisy(nn.Module):
    """A huge number with a tiny noise; another noise in each call."""

    def __init__(self) -> None:
        super().__init__()
        self.random = np.random.default_rng(0)
        self.given: list[np.ndarray] = []

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        self.given.append(np.float32(1e4 + 1e-3 * self.random.normal(size=(len(batch), 4))))
        return torch.from_numpy(self.given[-1])


def test_moments_of_huge_numbers_that_hardly_differ():
    """o_O's formula, sums in float32, has no correct digit here and roots of negative numbers."""
    changes = quasi_random(TestTime(transforms=50), Augment())
    network = Noisy()
    mean, std = moments(network, IMAGES, np.arange(32), MEAN, STD, (4,), changes)
    values = np.stack(network.given).astype(np.float64)
    np.testing.assert_allclose(mean, values.mean(axis=0), rtol=1e-7)
    np.testing.assert_allclose(std, values.std(axis=0, ddof=1), rtol=1e-6)
    total, squares = (sum(each**power for each in network.given) for power in (1, 2))
    with np.errstate(invalid="ignore"):
        naive = np.sqrt((squares - total**2 / 50) / 49)
    assert not np.allclose(naive, std, rtol=0.5)
    assert np.isnan(naive).any()


def test_equal_outputs_deviate_by_exactly_zero():
    class Constant(nn.Module):
        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            return torch.full((len(batch), 2), 0.1)

    mean, std = moments(Constant(), IMAGES, ROWS, MEAN, STD, (2,), CHANGES)
    np.testing.assert_array_equal(mean, np.float32(0.1))
    np.testing.assert_array_equal(std, 0)


def test_transforms_of_a_batch_that_does_not_fit():
    """Memory runs out in the third transform of a batch; its halves begin anew."""

    class Large(Means):
        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            if len(self.batches) >= 2 and len(batch) > 10:
                raise torch.OutOfMemoryError
            return super().forward(batch)

    network = Large()
    mean, std = moments(network, IMAGES, ROWS, MEAN, STD, (3,), CHANGES)
    assert network.batches[:12] == [32, 32] + [8] * 10
    whole = moments(Means(), IMAGES, ROWS, MEAN, STD, (3,), CHANGES)
    np.testing.assert_allclose(mean, whole[0], atol=1e-6)
    np.testing.assert_allclose(std, whole[1], atol=1e-6)


def test_transforms_are_exact_in_mixed_precision(monkeypatch):
    exact = outputs(Means(), IMAGES, ROWS, MEAN, STD, (3,), CHANGES)
    monkeypatch.setattr(inference, "autocast", lambda: torch.autocast("cpu", torch.bfloat16))
    np.testing.assert_array_equal(outputs(Means(), IMAGES, ROWS, MEAN, STD, (3,), CHANGES), exact)


def test_a_batch_that_does_not_fit_is_halved_and_so_are_those_after_it(caplog):
    sizes = []

    def forward(batch: list[int]) -> list[int]:
        sizes.append(len(batch))
        if len(batch) > 3:
            raise torch.OutOfMemoryError
        return batch

    with caplog.at_level(logging.INFO, "drgrade.inference"):
        found = list(run_batches(forward, [list(range(13)), list(range(13, 20))]))
    assert [number for part in found for number in part] == list(range(20))
    assert sizes == [13, 6, 3, 3, 3, 3, 1, 3, 3, 1]
    assert [record.getMessage()[:32] for record in caplog.records] == [
        "a batch of 13 does not fit the G", "a batch of 6 does not fit the GP",
    ]  # fmt: skip


def test_one_that_does_not_fit_alone_is_an_error():
    def forward(batch: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        list(run_batches(forward, [torch.zeros(4)]))


def test_in_mixed_precision_results_are_float32_and_close(monkeypatch):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 1), nn.Flatten(0))
    exact = outputs(network, IMAGES, ROWS, MEAN, STD)
    monkeypatch.setattr(inference, "autocast", lambda: torch.autocast("cpu", torch.bfloat16))
    mixed = outputs(network, IMAGES, ROWS, MEAN, STD)
    assert mixed.dtype == np.float32
    assert (mixed != exact).any()
    np.testing.assert_allclose(mixed, exact, atol=0.02)


def test_batches_on_a_gpu_have_about_as_many_pixels_whatever_the_size(monkeypatch):
    assert batch_size(224, cpu=5) == 5
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [batch_size(side, cpu=5) for side in (224, 448, 3000)] == [256, 64, 8]


@pytest.mark.parametrize(("gpu", "bfloat16", "dtype"), [
    (False, False, None), (True, False, torch.float16), (True, True, torch.bfloat16),
])  # fmt: skip
def test_mixed_precision_is_what_the_gpu_has(monkeypatch, gpu, bfloat16, dtype):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or bfloat16
    )
    assert device.half_precision() == dtype


def test_kernels_are_chosen_on_a_gpu_only(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", asked.append)
    device.use_fast_kernels()
    assert (torch.backends.cudnn.benchmark, asked) == (False, [])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    device.use_fast_kernels()
    assert (torch.backends.cudnn.benchmark, asked) == (True, ["high"])


def half(number: int, port: int, results: "multiprocessing.Queue") -> None:
    """One of two processes that have met."""
    import os

    os.environ.update(TORCHELASTIC_RUN_ID="t", RANK=str(number))
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=number, world_size=2)
    network = Means()
    found = [outputs(network, IMAGES, ROWS[:count], MEAN, STD, (3,)) for count in (67, 5, 0)]
    found += moments(Means(), IMAGES, ROWS, MEAN, STD, (3,), CHANGES)
    results.put((number, found, network.batches))
    torch.distributed.barrier()


@pytest.mark.usefixtures("forked_pools")
def test_two_processes_share_the_batches_and_both_have_all_results():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    jobs = [context.Process(target=half, args=(number, port, results)) for number in range(2)]
    for job in jobs:
        job.start()
    first, second = sorted((results.get(timeout=180) for _ in jobs), key=lambda result: result[0])
    for job in jobs:
        job.join(60)
    assert (first[2], second[2]) == ([32, 3, 5], [32])
    alone = [outputs(Means(), IMAGES, ROWS[:count], MEAN, STD, (3,)) for count in (67, 5, 0)]
    alone += moments(Means(), IMAGES, ROWS, MEAN, STD, (3,), CHANGES)
    for one, other, both in zip(first[1], second[1], alone, strict=True):
        np.testing.assert_array_equal(one, both)
        np.testing.assert_array_equal(other, both)
