import importlib.machinery
import math
import sys
import types

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from drgrade.lesions import ops

BACKEND = ops.install()
NO_GPU = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA device: operators on the GPU untested"
)
DEVICES = ["cpu", pytest.param("cuda", marks=NO_GPU)]


def brute_nms(boxes: np.ndarray, scores: np.ndarray, threshold: float, offset: int) -> list[int]:
    kept: list[int] = []
    for i in np.argsort(-scores, kind="stable"):
        ok = True
        for j in kept:
            width = min(boxes[i, 2], boxes[j, 2]) - max(boxes[i, 0], boxes[j, 0]) + offset
            height = min(boxes[i, 3], boxes[j, 3]) - max(boxes[i, 1], boxes[j, 1]) + offset
            shared = max(width, 0) * max(height, 0)
            areas = [(b[2] - b[0] + offset) * (b[3] - b[1] + offset) for b in (boxes[i], boxes[j])]
            ok = ok and shared / (sum(areas) - shared) <= threshold
        if ok:
            kept.append(int(i))
    return kept


@given(seed=st.integers(0, 10**6), count=st.integers(1, 40), offset=st.sampled_from([0, 1]))
def test_nms_is_greedy_suppression(seed: int, count: int, offset: int) -> None:
    from mmcv.ops import nms

    rng = np.random.default_rng(seed)
    corner = rng.integers(0, 30, (count, 2))
    boxes = np.concatenate([corner, corner + rng.integers(1, 25, (count, 2))], axis=1).astype(np.float32)
    scores = rng.permutation(count).astype(np.float32) / count
    # 0.437: no ratio of such small integer areas comes near it, so rounding cannot decide
    _, kept = nms(torch.from_numpy(boxes), torch.from_numpy(scores), 0.437, offset=offset)
    assert kept.tolist() == brute_nms(boxes.astype(float), scores.astype(float), 0.437, offset)


def bilinear(plane: torch.Tensor, y: float, x: float) -> torch.Tensor:
    height, width = plane.shape[-2:]
    if y < -1 or y > height or x < -1 or x > width:
        return plane[:, 0, 0] * 0
    y, x = max(y, 0.0), max(x, 0.0)
    y0, x0 = min(int(y), height - 1), min(int(x), width - 1)
    y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
    dy, dx = (y - y0 if y0 < height - 1 else 0.0), (x - x0 if x0 < width - 1 else 0.0)
    top = plane[:, y0, x0] * (1 - dx) + plane[:, y0, x1] * dx
    bottom = plane[:, y1, x0] * (1 - dx) + plane[:, y1, x1] * dx
    return top * (1 - dy) + bottom * dy


def brute_roi_align(
    features: torch.Tensor, rois: torch.Tensor, side: int, scale: float, sampling: int, aligned: bool
) -> torch.Tensor:
    output = []
    for index, *box in rois.tolist():
        shift = 0.5 if aligned else 0.0
        x1, y1, x2, y2 = (value * scale - shift for value in box)
        width, height = x2 - x1, y2 - y1
        if not aligned:
            width, height = max(width, 1.0), max(height, 1.0)
        rows = sampling or math.ceil(height / side)
        columns = sampling or math.ceil(width / side)
        for i in range(side):
            for j in range(side):
                samples = [
                    bilinear(
                        features[int(index)],
                        y1 + height / side * (i + (a + 0.5) / rows),
                        x1 + width / side * (j + (b + 0.5) / columns),
                    )
                    for a in range(rows)
                    for b in range(columns)
                ]
                output.append(torch.stack(samples).mean(0))
    return torch.stack(output).reshape(len(rois), side, side, -1).permute(0, 3, 1, 2)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("sampling", [0, 2])
@pytest.mark.parametrize("aligned", [True, False])
def test_roi_align_value_and_gradient(sampling: int, aligned: bool, device: str) -> None:
    from mmcv.ops import RoIAlign

    generator = torch.Generator().manual_seed(3)
    features = torch.rand(2, 3, 9, 11, generator=generator, dtype=torch.float64, requires_grad=True)
    rois = torch.tensor(
        [
            [0, 1.0, 2.0, 19.0, 15.0],
            [1, -3.0, -2.0, 8.0, 9.5],
            [1, 10.0, 6.0, 30.0, 30.0],
            [0, 4.0, 4.0, 5.0, 4.5],
        ],
        dtype=torch.float64,
    )
    weights = torch.rand(4, 3, 3, 3, generator=generator, dtype=torch.float64)
    layer = RoIAlign(3, spatial_scale=0.5, sampling_ratio=sampling, aligned=aligned)
    value = layer(features.to(device), rois.to(device)).cpu()
    (gradient,) = torch.autograd.grad((value * weights).sum(), features)
    expected = brute_roi_align(features, rois, 3, 0.5, sampling, aligned)
    (expected_gradient,) = torch.autograd.grad((expected * weights).sum(), features)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient, expected_gradient)


@pytest.mark.parametrize("device", DEVICES)
def test_batched_nms_keeps_classes_apart(device: str) -> None:
    """Above and below the number of boxes at which mmcv goes class by class."""
    from mmcv.ops import batched_nms

    rng = np.random.default_rng(5)
    corner = rng.integers(0, 60, (80, 2))
    boxes = np.concatenate([corner, corner + rng.integers(4, 30, (80, 2))], axis=1).astype(np.float32)
    scores, labels = rng.permutation(80).astype(np.float32) / 80, rng.integers(0, 4, 80)
    expected = []
    for label in range(4):
        (places,) = np.nonzero(labels == label)
        expected += places[brute_nms(boxes[places].astype(float), scores[places], 0.437, 0)].tolist()
    expected.sort(key=lambda place: -scores[place])
    inputs = [torch.from_numpy(array).to(device) for array in (boxes, scores, labels)]
    for split_thr in (10000, 10):
        found, kept = batched_nms(*inputs, {"type": "nms", "iou_threshold": 0.437, "split_thr": split_thr})
        assert kept.tolist() == expected
        np.testing.assert_array_equal(found.cpu().numpy(), np.column_stack([boxes, scores])[expected])


def brute_focal(logits: torch.Tensor, classes: torch.Tensor, gamma: float, alpha: float) -> torch.Tensor:
    rows = []
    for row, positive in zip(logits.tolist(), classes.tolist(), strict=True):
        values = []
        for number, logit in enumerate(row):
            p = 1 / (1 + math.exp(-logit))
            right, weight = (p, alpha) if number == positive else (1 - p, 1 - alpha)
            values.append(-weight * (1 - right) ** gamma * math.log(right))
        rows.append(values)
    return torch.tensor(rows, dtype=torch.float64).reshape(logits.shape)


@given(
    seed=st.integers(0, 10**6),
    count=st.integers(0, 6),
    gamma=st.sampled_from([0.0, 1.0, 2.0, 2.5]),
    alpha=st.sampled_from([0.25, 0.6]),
    weighted=st.booleans(),
)
def test_focal_loss_value_and_gradient(
    seed: int, count: int, gamma: float, alpha: float, weighted: bool
) -> None:
    """Against the formula, number by number, and the slope of the formula; class 3 of 3 is background."""
    generator = torch.Generator().manual_seed(seed)
    logits = 6 * torch.rand(count, 3, generator=generator, dtype=torch.float64) - 3
    classes = torch.randint(0, 4, (count,), generator=generator)
    weight = torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64) if weighted else torch.empty(0)
    factors = torch.tensor([0.5, 2.0, 3.0, 1.0] if weighted else [1.0] * 4, dtype=torch.float64)

    def oracle(shift: float) -> torch.Tensor:
        return brute_focal(logits + shift, classes, gamma, alpha) * factors[classes, None]

    expected, slope = oracle(0), (oracle(1e-5) - oracle(-1e-5)) / 2e-5
    value, gradient = torch.empty_like(logits), torch.empty_like(logits)
    ops.sigmoid_focal_loss_forward(logits, classes, weight, value, gamma=gamma, alpha=alpha)
    ops.sigmoid_focal_loss_backward(logits, classes, weight, gradient, gamma=gamma, alpha=alpha)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient, slope, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("device", DEVICES)
def test_focal_loss_through_mmcv(device: str) -> None:
    """What MMDetection computes on CUDA is what it computes on the CPU by other code."""
    from mmcv.ops import sigmoid_focal_loss
    from mmdet.models.losses.focal_loss import py_sigmoid_focal_loss

    generator = torch.Generator().manual_seed(8)
    logits = torch.randn(20, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    classes = torch.randint(0, 5, (20,), generator=generator)
    value = sigmoid_focal_loss(logits.to(device), classes.to(device), 2.0, 0.25, None, "none").cpu()
    (gradient,) = torch.autograd.grad((value * torch.arange(4)).sum(), logits)
    one_hot = torch.nn.functional.one_hot(classes, 5)[:, :4]
    expected = py_sigmoid_focal_loss(logits, one_hot, reduction="none")
    (expected_gradient,) = torch.autograd.grad((expected * torch.arange(4)).sum(), logits)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient, expected_gradient)


def brute_attention(
    value: torch.Tensor, shapes: list[tuple[int, int]], locations: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Each level's image is read between pixel centres, zero outside, one sample at a time."""
    batch, _, heads, width = value.shape
    _, queries, _, _, points, _ = locations.shape
    rows = []
    for b in range(batch):
        for q in range(queries):
            for h in range(heads):
                total = value.new_zeros(width)
                first = 0
                for level, (height, columns) in enumerate(shapes):
                    for p in range(points):
                        x, y = (locations[b, q, h, level, p] * torch.tensor([columns, height]) - 0.5).unbind()
                        top, left = math.floor(y.item()), math.floor(x.item())
                        for i in (top, top + 1):
                            for j in (left, left + 1):
                                if 0 <= i < height and 0 <= j < columns:
                                    near = (1 - (y - i).abs()) * (1 - (x - j).abs())
                                    pixel = value[b, first + i * columns + j, h]
                                    total = total + weights[b, q, h, level, p] * near * pixel
                    first += height * columns
                rows.append(total)
    return torch.stack(rows).reshape(batch, queries, heads * width)


@pytest.mark.parametrize("device", DEVICES)
def test_deformable_attention_value_and_gradient(device: str) -> None:
    """Through the function that mmcv calls on CUDA; some samples lie outside the image."""
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction

    generator = torch.Generator().manual_seed(9)

    def draw(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    shapes = [(3, 5), (2, 2)]
    value, weights = draw(2, 19, 2, 3).requires_grad_(), draw(2, 4, 2, 2, 3).requires_grad_()
    locations = (1.4 * draw(2, 4, 2, 2, 3, 2) - 0.2).requires_grad_()
    assert ((locations < 0) | (locations > 1)).any()
    result = MultiScaleDeformableAttnFunction.apply(
        value.to(device), torch.tensor(shapes).to(device), torch.tensor([0, 15]).to(device),
        locations.to(device), weights.to(device), 64,
    ).cpu()  # fmt: skip
    expected = brute_attention(value, shapes, locations, weights)
    torch.testing.assert_close(result, expected)
    inputs = (value, locations, weights)
    factors = draw(*expected.shape)
    found = torch.autograd.grad((result * factors).sum(), inputs)
    for gradient, brute in zip(found, torch.autograd.grad((expected * factors).sum(), inputs), strict=True):
        torch.testing.assert_close(gradient, brute)


@NO_GPU
def test_attention_layer_is_the_same_on_cuda() -> None:
    """The layer takes the operator's path on CUDA, the PyTorch path on the CPU: the same numbers."""
    from mmcv.ops import MultiScaleDeformableAttention

    torch.manual_seed(0)
    layer = MultiScaleDeformableAttention(32, 4, 2, 3, dropout=0.0, batch_first=True)
    torch.nn.init.normal_(layer.sampling_offsets.weight, std=0.1)
    query, points = torch.randn(2, 20, 32), torch.rand(2, 20, 2, 2)
    shapes, starts = torch.tensor([(4, 4), (2, 2)]), torch.tensor([0, 16])
    inputs = {"spatial_shapes": shapes, "level_start_index": starts, "reference_points": points}
    expected = layer(query, **inputs)
    found = layer.cuda()(query.cuda(), **{name: value.cuda() for name, value in inputs.items()})
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(BACKEND == "compiled", reason="all operators are there")
def test_other_operators_say_what_they_need() -> None:
    from mmcv.ops import RoIAlign, soft_nms

    with pytest.raises(ops.MissingOpError, match="softnms"):
        soft_nms(torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([0.5]))
    with pytest.raises(ops.MissingOpError, match="roi_align: max"):
        RoIAlign(2, pool_mode="max")(torch.rand(1, 1, 4, 4), torch.tensor([[0.0, 0, 0, 4, 4]]))


def test_compiled_operators_win(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = types.ModuleType(ops.NAME)
    compiled.__spec__ = importlib.machinery.ModuleSpec(ops.NAME, None)
    monkeypatch.setitem(sys.modules, ops.NAME, compiled)
    assert ops.install() == "compiled"
    assert sys.modules[ops.NAME] is compiled


def test_installing_twice_changes_nothing() -> None:
    before = sys.modules[ops.NAME]
    assert ops.install() == BACKEND
    assert sys.modules[ops.NAME] is before
