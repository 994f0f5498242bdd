"""Oracles: section 2 of the published facts of DeepMT-DR (shapes, sizes of layers), arithmetic and NumPy."""

import weakref
from collections.abc import Iterator
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from drgrade.encoders import create_encoder
from drgrade.grading import deepmt_phases
from drgrade.grading.deepmt import Params
from drgrade.grading.deepmt_network import new_network
from drgrade.images import augment
from drgrade.images.augment import Plan
from drgrade.networks.deepmt import multi_task
from drgrade.networks.deepmt.gmsv import gmsv, unit_range
from drgrade.networks.deepmt.multi_task import MultiTask, pyramid, widen_stem
from drgrade.networks.deepmt.recompute import recomputed
from drgrade.networks.deepmt.segmentation import MultiScale, Parallel, Segmentation
from drgrade.networks.deepmt.super_resolution import Bicubic, SuperResolution, bicubic, psnr, shrink


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def images(side: int, number: int = 2, seed: int = 0) -> Tensor:
    return torch.rand(number, 3, side, side, generator=torch.Generator().manual_seed(seed))


def discs(number: int, side: int, seed: int) -> Tensor:
    """Photographs of coloured discs with soft edges."""
    rng = torch.Generator().manual_seed(seed)
    places, batch = torch.linspace(0, 1, side), torch.full((number, 3, side, side), 0.5)
    for _ in range(30):
        x, y = torch.rand(2, number, 1, 1, generator=rng)
        radius = 0.03 + 0.15 * torch.rand(number, 1, 1, generator=rng)
        colour = 0.5 * torch.rand(number, 3, 1, 1, generator=rng) - 0.25
        distance = ((places[:, None] - y) ** 2 + (places - x) ** 2).sqrt()
        batch += colour * torch.sigmoid((radius - distance) * side)[:, None]
    return batch.clamp(0, 1)


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_super_resolution_has_the_published_layers(scale):
    """3x3 convolutions 3 -> 32, five blocks of two, one transposed a doubling, 32 -> 3; with biases."""
    network = SuperResolution(scale)
    doublings = {2: 1, 4: 2, 8: 3}[scale]
    assert count(network) == (27 * 32 + 32) + (10 + doublings) * (9 * 32 * 32 + 32) + (288 * 3 + 3)
    with torch.device("meta"):
        assert SuperResolution(scale)(torch.rand(1, 3, 128, 128)).shape == (1, 3, 128 * scale, 128 * scale)


def test_the_published_size_is_enlarged_to_1024():
    with torch.device("meta"):
        network = SuperResolution(4)
        assert network(torch.rand(2, 3, 256, 256)).shape == (2, 3, 1024, 1024)
    assert count(network) == 112_739


@pytest.mark.parametrize("output", ["residual", "tanh"])
def test_enlarged_images_are_in_0_to_1(output):
    torch.manual_seed(0)
    network = SuperResolution(4, 8, 1, output)
    nn.init.normal_(network.last.weight, std=3)
    found = network(images(8))
    assert found.shape == (2, 3, 32, 32)
    assert found.dtype == torch.float32
    assert found.min() >= 0
    assert found.max() <= 1
    assert found.std() > 0.1


def test_a_residual_network_begins_at_bicubic_interpolation():
    torch.manual_seed(0)
    low = images(12)
    with torch.no_grad():
        found = SuperResolution(2, 8, 1)(low)
        published = SuperResolution(2, 8, 1, "tanh")(low)
    torch.testing.assert_close(found, Bicubic(2)(low))
    assert (published - found).abs().max() > 0.1


def test_images_are_shrunk_and_enlarged_as_by_opencv():
    """Without a shift; at the border, which OpenCV mirrors, values differ."""
    batch = images(32, 1)
    low, picture = shrink(batch, 4), batch[0].permute(1, 2, 0).numpy()
    small = cv2.resize(picture, (8, 8), interpolation=cv2.INTER_AREA)
    np.testing.assert_allclose(low[0].permute(1, 2, 0).numpy(), small, atol=1e-6)
    large = cv2.resize(small, (32, 32), interpolation=cv2.INTER_CUBIC).clip(0, 1)
    found = bicubic(low, 4)[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(found[8:-8, 8:-8], large[8:-8, 8:-8], atol=1e-5)


@pytest.mark.parametrize(("scale", "side", "steps", "gain"), [(2, 32, 80, 0.3), (4, 64, 80, 0.005)])
def test_super_resolution_beats_bicubic_interpolation_on_new_images(scale, side, steps, gain):
    """The gate: PSNR on images that were not trained on, after some dozens of steps on the published loss."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    network, train, test = SuperResolution(scale, 16, 1), discs(32, side, 0), discs(8, side, 1)
    adam = torch.optim.Adam(network.parameters(), 1e-3)
    for step in range(steps):
        batch = train[step * 4 % 32 :][:4]
        adam.zero_grad()
        (network(shrink(batch, scale)) - batch).abs().mean().backward()
        adam.step()
    with torch.no_grad():
        low = shrink(test, scale)
        own, baseline = (
            psnr((found - test).square().mean(dim=(1, 2, 3))).mean().item()
            for found in (network(low), bicubic(low, scale))
        )
    assert own > baseline + gain


def test_psnr():
    np.testing.assert_allclose(psnr(torch.tensor([1.0, 0.01, 0.0])), [0, 20, 100], atol=1e-5)


def convolution(fan_in: int, fan_out: int, kernel: int) -> int:
    return fan_out * fan_in * kernel**2 + fan_out


def parallel(fan_in: int, width: int) -> int:
    """3x3 and 5x5 of half the width each, and BatchNorm."""
    return convolution(fan_in, width // 2, 3) + convolution(fan_in, width // 2, 5) + 2 * width


def test_segmentation_has_nine_modules_and_the_published_widths():
    with torch.device("meta"):
        network = Segmentation()
        assert network(torch.rand(1, 3, 1024, 1024)).shape == (1, 4, 1024, 1024)
    widths = [64, 128, 256, 512, 1024]
    inputs = [(3, 64), *pairwise(widths)]
    blocks = [*inputs, *((2 * width, width) for width in widths[:-1])]
    total = sum(parallel(*pair) + convolution(pair[1], pair[1], 3) + 2 * pair[1] for pair in blocks)
    total += sum(parallel(2 * width, width) for width in widths[:-1])
    total += sum(convolution(width, 4, 1) for width in widths)
    assert count(network) == total
    assert len([module for module in network.modules() if isinstance(module, MultiScale)]) == 9


def test_a_multi_scale_module_is_the_formula():
    torch.manual_seed(0)
    module, maps = MultiScale(3, 4).eval(), images(8)
    both = torch.cat([module.parallel.small(maps), module.parallel.large(maps)], dim=1)
    several = (both / (1 + 1e-5) ** 0.5).relu()  # BatchNorm before any training
    expected = (several + module.conv(several) / (1 + 1e-5) ** 0.5).relu()
    torch.testing.assert_close(module(maps), expected)


def test_side_outputs_add_up_and_the_finest_can_be_left_out():
    """With constant side outputs 1, 10, 100, ... the logits are the weighted sum."""
    network = Segmentation(4, [0.4, 0.2, 0.2, 1.0, 0.5]).eval()
    for power, head in enumerate(network.heads):
        nn.init.zeros_(head.weight)
        nn.init.constant_(head.bias, 10.0**power)
    with torch.no_grad():
        logits = network(images(32))
    torch.testing.assert_close(logits, torch.full((2, 4, 32, 32), 0.4 + 2 + 20 + 1000 + 5000))
    published = Segmentation(4, [0.4, 0.2, 0.2, 1.0, 0.0])
    published(images(32)).sum().backward()
    assert not published.heads[4].weight.grad.any()
    assert published.heads[3].weight.grad.any()


@pytest.mark.parametrize("side", [128, 256, 512, 1024])
def test_the_pyramid_is_of_one_length_for_all_sizes(side):
    maps = torch.empty(2, 512, side // 32, side // 32, device="meta")
    assert pyramid(maps, [4, 2, 1]).shape == (2, 10_752)


def test_the_pyramid_takes_maxima_over_cells():
    maps = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    cells = [maps.numpy().reshape(2, 3, k, 8 // k, k, 8 // k).max(axis=(3, 5)) for k in (4, 2, 1)]
    expected = np.concatenate([cell.reshape(2, -1) for cell in cells], axis=1)
    np.testing.assert_array_equal(pyramid(maps, [4, 2, 1]).numpy(), expected)


def test_a_widened_stem_sees_colours_as_before():
    torch.manual_seed(0)
    trunk, batch = create_encoder("resnet18", "random").eval(), torch.randn(2, 7, 64, 64)
    with torch.no_grad():
        before = trunk(batch[:, :3])
        assert count(trunk) == 11_176_512
        widen_stem(trunk, 4)
        assert count(trunk) == 11_176_512 + 4 * 64 * 49
        torch.testing.assert_close(trunk(batch), before)
    trunk(batch).sum().backward()
    assert trunk.conv1.weight.grad[:, 3:].abs().sum() > 0  # masks are used from the first step on


def tiny(side: int = 64, encoder: str = "test_resnet", **changed: Any) -> Params:
    settings = {
        "super_resolution_width": 4, "super_resolution_blocks": 1, "segmentation_width": 4, "hidden": 16,
        "input_size": side // 2, "scale": 2, "encoder": encoder, "start": "random",
    }  # fmt: skip
    return Params(**settings | changed)


def test_the_published_network():
    """1024 px from 256 px; the head has 10752 x 512 and 512 x 5 weights."""
    with torch.device("meta"):
        network = new_network(Params(encoder="resnet18", start="random"), "random")
        assert network(torch.rand(2, 3, 256, 256)).shape == (2, 5)
    assert count(network.encoder.hidden) + count(network.head) == 10_752 * 512 + 512 + 512 * 5 + 5
    assert network.encoder.num_features == 512


@pytest.mark.parametrize("encoder", ["test_resnet", "tf_efficientnet_lite0", "test_convnext"])
def test_other_backbones(encoder):
    torch.manual_seed(0)
    network = new_network(tiny(encoder=encoder), "random").eval()
    features, maps = network.encoder.read(*network.encoder.prepared(images(32)))
    assert features.shape == (2, 16)
    assert [one.shape[-1] for one in maps] == [16, 8, 4, 2]


def test_without_gradients_images_are_computed_in_parts(monkeypatch):
    torch.manual_seed(0)
    network, batch = new_network(tiny(), "random").eval().encoder, images(32, 5)
    whole = network(batch).detach()
    monkeypatch.setattr(multi_task, "PIXELS", 2 * 64**2)
    sizes: list[int] = []
    network.restore.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    with torch.no_grad():
        torch.testing.assert_close(network(batch), whole)
    restored, lesions = network.prepared_in_parts(batch)
    assert sizes == [2, 2, 1] * 2
    torch.testing.assert_close(lesions, network.lesions(restored).detach())
    network(batch)
    assert sizes[-1] == 5


def test_without_segmentation_there_are_three_channels():
    network = new_network(tiny(segmentation="none"), "random").eval()
    stem = next(module for module in network.encoder.encoder.modules() if isinstance(module, nn.Conv2d))
    assert stem.weight.shape[1] == 3
    assert network.encoder.lesions(images(64)).shape == (2, 0, 64, 64)
    assert network(images(32)).shape == (2, 5)


class Smooth(nn.Module):
    """Two levels of features without kinks, so that derivatives can be checked numerically."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.head = nn.Linear(4, 2)

    def forward(self, batch: Tensor) -> tuple[list[Tensor], Tensor]:
        fine = self.first(batch).tanh()
        coarse = self.second(fine).tanh()
        return [fine, coarse], self.head(coarse.mean(dim=(2, 3))).square().sum(dim=1)


def test_gmsv_is_the_algorithm():
    """A linear unit on the means of a feature map: its gradients are known without differentiation."""
    rng = np.random.default_rng(0)
    fine, slopes = rng.normal(size=(3, 4, 4)).astype(np.float32), np.array([0.5, -2.0, 3.0], np.float32)
    coarse = fine.reshape(3, 2, 2, 2, 2).mean(axis=(2, 4))
    maps = torch.from_numpy(fine)[None].requires_grad_()
    pooled = torch.nn.functional.avg_pool2d(maps, 2)
    score = (pooled.mean(dim=(2, 3)) * torch.from_numpy(slopes)).sum(dim=1)
    deep = np.tensordot(slopes / 4, coarse, 1)
    shallow = np.tensordot(slopes / 16, fine, 1)
    expected = cv2.resize(deep, (4, 4), interpolation=cv2.INTER_LINEAR) + (slopes / 16).sum() * shallow
    np.testing.assert_allclose(gmsv([maps, pooled], score)[0].detach().numpy(), expected, atol=1e-6)


def test_gradients_of_gmsv_reach_the_input_and_are_right():
    """Finite differences; also of the map in 0-1."""
    torch.manual_seed(0)
    network = Smooth().double()
    batch = torch.randn(2, 1, 6, 6, dtype=torch.float64, requires_grad=True)

    def evidence(inputs: Tensor) -> Tensor:
        return gmsv(*network(inputs), create_graph=True)

    assert evidence(batch).dtype == torch.float64
    assert torch.autograd.gradcheck(evidence, batch)
    assert torch.autograd.gradcheck(lambda inputs: unit_range(evidence(inputs)), batch)
    (gradient,) = torch.autograd.grad(evidence(batch).sum(), batch)
    assert gradient.abs().min() > 0


@given(st.permutations(range(4)))
def test_a_map_belongs_to_its_image(order):
    torch.manual_seed(0)
    network, batch = Smooth(), torch.randn(4, 1, 6, 6)
    together = gmsv(*network(batch)).detach()
    torch.testing.assert_close(gmsv(*network(batch[list(order)])).detach(), together[list(order)])
    alone = [gmsv(*network(image)).detach() for image in batch.split(1)]
    torch.testing.assert_close(torch.cat(alone), together)


def test_the_unit_range():
    maps = torch.tensor([[[-1.0, 2.0, 6.0]], [[1.0, 2.0, 5.0]], [[3.0, 3.0, 3.0]], [[-3.0, -2.0, -1.0]]])
    expected = [[[0, 1 / 3, 1]], [[0, 0.25, 1]], [[0, 0, 0]], [[0, 0, 0]]]
    np.testing.assert_allclose(unit_range(maps).numpy(), expected, atol=1e-6)
    maps.requires_grad_()
    unit_range(maps).sum().backward()
    assert maps.grad.isfinite().all()


@pytest.mark.parametrize("training", [True, False])
def test_recomputing_changes_nothing(training):
    """Output, first and second gradients, and the running statistics of BatchNorm."""
    found = []
    for run in (lambda block, maps: block(maps), recomputed):
        torch.manual_seed(0)
        block, maps = Parallel(3, 4).train(training), images(8).requires_grad_()
        output = run(block, maps)
        (gradient,) = torch.autograd.grad(output.square().sum(), maps, create_graph=True)
        gradient.square().sum().backward()
        found.append([output, gradient, maps.grad, *(one.grad for one in block.parameters())])
        found[-1] += list(block.state_dict().values())
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert int(block.norm[0].num_batches_tracked) == training


def test_recomputing_saves_memory():
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        kept[-1] += tensor.numel()
        return tensor

    for checkpointing in (False, True):
        network = new_network(tiny(checkpointing=checkpointing), "random").train().encoder
        kept.append(0)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            network.prepared(images(32))
    assert kept[1] < kept[0] / 3


class Memory(TorchDispatchMode):
    """Bytes of all tensors that live at a time; tensors may be fake."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known = WeakIdKeyDictionary()

    def __torch_dispatch__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = call(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            storage = tensor.untyped_storage() if isinstance(tensor, Tensor) else None
            if storage is not None and storage not in self.known:
                self.known[storage] = True
                self.add(storage.nbytes())
                weakref.finalize(storage, self.add, -storage.nbytes())
        return result

    def add(self, size: int) -> None:
        self.now += size
        self.peak = max(self.peak, self.now)


@pytest.fixture
def fake() -> Iterator[None]:
    """Within it tensors have shapes, but no values; constants that were cached meanwhile are forgotten."""
    augment._constant.cache_clear()
    with FakeTensorMode():
        yield
    augment._constant.cache_clear()


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize(("phase", "batch", "limit"), [("Restoration", 2, 11e9), ("Joint", 1, 6e9)])
def test_a_step_at_the_published_size_fits_24_gb(phase, batch, limit, monkeypatch):
    """All tensors of a step in bfloat16, which are never filled; then weights, gradients and Adam's state."""
    params = Params(encoder="resnet18", start="random")
    monkeypatch.setattr(deepmt_phases, "deepcopy", lambda _: new_network(params, "random"))
    monkeypatch.setattr(nn.Module, "to", lambda self, **_: self)  # not supported by fake tensors
    network = new_network(params, "random")
    job = SimpleNamespace(seed=0, masked=(), val=(), train=SimpleNamespace(grades=np.arange(5)))
    module = getattr(deepmt_phases, phase)(network, params, job)
    side = params.high_size
    shown = deepmt_phases.Images(torch.zeros(batch, 3, side, side, dtype=torch.uint8), Plan(None, None))
    masks = torch.zeros(batch, side, side, dtype=torch.uint8), torch.zeros(batch, dtype=torch.uint8)
    sample = deepmt_phases.Sample(shown, torch.zeros(batch, dtype=torch.int64), None, shown, *masks)
    memory = Memory()
    with memory:
        with torch.autocast("cpu", torch.bfloat16):
            loss = module.training_step(sample, 0)
        loss.backward()
    assert limit / 2 < memory.peak < limit
    weights_gradients_adam_teacher = 5 * 4 * count(network)
    assert limit + weights_gradients_adam_teacher < 13e9  # about half of it; libraries need some more


def test_the_encoder_of_a_network_can_be_replaced():
    """Features of images alone: no super-resolution, no lesions, an encoder of timm."""
    torch.manual_seed(0)
    trunk = create_encoder("test_resnet", "random").eval()
    network = MultiTask(Bicubic(2), None, trunk, [0.5] * 3, [0.25] * 3, grids=(1,), hidden=8)
    batch = images(32)
    with torch.no_grad():
        features = trunk.forward_features((bicubic(batch, 2) - 0.5) / 0.25).amax(dim=(2, 3))
        torch.testing.assert_close(network(batch), network.hidden(features).relu())
