import cv2
import numpy as np
import pytest

from drgrade.images.fingerprint import distance, perceptual_hash
from drgrade.images.rules import Circle, fit_disc


def eye(seed: int, height: int = 720, width: int = 960, radius: float = 330.0) -> np.ndarray:
    """A disc with smooth texture of its own on black."""
    rng = np.random.default_rng(seed)
    columns, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    inside = np.hypot(columns - width / 2, rows - height / 2) < radius
    texture = cv2.resize(rng.normal(0, 25, (24, 32)), (width, height), interpolation=cv2.INTER_CUBIC)
    return (inside[..., None] * (np.array([150, 90, 50]) + texture[..., None])).clip(0, 255).astype(np.uint8)


def hash_of(picture: np.ndarray) -> str:
    found = perceptual_hash(picture, fit_disc(picture))
    assert found is not None
    return found


def framed(picture: np.ndarray) -> np.ndarray:
    return cv2.copyMakeBorder(picture, 30, 0, 90, 10, cv2.BORDER_CONSTANT, value=(0, 0, 0))


def encoded(picture: np.ndarray) -> np.ndarray:
    return cv2.imdecode(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 70])[1], cv2.IMREAD_COLOR)


@pytest.mark.parametrize(
    "change",
    [
        encoded,
        framed,
        lambda p: p[25:-25, 120:-120].copy(),
        lambda p: cv2.resize(p, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
        lambda p: cv2.resize(p, None, fx=2, fy=2),
        lambda p: (p * 0.85).astype(np.uint8),
    ],
    ids=["jpeg", "margins", "cropped", "half", "twice", "darker"],
)
def test_copies_are_near(change) -> None:
    for seed in range(3):
        picture = eye(seed)
        assert distance(hash_of(picture), hash_of(change(picture))) <= 10


def test_different_and_mirrored_photographs_are_far() -> None:
    hashes = [hash_of(eye(seed)) for seed in range(8)] + [hash_of(eye(0)[:, ::-1].copy())]
    assert min(distance(a, b) for n, a in enumerate(hashes) for b in hashes[:n]) > 60


def test_hash_is_64_hexadecimal_digits_and_repeats() -> None:
    found = hash_of(eye(0))
    assert len(found) == 64
    assert 0 < int(found, 16) < 1 << 256
    assert found == hash_of(eye(0))


def test_whole_picture_when_there_is_no_circle() -> None:
    texture = np.random.default_rng(0).integers(40, 200, (12, 16, 3), dtype=np.uint8)
    picture = cv2.resize(texture, (640, 480), interpolation=cv2.INTER_CUBIC)
    whole, half = (perceptual_hash(one, None) for one in (picture, cv2.resize(picture, (320, 240))))
    assert whole is not None
    assert half is not None
    assert distance(whole, half) <= 10


def test_a_cut_off_top_is_as_a_black_one() -> None:
    picture = eye(0)
    barred = picture.copy()
    barred[:90] = barred[-90:] = 0
    cut = perceptual_hash(picture[90:-90], Circle(480, 270, 330))
    assert cut is not None
    assert distance(cut, perceptual_hash(barred, Circle(480, 360, 330)) or "") <= 4


@pytest.mark.parametrize("value", [0, 5, 128, 255])
def test_pictures_without_structure_have_no_hash(value) -> None:
    flat = np.full((300, 400, 3), value, np.uint8)
    assert perceptual_hash(flat, None) is None
    assert perceptual_hash(flat, Circle(200, 150, 120)) is None


def test_distance_counts_bits() -> None:
    assert distance("f" * 64, "0" * 64) == 256
    assert distance("8" + "0" * 63, "0" * 63 + "1") == 2
