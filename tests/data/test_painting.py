import cv2
import numpy as np
import pytest

from drgrade.data.anatomy import AVASCULAR_RADIUS, draw_anatomy, draw_camera
from drgrade.data.icdr import Lesion, icdr_grade
from drgrade.data.painting import Eye, field_of_view, paint
from drgrade.data.pathology import draw_lesions


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
    # Painting the lesion changed the picture inside the mask and nowhere far from it.
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
