"""Networks in use: batches, halving, reading ahead, mixed precision."""

import logging
import multiprocessing
import socket

import numpy as np
import pytest
import torch
from torch import nn

from drgrade import device, inference
from drgrade.inference import batch_size, outputs, run_batches

MEAN, STD = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]
IMAGES = np.random.default_rng(0).integers(0, 256, (70, 8, 8, 3), np.uint8)
ROWS = np.random.default_rng(1).integers(0, 70, 67)


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
    results.put((number, found, network.batches))
    torch.distributed.barrier()


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
    for one, other, both in zip(first[1], second[1], alone, strict=True):
        np.testing.assert_array_equal(one, both)
        np.testing.assert_array_equal(other, both)
