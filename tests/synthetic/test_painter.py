from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drgrade.synthetic.anatomy import AVASCULAR_RADIUS, Camera, draw_anatomy, draw_camera
from drgrade.synthetic.icdr import Lesion, icdr_grade
from drgrade.synthetic.painter import Eye, field_of_view, paint
from drgrade.synthetic.pathology import draw_lesions


def make_eye(seed: int, grade: int = 2, rich: bool = False, left: bool = False, width: int = 500) -> Eye:
    rng = np.random.default_rng(seed)
    camera = draw_camera(rng, width, left)
    anatomy = draw_anatomy(np.random.default_rng(seed), rng, left)
    return Eye(camera, anatomy, draw_lesions(rng, grade, camera, anatomy, rich), (0.8, 0.4, 0.1), 0.3, seed)


@pytest.mark.parametrize("grade", range(5))
def test_drawn_lesions_have_the_wanted_grade_and_are_visible(grade: int) -> None:
    for seed in range(12):
        eye = make_eye(seed, grade, left=bool(seed % 2))
        assert icdr_grade(eye.lesions) == grade
        for lesion in eye.lesions:
            x, y = eye.camera.to_pixels(np.array([[lesion.x, lesion.y]]))[0]
            assert 0 <= x < eye.camera.width
            assert 0 <= y < eye.camera.height
            assert np.hypot(x - eye.camera.centre[0], y - eye.camera.centre[1]) < eye.camera.radius


def test_same_eye_gives_same_pixels_and_another_seed_others() -> None:
    first, masks = paint(make_eye(3, rich=True))
    again, masks_again = paint(make_eye(3, rich=True))
    assert np.array_equal(first, again)
    assert all(np.array_equal(masks[kind], masks_again[kind]) for kind in masks)
    other, _ = paint(make_eye(4, rich=True))
    assert first.shape != other.shape or not np.array_equal(first, other)


def test_photograph_is_bright_inside_the_field_and_black_outside() -> None:
    eye = make_eye(5, grade=0)
    image, masks = paint(eye)
    assert image.shape == (eye.camera.height, eye.camera.width, 3)
    assert image.dtype == np.uint8
    assert masks == {}
    field = field_of_view(eye.camera)
    assert image[field == 1].mean() > 4 * image[field == 0].mean()
    red, green, blue = image[field == 1].mean(axis=0)
    assert red > green > blue


def test_mask_of_one_round_lesion_is_where_it_was_put() -> None:
    eye = make_eye(6, grade=0, width=900)
    lesion = Lesion("HE", -0.3, 0.2, 0.05, shape="dot", seed=1, depth=0.9)
    sick = Eye(eye.camera, eye.anatomy, (lesion,), eye.pigment, eye.tigroid, eye.seed)
    image, masks = paint(sick)
    assert list(masks) == ["HE"]
    rows, columns = np.nonzero(masks["HE"])
    x, y = eye.camera.to_pixels(np.array([[-0.3, 0.2]]))[0]
    radius = 0.05 * eye.camera.radius
    assert (columns.mean() + 0.5, rows.mean() + 0.5) == pytest.approx((x, y), abs=0.15 * radius)
    assert len(rows) == pytest.approx(np.pi * radius**2, rel=0.3)
    # Painting the lesion changed the image inside the mask and nowhere far from it.
    change = np.abs(image.astype(int) - paint(eye)[0].astype(int)).sum(axis=2)
    near = cv2.dilate(masks["HE"].astype(np.uint8), np.ones((25, 25), np.uint8)) > 0
    assert change[masks["HE"]].mean() > 25
    assert change[~near].max() == 0


def test_every_planned_lesion_leaves_its_mask() -> None:
    for seed in range(6):
        eye = make_eye(seed, grade=3, rich=True, width=256)
        _, masks = paint(eye)
        planned = {lesion.kind for lesion in eye.lesions} - {"VB", "IRMA"}
        assert set(masks) == planned
        assert all(mask.any() for mask in masks.values())
        for kind, mask in masks.items():
            blobs = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)[0] - 1
            assert blobs <= sum(lesion.kind == kind for lesion in eye.lesions)


def test_lesions_show_their_colours() -> None:
    eye = make_eye(8, grade=2, rich=True, width=900)
    image, masks = paint(eye)
    inside = (field_of_view(eye.camera) == 1) & ~np.any(list(masks.values()), axis=0)
    plain = np.median(image[inside], axis=0)
    assert image[masks["HE"]].mean(axis=0)[1] < plain[1] - 20  # blood takes green
    assert image[masks["EX"]].mean(axis=0)[1] > plain[1] + 20  # exudates are bright
    assert image[masks["MA"]].mean(axis=0)[1] < plain[1] - 8


def test_eyes_of_a_patient_are_mirrored_and_similar() -> None:
    right = draw_anatomy(np.random.default_rng(1), np.random.default_rng(2), left=False)
    left = draw_anatomy(np.random.default_rng(1), np.random.default_rng(3), left=True)
    assert right.disc[0] > 0 > left.disc[0]
    assert left.disc == (-right.disc[0], right.disc[1])
    assert left.disc_axes == right.disc_axes
    assert not np.array_equal(right.vessels[0].points, -left.vessels[0].points)


def test_no_vessel_crosses_the_fovea_and_branches_are_thinner() -> None:
    anatomy = draw_anatomy(np.random.default_rng(1), np.random.default_rng(2), left=False)
    assert len(anatomy.vessels) > 30
    for vessel in anatomy.vessels:
        assert np.hypot(*vessel.points.T).min() >= AVASCULAR_RADIUS
        assert vessel.widths[-1] < vessel.widths[0]


def test_cameras_differ_around_the_wanted_width() -> None:
    cameras = [draw_camera(np.random.default_rng(seed), 800, False) for seed in range(300)]
    assert np.mean([camera.width for camera in cameras]) == pytest.approx(800, rel=0.03)
    assert len({camera.width for camera in cameras}) >= 5
    cut = [2 * camera.radius > camera.height for camera in cameras]
    assert 0.3 < np.mean(cut) < 0.7
    assert any(camera.width / camera.height < 1.1 for camera in cameras)


def ring_contrast(image: np.ndarray, mask: np.ndarray, all_masks: np.ndarray) -> float:
    """Mean green of the lesions less that of a ring around them that holds no lesion."""
    ring = cv2.dilate(mask.astype(np.uint8), np.ones((15, 15), np.uint8)) > 0
    near = cv2.dilate(all_masks.astype(np.uint8), np.ones((7, 7), np.uint8)) > 0
    green = image[..., 1].astype(float)
    return float(green[mask].mean() - green[ring & ~near].mean())


def test_lesion_contrast_makes_lesions_stand_out_more_and_changes_nothing_else() -> None:
    eye = make_eye(8, grade=2, rich=True, width=900)
    eye = replace(eye, camera=replace(eye.camera, noise=0.0))
    bare, _ = paint(replace(eye, lesions=()))
    usual, usual_masks = paint(eye)
    measured, painted = {}, {}
    for contrast in (0.1, 0.5, 1.0, 1.5, 2.0):
        painted[contrast], masks = paint(replace(eye, lesion_contrast=contrast))
        union = np.any(list(masks.values()), axis=0)
        measured[contrast] = {kind: ring_contrast(painted[contrast], masks[kind], union) for kind in masks}
        assert all(np.array_equal(mask, usual_masks[kind]) for kind, mask in masks.items())
        far = cv2.dilate(union.astype(np.uint8), np.ones((61, 61), np.uint8)) == 0
        assert np.array_equal(painted[contrast][far], bare[far])
    assert np.array_equal(painted[1.0], usual)
    for kind, sign in (("MA", -1), ("HE", -1), ("EX", 1), ("SE", 1)):
        steps = np.diff([sign * values[kind] for values in measured.values()])
        assert (steps > 0).all(), kind
    for kind in ("MA", "HE", "EX"):  # about proportional where blood and light do not saturate
        half, whole, none = measured[0.5][kind], measured[1.0][kind], measured[0.1][kind]
        assert (half - none) / (whole - none) == pytest.approx(4 / 9, abs=0.12)


def test_signs_without_a_mask_fade_with_the_contrast_too() -> None:
    eye = make_eye(3, grade=0, width=700)
    vessels = [vessel for vessel in eye.anatomy.vessels if vessel.vein]
    x, y = vessels[0].points[len(vessels[0].points) // 2]
    plain, _ = paint(eye)
    for sign in (Lesion("NV", -0.3, 0.2, 0.15, seed=1), Lesion("VB", float(x), float(y), 0.2)):
        change = []
        for contrast in (0.2, 0.6, 1.0, 1.6):
            image, masks = paint(replace(eye, lesions=(sign,), lesion_contrast=contrast))
            assert masks == {}
            change.append(np.abs(image.astype(int) - plain).sum())
        assert (np.diff(change) > 0).all(), sign.kind


def in_eye_frame(picture: np.ndarray, camera: Camera, scale: int = 200) -> np.ndarray:
    """An image resampled so that the fovea is in the middle and a unit of length is ``scale`` pixels."""
    x0, y0 = camera.to_pixels(np.array([[0.0, 0.0]]))[0]
    zoom = camera.radius / scale
    move = np.array([[zoom, 0, x0 - zoom * 200 - 0.5], [0, zoom, y0 - zoom * 200 - 0.5]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(picture, move, (401, 401), flags=flags).astype(np.float32)


def test_no_shift_is_the_camera_itself_and_a_small_one_changes_little() -> None:
    for seed in range(4):
        eye = make_eye(seed, rich=True, width=700)
        assert eye.camera.shifted(0) is eye.camera
        quiet = replace(eye, camera=replace(eye.camera, noise=0.0))
        usual = in_eye_frame(paint(quiet)[0], eye.camera)
        shown = cv2.erode((usual[..., 1] > 15).astype(np.uint8), np.ones((15, 15), np.uint8)) > 0
        change = []
        for amount in (0.01, 0.1, 0.4, 1.0):
            camera = replace(eye.camera.shifted(amount), noise=0.0)
            other = in_eye_frame(paint(replace(eye, camera=camera))[0], camera)
            change.append(np.abs(other - usual)[shown].mean())
        assert (np.diff(change) > 0).all()
        assert change[0] < 2
        assert change[-1] > 8


@given(st.integers(0, 2**31), st.booleans(), st.floats(0, 1), st.floats(-1, 1), st.floats(-1, 1))
def test_a_shifted_camera_sees_all_that_the_usual_one_sees(
    seed: int, left: bool, amount: float, x: float, y: float
) -> None:
    camera = draw_camera(np.random.default_rng(seed), 800, left)
    shifted = camera.shifted(amount)
    assert shifted.sees(x, y, 0.02) or not camera.sees(x, y, 0.02)


def test_the_other_camera_shows_its_whole_wider_field_on_a_smaller_picture() -> None:
    for seed in range(30):
        camera = draw_camera(np.random.default_rng(seed), 800, False)
        site = camera.shifted(1.0)
        assert site.width / site.height == pytest.approx(4 / 3, abs=0.01)
        assert site.width == pytest.approx(0.8 * camera.width, abs=2)
        assert site.reach == pytest.approx(50 / 45, rel=0.01)
        field = site.radius * site.reach
        assert field <= 0.461 * site.height
        assert field <= site.centre[0] <= site.width - field
        assert 70 <= site.quality <= camera.quality - 15


def sharpness(eye: Eye, camera: Camera) -> float:
    """Spread of the Laplacian of green about the fovea, at one scale whatever the resolution."""
    frame = in_eye_frame(paint(replace(eye, camera=replace(camera, noise=0.0)))[0], camera)[..., 1]
    middle = np.hypot(*np.mgrid[-200:201, -200:201]) < 120
    return float(cv2.Laplacian(frame, cv2.CV_32F)[middle].std() / frame[middle].mean())


def statistics(eye: Eye, amount: float) -> dict[str, float]:
    """What is said to change with the camera, measured on the image."""
    camera = eye.camera.shifted(amount)
    image, _ = paint(replace(eye, camera=camera))
    quiet, _ = paint(replace(eye, camera=replace(camera, noise=0.0)))
    field = field_of_view(camera) == 1
    red, green, blue = image[field].mean(axis=0)
    rows, columns = np.mgrid[: camera.height, : camera.width] + 0.5
    reach = np.hypot(columns - camera.centre[0], rows - camera.centre[1]) / (camera.radius * camera.reach)
    edge, centre = quiet[field & (reach > 0.9), 1].mean(), quiet[reach < 0.5, 1].mean()
    return {
        "red to green": red / green,
        "blue to green": -blue / green,
        "sharpness": sharpness(eye, camera),
        "edge light": edge / centre,
        "clean": -float((image[field].astype(float) - quiet[field]).std()),
    }


def test_shift_makes_pictures_less_red_bluer_blurred_darker_at_the_edge_and_noisier() -> None:
    for seed in (1, 2, 5):
        eye = make_eye(seed, rich=True, width=600)
        measured = [statistics(eye, amount) for amount in (0.0, 0.5, 1.0)]
        for name in measured[0]:
            assert measured[0][name] > measured[1][name] > measured[2][name], (seed, name)
        # Not by the lower resolution alone.
        site = eye.camera.shifted(1.0)
        assert sharpness(eye, site) < 0.9 * sharpness(eye, replace(site, blur=eye.camera.blur))


@pytest.mark.parametrize("amount", [0.3, 1.0])
def test_masks_follow_the_shifted_camera(amount: float) -> None:
    eye = make_eye(6, grade=0, width=900)
    camera = eye.camera.shifted(amount)
    bare = replace(eye, camera=replace(camera, noise=0.0))
    for x, y in ((-0.3, 0.2), (0.1, -0.35)):
        lesion = Lesion("HE", x, y, 0.05, shape="dot", seed=1, depth=0.9)
        image, masks = paint(replace(bare, lesions=(lesion,)))
        rows, columns = np.nonzero(masks["HE"])
        centre = columns.mean() + 0.5, rows.mean() + 0.5
        assert centre == pytest.approx(tuple(camera.to_pixels(np.array([[x, y]]))[0]), abs=1.5)
        # Where the image got darker is where the mask is.
        loss = paint(bare)[0][..., 1].astype(float) - image[..., 1]
        weights = np.clip(loss, 0, None)
        grid = np.mgrid[: camera.height, : camera.width] + 0.5
        darkest = (weights * grid[1]).sum() / weights.sum(), (weights * grid[0]).sum() / weights.sum()
        assert centre == pytest.approx(darkest, abs=0.7)
        assert loss[masks["HE"]].mean() > 10
