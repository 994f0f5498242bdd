import importlib.machinery
import math
import sys
import types

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drgrade.lesions import ops

BACKEND = ops.install()


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


@settings(deadline=None, max_examples=40)
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


@pytest.mark.parametrize("sampling", [0, 2])
@pytest.mark.parametrize("aligned", [True, False])
def test_roi_align_value_and_gradient(sampling: int, aligned: bool) -> None:
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
    value = layer(features, rois)
    (gradient,) = torch.autograd.grad((value * weights).sum(), features)
    expected = brute_roi_align(features, rois, 3, 0.5, sampling, aligned)
    (expected_gradient,) = torch.autograd.grad((expected * weights).sum(), features)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient, expected_gradient)


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
