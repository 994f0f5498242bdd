from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drgrade.data.hospital import plan_graded, plan_patients, plan_segmentation, written_grade
from drgrade.params import Demo
from drgrade.synthetic.icdr import icdr_grade

NAMES = [f"eyepacs/train/{n}_left.jpeg" for n in range(3000)]


def test_default_plan_is_balanced_correlated_and_rich() -> None:
    params = Demo()
    plan = plan_patients(params)
    counts = Counter(photograph.grade for photograph in plan)
    assert min(counts.values()) >= 0.1 * len(plan)
    assert counts[0] == max(counts.values())
    pairs = np.array([[plan[n].grade, plan[n + 1].grade] for n in range(0, len(plan), 2)])
    assert np.abs(pairs[:, 0] - pairs[:, 1]).max() <= 1
    assert 0.5 < np.mean(pairs[:, 0] == pairs[:, 1]) < 0.95
    found = Counter(code for photograph in plan_segmentation(params) for code in photograph.masks)
    assert all(found[code] >= 0.9 * params.segmentation for code in ("MA", "HE", "EX", "SE"))
    assert {photograph.grade for photograph in plan_graded(params)} == {0, 1, 2, 3, 4}
    assert [photograph.label for photograph in plan] == [photograph.grade for photograph in plan]


@given(st.integers(0, 4), st.floats(0, 1), st.integers(0, 2**32), st.text())
def test_a_written_grade_is_a_grade_and_at_most_one_off(
    grade: int, noise: float, seed: int, name: str
) -> None:
    written = written_grade(grade, noise, seed, name)
    assert written in range(5)
    assert abs(written - grade) <= 1


@pytest.mark.parametrize("grade", range(5))
@pytest.mark.parametrize("noise", [0.0, 0.1, 0.4, 1.0])
def test_share_of_wrong_labels_is_the_noise(grade: int, noise: float) -> None:
    errors = np.array([written_grade(grade, noise, 7, name) - grade for name in NAMES])
    share = np.mean(errors != 0)
    assert abs(share - noise) <= 4 * np.sqrt(noise * (1 - noise) / len(NAMES))  # 4 binomial deviations
    if grade in (0, 4):
        assert np.all(errors * (1 if grade == 0 else -1) >= 0)
    elif noise:
        up, wrong = (errors > 0).sum(), (errors != 0).sum()
        assert abs(up / wrong - 0.5) <= 4 * 0.5 / np.sqrt(wrong)


def test_labels_wrong_at_some_noise_are_the_same_at_more_and_others_with_another_seed() -> None:
    little, much, other = (
        [written_grade(2, noise, seed, name) for name in NAMES]
        for noise, seed in ((0.2, 1), (0.5, 1), (0.2, 2))
    )
    assert all(b == a for a, b in zip(little, much, strict=True) if a != 2)
    assert little != other


def test_noise_contrast_and_camera_leave_eyes_and_true_grades_alone() -> None:
    usual = Demo(patients=12, segmentation=4, width=256)
    hard = usual.model_copy(update={"label_noise": 0.5, "lesion_contrast": 0.4, "camera_shift": 1.0})
    for plan in (plan_patients, plan_segmentation, plan_graded):
        for a, b in zip(plan(usual), plan(hard), strict=True):
            assert (a.path, a.masks, a.eye.lesions, a.grade) == (b.path, b.masks, b.eye.lesions, b.grade)
            assert b.grade == icdr_grade(b.eye.lesions)
            assert (b.eye.lesion_contrast, b.eye.camera) == (0.4, a.eye.camera.shifted(1.0))
    assert [p.label for p in plan_patients(hard)] != [p.grade for p in plan_patients(hard)]


def test_other_numbers_are_other_people() -> None:
    params = Demo(patients=6, segmentation=2, width=256)
    for plan in (plan_patients, plan_segmentation, plan_graded):
        here, there = plan(params), plan(params, 10_000)
        assert {p.path for p in here}.isdisjoint(p.path for p in there)
        assert {p.eye.seed for p in here}.isdisjoint(p.eye.seed for p in there)
        assert all(p.eye.lesions != q.eye.lesions or not p.eye.lesions for p in here for q in there)


def test_without_segmentation_there_is_nothing_of_idrid() -> None:
    params = Demo(patients=5, segmentation=0, width=256)
    assert plan_segmentation(params) == plan_graded(params) == []
