"""The networks of o_O: train step and feature extraction, ours against the same written with stock layers.

    uv run python benchmarks/o_o.py [--only NAME ...] [--repeats 5] [--toy]

About 2 minutes of one core. For each of the six networks with its head, images/s of three tasks, the median
of several rounds after one of warm-up:

- step: read a batch, augment it, forward, backward and one step of SGD;
- network: the same on inputs that are ready, so without reading and augmentation;
- features: mean and standard deviation of the features over transforms; photographs x transforms a second.

Ours is the pipeline's code: ``FineTune``, which augments a batch at once on the device, and ``moments``. The
baseline is a straightforward port: convolutions without bias to which a parameter is added, LeakyReLU,
MaxPool2d, and MaxPool1d as maxout, in the default memory format. It augments image by image with
torchvision's v2 transforms on Pillow images, with one zoom for both axes, as RandomAffine has it. Both
prepare inputs in the process that computes. On a GPU the pipeline prepares the next batch meanwhile, and a
port can do so too, so there the task network is the fair comparison.

Each way has a process of its own, because ours changes how its process holds memory; they take turns. On a
CPU each computes in one thread, and times are of the CPU: neighbours on a busy machine then disturb least.
First both networks get the same weights. Inputs, scores, features and the gradient of all weights must be
equal to 1e-4 of their largest value, or the run ends with an error.

The limit is the number of floating-point operations of the network at the speed of the faster of a large
matrix product and a large convolution of 3 x 3, in the same number of threads and the same type.

From the rates follows the time of the published solution: all steps of six trainings on 31,612 photographs,
and the features of 88,702 photographs by the two networks for 512 px, each with three sets of weights and 50
transforms. It leaves out conversion of the photographs, validation and the blend. On a GPU batches are as
published, and both ways compute in mixed precision. The original took 7 to 10 days on cards of 2015, as its
authors say. The last line is one JSON object.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from copy import deepcopy
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from lightning_fabric.utilities import move_data_to_device
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from torchvision.transforms import v2

from drgrade.device import autocast, device, half_precision, use_fast_kernels
from drgrade.grading.base import Job, Photographs, Start
from drgrade.grading.o_o import OO, Params
from drgrade.grading.regression import FineTune, GradedNetwork
from drgrade.images.quasi import quasi_random
from drgrade.memory import keep_memory
from drgrade.networks.o_o import ARCHITECTURES, BIAS, Pool
from drgrade.params import Crop
from drgrade.params.block import TestTime
from drgrade.seeding import THREADS, seed_everything

NETWORKS = [name for name, architecture in ARCHITECTURES.items() if architecture.grid]
TASKS = ("step", "network", "features")
BATCH = {128: 16, 256: 8, 512: 4}
"""Photographs a batch on a CPU, by the side of the image; on a GPU the published batch."""
TRANSFORMS = {"cpu": 2, "cuda": 10}
EQUAL = 1e-4
TARGET = 1.0
TRAINED, EXTRACTED = 31_612, 35_126 + 53_576
"""Photographs that o_O trained on, and whose features it extracted: all of Kaggle's."""
WEIGHT_SETS, PUBLISHED_TRANSFORMS = 3, 50
ORIGINAL = (7 * 24, 10 * 24)
"""Hours that o_O took, as its authors say."""


class Case(NamedTuple):
    """What is measured."""

    name: str
    toy: bool

    def params(self) -> Params:
        """The published training of the network."""
        return Params(encoder=self.name)

    def batch(self) -> int:
        """Photographs a batch."""
        if self.toy:
            return 2
        params = self.params()
        return params.batch_size if torch.cuda.is_available() else BATCH[params.input_size]

    def transforms(self) -> int:
        """Transforms of each photograph in feature extraction."""
        return 2 if self.toy else TRANSFORMS[device().type]

    def pixels(self) -> np.ndarray:
        """Crops of coarse noise, uint8 (B, S, S, 3)."""
        side = self.params().input_size
        coarse = np.random.default_rng(0).integers(0, 256, (self.batch(), side // 8, side // 8, 3))
        return coarse.astype(np.uint8).repeat(8, axis=1).repeat(8, axis=2)

    def grades(self) -> np.ndarray:
        """Grades of the crops, int64 (B,)."""
        return np.arange(self.batch()) % 5

    def network(self) -> GradedNetwork:
        """The network with random weights; its output is raised, so that the final ReLU lets it pass."""
        seed_everything(0, "head")
        network: Any = OO(self.params(), Crop()).new_network("random")
        nn.init.ones_(network.head.output.bias)
        return network  # type: ignore[no-any-return]


class UntiedBias(nn.Module):
    """A bias for each channel and position."""

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.full((channels, side, side), BIAS))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, h, w) with the biases added."""
        return x + self.bias


class RmsPool(nn.Module):
    """Root mean square of windows of 3 x 3."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Pooled maps."""
        return torch.sqrt(F.avg_pool2d(x**2, 3, self.stride) + 1e-12)


def stock_network(name: str) -> nn.Sequential:
    """A network of o_O with its head, of stock layers, for central crops (B, 3, h, w); returns (B, 1)."""
    architecture = ARCHITECTURES[name]
    layers: list[nn.Module] = []
    channels, side = 3, architecture.size * 7 // 8
    for layer in architecture.layers:
        side = (side + 2 * layer.padding - layer.kernel) // layer.stride + 1
        if isinstance(layer, Pool):
            layers.append(nn.MaxPool2d(layer.kernel, layer.stride, layer.padding))
            continue
        width = architecture.channels * layer.width
        conv = nn.Conv2d(channels, width, layer.kernel, layer.stride, layer.padding, bias=False)
        layers += [conv, UntiedBias(width, side), nn.LeakyReLU(0.01)]
        channels = width
    grid = architecture.grid or 1
    layers += [RmsPool(side // grid), nn.Flatten()]
    for inputs in (channels * grid**2, 512):
        layers += [nn.Dropout(0.5), nn.Linear(inputs, 1024), nn.LeakyReLU(0.01), nn.MaxPool1d(2)]
    return nn.Sequential(*layers, nn.Linear(512, 1), nn.ReLU())


def features_of(stock: nn.Sequential) -> nn.Sequential:
    """The layers up to the pooled features."""
    last = next(place for place, layer in enumerate(stock) if isinstance(layer, nn.Flatten))
    return nn.Sequential(*list(stock)[: last + 1])


@torch.no_grad()
def copy_weights(network: nn.Module, stock: nn.Module) -> None:
    """Give the stock network our weights; the order is the same in both."""
    for ours, theirs in zip(network.parameters(), stock.parameters(), strict=True):
        theirs.copy_(ours.reshape(theirs.shape))


def unlike(network: GradedNetwork, stock: nn.Sequential, ours: Tensor, theirs: Tensor) -> dict[str, float]:
    """Largest differences of inputs, scores, features and gradients, as shares of the largest value of each.

    In float64: a rounding error in float32 can change which pixel is the largest, and so a whole gradient.

    Args:
        network: ours, in evaluation mode.
        stock: the same of stock layers.
        ours: normalised images (B, 3, S, S).
        theirs: the central part of the same images, prepared by torchvision.
    """
    network, stock = deepcopy(network).double(), deepcopy(stock).double()
    whole, centre = ours.double(), v2.functional.center_crop(ours, list(theirs.shape[2:])).double()
    scores = network(whole), stock(centre)[:, 0]
    gradients = []
    for part, score in zip((network, stock), scores, strict=True):
        found = torch.autograd.grad(score.square().mean(), list(part.parameters()))
        gradients.append(torch.cat([one.flatten() for one in found]))
    pairs = {
        "inputs": (centre, theirs),
        "scores": scores,
        "features": (network.encoder(whole), features_of(stock)(centre)),
        "gradients": tuple(gradients),
    }
    return {what: ((a - b).abs().max() / a.abs().max()).item() for what, (a, b) in pairs.items()}


def descend(optimiser: torch.optim.Optimizer, loss: Callable[[], Tensor]) -> None:
    """One step on a loss."""
    optimiser.zero_grad()
    with autocast():
        value = loss()
    value.backward()
    optimiser.step()


class Ours:
    """The pipeline's training step and feature extraction."""

    def __init__(self, case: Case) -> None:
        keep_memory()
        use_fast_kernels()
        self.grader = OO(case.params(), Crop())
        self.grader.network = case.network()
        table = pd.DataFrame({"grade": case.grades(), "row": np.arange(case.batch())})
        self.photographs = Photographs(case.pixels(), table)
        job = Job(self.photographs, Photographs(case.pixels(), table[:0]), Start("random"), 0, "", "", None)
        params, preprocess = self.grader.params, self.grader.preprocess
        self.module = FineTune(self.grader.network, params, preprocess, job).to(device())
        self.optimiser = self.module.configure_optimizers()[0][0]
        test_time = TestTime(transforms=case.transforms())
        self.changes = quasi_random(test_time, params.augment, preprocess.axes)
        inputs = torch.from_numpy(case.pixels()).permute(0, 3, 1, 2).to(device())
        self.inputs = preprocess.normalised(inputs).contiguous(memory_format=torch.channels_last)
        self.grades = torch.from_numpy(case.grades()).to(device())

    def step(self) -> None:
        """Prepare a batch and learn from it."""
        batch = self.module.prepare(np.arange(len(self.photographs)), epoch=0)
        batch = move_data_to_device(batch, device())
        descend(self.optimiser, lambda: self.module.training_step(batch, 0))

    def network(self) -> None:
        """Learn from inputs that are ready."""
        network = self.grader.network
        descend(self.optimiser, lambda: network.loss(network(self.inputs).float(), self.grades))

    def features(self) -> None:
        """Moments of the features over the transforms."""
        self.grader.moments(self.photographs, self.changes)


def prepared(params: Params) -> tuple[v2.Compose, v2.Compose]:
    """The transforms from a Pillow image to an input of the stock network: without and with augmentation."""
    preprocess, augment = OO(params, Crop()).preprocess, params.augment
    axes = torch.tensor(preprocess.axes)

    def noise(image: Tensor) -> Tensor:
        return image + (augment.pca * torch.randn(3) @ axes)[:, None, None]

    shift, bilinear = (augment.translate, augment.translate), v2.InterpolationMode.BILINEAR
    moves = [
        v2.RandomHorizontalFlip(augment.flip),
        v2.RandomAffine(augment.rotation, shift, augment.zoom, interpolation=bilinear),
    ]
    ready = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    end = [v2.Normalize(preprocess.mean, preprocess.std), v2.CenterCrop(params.input_size * 7 // 8)]
    return v2.Compose([*ready, *end]), v2.Compose([*moves, *ready, v2.Lambda(noise), *end])


class Stock:
    """The straightforward port of both.

    Raises:
        SystemExit: its network computes something else than ours.
    """

    def __init__(self, case: Case) -> None:
        params = case.params()
        self.plain, self.augmented = prepared(params)
        self.images = [Image.fromarray(pixels) for pixels in case.pixels()]
        self.transforms = case.transforms()
        self.targets = torch.from_numpy(case.grades()).float()[:, None].to(device())
        self.net = self._checked(case).to(device()).train()
        self.encoder = features_of(self.net)
        self.inputs = torch.stack([self.plain(image) for image in self.images]).to(device())
        weights = [weight for weight in self.net.parameters() if weight.ndim in (2, 4)]
        others = [bias for bias in self.net.parameters() if bias.ndim in (1, 3)]
        groups = [{"params": weights, "weight_decay": params.weight_decay}, {"params": others}]
        self.optimiser = torch.optim.SGD(groups, params.lr, momentum=params.momentum, nesterov=True)

    def _checked(self, case: Case) -> nn.Sequential:
        """The network with our weights, compared with ours on a CPU."""
        ours, stock = case.network().eval(), stock_network(case.name).eval()
        copy_weights(ours, stock)
        pixels = torch.from_numpy(case.pixels()[:2]).permute(0, 3, 1, 2)
        normalised = OO(case.params(), Crop()).preprocess.normalised(pixels)
        inputs = torch.stack([self.plain(image) for image in self.images[:2]])
        for what, difference in unlike(ours, stock, normalised, inputs).items():
            if not difference <= EQUAL:
                raise SystemExit(f"{case.name}: {what} differ by {difference:.1e} of the largest value")
        return stock

    def step(self) -> None:
        """Prepare a batch and learn from it."""
        inputs = torch.stack([self.augmented(image) for image in self.images]).to(device())
        descend(self.optimiser, lambda: F.mse_loss(self.net(inputs).float(), self.targets))

    def network(self) -> None:
        """Learn from inputs that are ready."""
        descend(self.optimiser, lambda: F.mse_loss(self.net(self.inputs).float(), self.targets))

    @torch.no_grad()
    def features(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the features over transforms, from sums and sums of squares."""
        total = squares = torch.zeros(())
        for transform in range(self.transforms):
            inputs = []
            for image in self.images:
                torch.manual_seed(transform)  # the same transform for every image
                inputs.append(self.augmented(image))
            with autocast():
                found = self.encoder(torch.stack(inputs).to(device())).float().cpu()
            total, squares = total + found, squares + found**2
        count = self.transforms
        return total / count, torch.sqrt((squares - total**2 / count).clamp(min=0) / (count - 1))


WAYS: dict[str, type[Ours] | type[Stock]] = {"ours": Ours, "stock": Stock}
current: Ours | Stock
"""What a process measures."""


def start(name: str, case: Case) -> None:
    """Make a process ready for a network."""
    global current
    current = WAYS[name](case)


def one_core() -> None:
    """Compute in one thread where there is no GPU: what a process of its own begins with."""
    if not torch.cuda.is_available():
        os.environ[THREADS] = "1"
        torch.set_num_threads(1)


def seconds(work: Callable[[], Any]) -> float:
    """Seconds of work: those of the CPU where it computes."""
    if not torch.cuda.is_available():
        begin = time.process_time()
        work()
        return time.process_time() - begin
    begin = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - begin


def timed(task: str) -> float:
    """Seconds of a task."""
    return seconds(getattr(current, task))


@torch.inference_mode()
def throughput(toy: bool) -> float:
    """Floating-point operations a second of a large matrix product or convolution, the fastest of several."""
    side, batch = (256, 1) if toy else (8192, 256) if torch.cuda.is_available() else (2048, 8)
    options: Any = {"device": device(), "dtype": half_precision() or torch.float32}
    matrix = torch.rand(side, side, **options)
    maps, kernels = torch.rand(batch, 256, 28, 28, **options), torch.rand(256, 256, 3, 3, **options)
    maps, kernels = (one.contiguous(memory_format=torch.channels_last) for one in (maps, kernels))
    product = min(seconds(lambda: matrix @ matrix) for _ in range(6))
    convolution = min(seconds(lambda: F.conv2d(maps, kernels, padding=1)) for _ in range(6))
    return max(2 * side**3 / product, 2 * kernels.numel() * batch * 28**2 / convolution)


def operations(name: str) -> tuple[int, int]:
    """Floating-point operations an image: of a training step, and of the features alone."""
    with torch.device("meta"):
        network, side = stock_network(name), ARCHITECTURES[name].size * 7 // 8
        image = torch.zeros(1, 3, side, side)
        with FlopCounterMode(display=False) as training:
            network(image).sum().backward()
        with FlopCounterMode(display=False) as extraction, torch.no_grad():
            features_of(network)(image)
    return training.get_total_flops(), extraction.get_total_flops()


def measure(case: Case, pools: dict[str, ProcessPoolExecutor], repeats: int) -> dict[str, Any]:
    """Images/s of a network by task and way, and the limits of the network."""
    for name, pool in pools.items():
        pool.submit(start, name, case).result()
    took: dict[str, dict[str, list[float]]] = {task: {name: [] for name in pools} for task in TASKS}
    for _ in range(1 + repeats):
        for task, times in took.items():
            for name, pool in pools.items():
                times[name].append(pool.submit(timed, task).result())
    batch = case.batch()
    images = {"step": batch, "network": batch, "features": batch * case.transforms()}
    rates = {
        task: {name: round(images[task] / statistics.median(each[1:]), 2) for name, each in times.items()}
        for task, times in took.items()
    }
    speed = pools["ours"].submit(throughput, case.toy).result()
    training, extraction = operations(case.name)
    limits = {task: round(speed / (extraction if task == "features" else training), 2) for task in TASKS}
    return {
        "batch": batch,
        "gflop": round(training / 1e9, 2),
        "gflops_per_s": round(speed / 1e9, 1),
        **{task: rates[task] | {"limit": limits[task]} for task in TASKS},
    }


def hours(rates: dict[str, dict[str, float]]) -> dict[str, float]:
    """Hours of the published solution's trainings and feature extraction.

    Args:
        rates: images/s of the six networks by name: ``step`` and ``features``.
    """
    images = {name: TRAINED * Params(encoder=name).epochs for name in NETWORKS}
    training = sum(images[name] / rates[name]["step"] for name in NETWORKS)
    passes = EXTRACTED * WEIGHT_SETS * PUBLISHED_TRANSFORMS
    extraction = sum(passes / rates[name]["features"] for name in NETWORKS if "512" in name)
    return {"training": training / 3600, "features": extraction / 3600}


def mean_rate(rows: dict[str, dict[str, Any]], task: str, way: str) -> float:
    """Geometric mean over the networks."""
    return statistics.geometric_mean(row[task][way] for row in rows.values())


def row_of(name: str, row: dict[str, Any]) -> str:
    """A line of the table."""
    cells = [f"{name:13s}{row['batch']:6d}{row['gflop']:8.2f}"]
    for task in TASKS:
        rates = row[task]
        share, ratio = rates["ours"] / rates["limit"], rates["ours"] / rates["stock"]
        cells.append(f"{rates['ours']:9.1f}{rates['stock']:8.1f}{ratio:7.2f}{share:7.0%}")
    return "".join(cells)


def run(names: Sequence[str], toy: bool, repeats: int) -> tuple[dict[str, dict[str, Any]], str]:
    """Measure networks, printing each; the device's name too."""
    # forked before torch has threads or a GPU, which a fork would not survive
    context = multiprocessing.get_context("fork")
    rows = {}
    with contextlib.ExitStack() as stack:
        pools = {name: stack.enter_context(ProcessPoolExecutor(1, context, one_core)) for name in WAYS}
        for pool in pools.values():
            pool.submit(int).result()
        print(" " * 27 + "".join(f"{f'{task}, images/s':>31s}" for task in TASKS))
        head = f"{'ours':>9s}{'stock':>8s}{'ratio':>7s}{'limit':>7s}"
        print(f"{'':13s}{'batch':>6s}{'GFLOP':>8s}{head * len(TASKS)}")
        for name in names:
            rows[name] = measure(Case(name, toy), pools, repeats)
            print(row_of(name, rows[name]), flush=True)
    return rows, device_name()


def device_name() -> str:
    """``one core``, or the name of the GPU."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "one core"


def estimate(rows: dict[str, dict[str, Any]], place: str) -> dict[str, dict[str, float]]:
    """Hours of the published solution by way, printed."""
    found = {}
    for way in WAYS:
        spent = hours({name: {task: row[task][way] for task in TASKS} for name, row in rows.items()})
        found[way] = {part: round(value, 1) for part, value in spent.items()}
        parts = f"{spent['training']:.0f} h of training and {spent['features']:.0f} h of features"
        print(f"the published solution on {place}, {way}: {parts}, in all {sum(spent.values()):.0f} h")
    print(f"the original: {ORIGINAL[0]} to {ORIGINAL[1]} h")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--toy", action="store_true", help="one round of batches of 2, 128 px only")
    parser.add_argument("--only", nargs="+", default=NETWORKS, choices=NETWORKS, help="networks")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    names = [name for name in arguments.only if not arguments.toy or "128" in name]
    if not names:
        parser.error("--toy has networks for 128 px only")
    rows, place = run(names, arguments.toy, 1 if arguments.toy else arguments.repeats)
    ratios = {task: mean_rate(rows, task, "ours") / mean_rate(rows, task, "stock") for task in TASKS}
    result = {
        "name": "o_o",
        "value": round(mean_rate(rows, "step", "ours"), 2),
        "unit": f"images/s of a train step, geometric mean of {len(rows)} networks",
        "baseline": round(mean_rate(rows, "step", "stock"), 2),
        "ratio": round(ratios["step"], 2),
        "target": TARGET,
        "holds": min(ratios.values()) >= TARGET,
        "ratios": {task: round(ratio, 2) for task, ratio in ratios.items()},
        "hours": estimate(rows, place) if set(rows) == set(NETWORKS) else None,
        "device": place,
        "parts": rows,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
