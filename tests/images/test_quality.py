import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drgrade.images.quality import Quality, looks_like_retina, measure
from drgrade.images.read import read_reduced
from drgrade.images.rules import Circle, find_box, fit_disc

PERFECT = Circle(260.0, 240.0, 220.0)


def fundus(light=1.0, haze=0.0, blur=0.0, circle=PERFECT, shape=(480, 520)):
    """A textured disc: coarse patches and fine dark lines, as vessels make them."""
    rng = np.random.default_rng(3)
    texture = rng.normal(0, 1, (*shape, 1))
    coarse = cv2.GaussianBlur(texture, (0, 0), 9)[..., None] * 120
    fine = cv2.GaussianBlur(texture, (0, 0), 1.2)[..., None] * 40
    picture = np.array([170.0, 90.0, 50.0]) + coarse + fine
    picture = light * ((1 - haze) * picture + haze * 150)
    rows, columns = np.indices(shape) + 0.5
    picture[np.hypot(columns - circle.x, rows - circle.y) > circle.radius] = 0
    if blur:
        picture = cv2.GaussianBlur(picture, (0, 0), blur)
    return picture.clip(0, 255).astype(np.uint8)


def test_a_good_photograph_is_gradable():
    quality = measure(fundus(), PERFECT)
    assert quality.fov == pytest.approx(1, abs=0.01)
    assert quality.score > 0.9


def test_no_field_of_view_no_quality():
    grey = np.repeat(fundus()[..., :1], 3, axis=2)
    assert measure(grey, None) == Quality(0, 0, 0, 0)
    assert measure(fundus(), Circle(-900.0, 240.0, 220.0)) == Quality(0, 0, 0, 0)


SQUARE = np.s_[110:370, 190:450]
"""A square inside the field of view of :func:`fundus`."""


def test_a_crop_without_a_rim_is_measured_and_its_field_of_view_unknown():
    quality = measure(fundus()[SQUARE], None)
    assert quality.fov is None
    assert quality.score > 0.9
    blurred = measure(fundus(blur=8)[SQUARE], None)
    assert blurred.sharpness < 0.5 < quality.sharpness


def test_a_white_surround_and_an_ellipse_are_measured_without_it():
    white = fundus()
    rows, columns = np.indices(white.shape[:2]) + 0.5
    white[np.hypot(columns - PERFECT.x, rows - PERFECT.y) > PERFECT.radius] = 255
    ellipses = [cv2.resize(fundus(), None, fx=ratio, fy=1) for ratio in (1.15, 1.3, 1.6)]
    for picture in (white, *ellipses):
        assert fit_disc(picture) is None  # a circle would be wrong; the crop's rule says that it fell back
        assert find_box(picture, "disc")[1].startswith("disc:fallback_")
        quality = measure(picture, None)
        assert quality.fov is None
        assert quality.score > 0.8


def pictures_without_an_eye():
    noise = np.random.default_rng(0).integers(0, 256, (400, 600, 3)).astype(np.uint8)
    form = np.full((400, 600, 3), 250, np.uint8)
    for row in range(20, 380, 20):
        cv2.putText(form, "Name, date of birth, eye, remarks", (20, row), 0, 0.6, (30, 30, 60), 1)
    return {"black": noise * 0, "white": noise * 0 + 255, "noise": noise, "form": form}


@pytest.mark.parametrize("name", pictures_without_an_eye())
def test_what_is_no_eye_does_not_look_like_a_retina(name):
    picture = pictures_without_an_eye()[name]
    assert not looks_like_retina(picture, fit_disc(picture))


def test_photographs_and_crops_look_like_a_retina():
    assert looks_like_retina(fundus(), fit_disc(fundus()))
    assert looks_like_retina(fundus()[SQUARE], None)


@pytest.mark.parametrize(("measured", "changes"), [
    ("sharpness", [{"blur": sigma} for sigma in (0, 3, 5, 8)]),
    ("exposure", [{"light": light} for light in (1, 0.3, 0.2, 0.1)]),
    ("contrast", [{"haze": haze} for haze in (0.2, 0.8, 0.9, 0.97)]),
])  # fmt: skip
def test_each_fault_lowers_its_own_measure(measured, changes):
    values = [getattr(measure(fundus(**change), PERFECT), measured) for change in changes]
    assert values == sorted(values, reverse=True)
    assert values[0] > 0.9
    assert values[-1] < 0.5


def test_glare_is_bad_exposure():
    assert measure(fundus(light=3.0), PERFECT).exposure < 0.3


def test_a_cut_off_field_shows_in_fov_alone():
    """Half of a disc behind the frame: the share is that of the circular segment."""
    circle = Circle(260.0, 0.0, 220.0)
    quality = measure(fundus(circle=circle), circle)
    assert quality.fov == pytest.approx(0.5, abs=0.01)
    assert min(quality[1:]) > 0.9


@given(zoom=st.floats(0.75, 2.0))
def test_the_camera_resolution_matters_little(zoom):
    large = cv2.resize(fundus(), None, fx=zoom, fy=zoom, interpolation=cv2.INTER_AREA)
    measured = measure(large, Circle(*(zoom * value for value in PERFECT)))
    assert measured.exposure == pytest.approx(measure(fundus(), PERFECT).exposure, abs=0.02)
    assert measured.score > 0.85


@given(data=st.data())
def test_always_within_0_and_1(data):
    seed = data.draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    height, width = rng.integers(2, 90, 2)
    picture = rng.integers(0, 256, (height, width, 3), dtype=np.uint8) // rng.integers(1, 256)
    circle = Circle(*rng.uniform(-50, 120, 2), rng.uniform(1, 100))
    quality = measure(picture.astype(np.uint8), circle)
    assert all(0 <= value <= 1 for value in quality)


def test_real_photographs_are_gradable_and_their_blurred_copies_less(idrid):
    lost = []
    for path in sorted(idrid.glob("B*/1*/*/*.jpg"))[::20]:
        picture, _ = read_reduced(path, 320)
        blurred = cv2.GaussianBlur(picture, (0, 0), 4).astype(np.uint8)
        good, bad = measure(picture, fit_disc(picture)), measure(blurred, fit_disc(blurred))
        if path.name == "IDRiD_081.jpg":  # looked at: all of it is out of focus
            assert good.score < 0.2
            continue
        assert good.score > 0.4
        lost.append(good.sharpness - bad.sharpness)
    assert min(lost) > 0.1
    assert np.median(lost) > 0.5


def test_real_photographs_have_the_outline_and_colours_that_are_asked_for(idrid):
    paths = sorted(idrid.glob("B. Disease Grading/1*/a*/*.jpg"))[::25]
    assert len(paths) > 5
    for path in paths:
        picture, _ = read_reduced(path, 320)
        circle = fit_disc(picture)
        assert circle is not None, path.name
        side = int(0.6 * circle.radius)
        x, y = int(circle.x), int(circle.y)
        inside = picture[max(y - side, 0) : y + side, max(x - side, 0) : x + side]
        assert looks_like_retina(inside, None), path.name
