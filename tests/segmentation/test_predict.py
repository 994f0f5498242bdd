import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from drgrade.params import Segmentation
from drgrade.segmentation import predict
from drgrade.segmentation.predict import probabilities, smooth_window, to_photograph


class Channels(nn.Module):
    """Returns the logits of two channels of its input, so that probabilities are the image itself."""

    kinds = ("MA", "EX")

    def __init__(self, **options: object) -> None:
        super().__init__()
        self.params = Segmentation(**{"tile": 64, "scale": 1.0, "overlap": 0.25, **options})
        self.batches: list[int] = []

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        assert batch.shape[1:] == (3, self.params.tile, self.params.tile)
        self.batches.append(len(batch))
        return torch.logit((batch[:, [0, 2]].float() / 255).clamp(1e-7, 1 - 1e-7))


class Shifted(Channels):
    """Prediction that depends on direction and place: no rotation or mirror image of it is the same."""

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        logits = super().forward(batch).roll((3, 5), (2, 3))
        return logits + torch.linspace(0, 2, self.params.tile)


def noise(height: int, width: int, low: int = 40) -> np.ndarray:
    return np.random.default_rng(0).integers(low, 256, (height, width, 3)).astype(np.uint8)


@settings(max_examples=12)
@given(
    height=st.integers(20, 150),
    width=st.integers(20, 150),
    overlap=st.floats(0, 0.8),
    transforms=st.sampled_from([1, 8]),
    x0=st.integers(-30, 10),
    y0=st.integers(-30, 10),
)
def test_a_network_that_returns_the_image_gives_it_back(
    height: int, width: int, overlap: float, transforms: int, x0: int, y0: int
) -> None:
    image = noise(height, width)
    box = (x0, y0, width + 7, height - 3)
    found = probabilities(Channels(overlap=overlap, transforms=transforms), image, box)
    expected = image[max(y0, 0) : height - 3, max(x0, 0) :, [0, 2]].transpose(2, 0, 1) / 255
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=2e-6)
    original = to_photograph(found, box, image.shape)
    outside = np.ones((height, width), bool)
    outside[max(y0, 0) : height - 3, max(x0, 0) :] = False
    assert original.shape == (2, height, width)
    assert (original[:, outside] == 0).all()
    np.testing.assert_allclose(original[:, ~outside].ravel(), expected.reshape(2, -1).ravel(), atol=2e-6)


@pytest.mark.parametrize("scale", [0.5, 1.5])
def test_scaled_maps_return_to_original_pixels(scale: float) -> None:
    rows, columns = np.mgrid[:160, :120]
    image = np.stack([rows + 60, columns + 40, (rows + columns) // 2 + 50], axis=2).astype(np.uint8)
    box = (10, 20, 110, 140)
    found = probabilities(Channels(scale=scale), image, box)
    assert found.shape == (2, 120 * scale, 100 * scale)
    original = to_photograph(found, box, image.shape)
    inside = np.s_[22:138, 12:108]  # at the edges of the box there is nothing to interpolate with
    expected = image[..., [0, 2]].transpose(2, 0, 1) / 255
    assert abs(original - expected)[:, *inside].max() < 1.5 / 255


def test_the_batch_size_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    image, box = noise(150, 200), (0, 0, 200, 150)
    found = []
    for tiles in (1, 3, 100):
        network = Shifted(transforms=8)
        monkeypatch.setattr(predict, "batch_size", lambda side, cpu, tiles=tiles: tiles * predict.DECODER)
        found.append(probabilities(network, image, box))
        assert max(network.batches) <= tiles
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)
    np.testing.assert_allclose(found[0], found[2], atol=1e-6)


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("mirrored", [False, True])
def test_with_eight_transforms_the_maps_turn_with_the_photograph(turns: int, mirrored: bool) -> None:
    def moved(array: np.ndarray, axes: tuple[int, int]) -> np.ndarray:
        turned = np.rot90(array, turns, axes)
        return np.ascontiguousarray(np.flip(turned, axes[1]) if mirrored else turned)

    image, box = noise(112, 112), (0, 0, 112, 112)  # 9 tiles, which lie symmetrically
    upright, turned = (
        probabilities(Shifted(transforms=8), pixels, box) for pixels in (image, moved(image, (0, 1)))
    )
    np.testing.assert_allclose(turned, moved(upright, (1, 2)), atol=1e-6)


def test_one_transform_is_the_network_itself() -> None:
    network = Shifted()
    image = noise(64, 64)
    logits = network(torch.from_numpy(image).permute(2, 0, 1)[None])[0]
    np.testing.assert_allclose(probabilities(network, image, (0, 0, 64, 64)), logits.sigmoid(), atol=1e-6)


def test_seams_vanish() -> None:
    class Frame(Channels):
        """A network that is wrong at the edges of its tiles."""

        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            logits = torch.full_like(super().forward(batch), -8.0)
            logits[..., :2] = logits[..., -2:] = 8.0
            return logits

    found = probabilities(Frame(overlap=0.5), noise(64, 160), (0, 0, 160, 64))
    assert found[:, :, 2:-2].max() < 0.05
    assert found[:, :, :2].min() > 0.9


def test_tiles_outside_the_field_of_view_are_skipped() -> None:
    image = noise(64, 256)
    image[:, 100:] = 5
    network = Channels(overlap=0)
    found = probabilities(network, image, (0, 0, 256, 64))
    assert sum(network.batches) == 2
    assert (found[:, :, 128:] == 0).all()
    assert found[:, :, 100:128] == pytest.approx(5 / 255, abs=1e-6)
    network = Channels(overlap=0)
    assert (probabilities(network, np.zeros_like(image), (0, 0, 256, 64)) == 0).all()
    assert network.batches == []


def test_weights_are_never_zero() -> None:
    window = smooth_window(256)
    assert window.min() > 0
    assert window.max() == pytest.approx(1, abs=1e-3)
    assert torch.equal(window, window.T)
    assert torch.allclose(window, window.flip(0))


def test_a_box_inside_the_photograph_is_resampled_bilinearly() -> None:
    maps = np.random.default_rng(1).random((3, 20, 30)).astype(np.float32)
    original = to_photograph(maps, (5, 6, 65, 46), (50, 80, 3))
    for values, place in zip(maps, original, strict=True):
        np.testing.assert_allclose(place[6:46, 5:65], cv2.resize(values, (60, 40)))
    assert original.sum() == pytest.approx(original[:, 6:46, 5:65].sum())
