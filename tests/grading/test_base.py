import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drgrade.grading.base import GRADERS, Job, Output, Photographs, Start, interpolated
from drgrade.grading.majority import Majority, Params
from drgrade.grading.models import load_model
from drgrade.params import Crop
from drgrade.tracking import NullRun


@given(st.lists(st.floats(-3, 8), min_size=1, max_size=20))
def test_probabilities_expect_the_clipped_score(scores):
    table = interpolated(np.array(scores))
    assert np.allclose(table.sum(axis=1), 1)
    assert np.allclose(table @ np.arange(5), np.clip(scores, 0, 4))
    assert ((table > 0).sum(axis=1) <= 2).all()


def test_a_score_is_shared_by_its_neighbours():
    assert interpolated(np.array([2.3])) == pytest.approx(np.array([[0, 0, 0.7, 0.3, 0]]))


def test_majority_predicts_the_commonest_grade(tmp_path):
    table = pd.DataFrame({"grade": [2, 2, 4, 0, 0], "row": range(5)})
    images = np.zeros((5, 4, 4, 3), np.uint8)
    part = Photographs(images, table)
    grader = GRADERS.get("majority")(Params(), Crop(size=48))
    grader.fit(Job(part, part, Start("random"), 0, "m", "", NullRun()))
    grader.save(tmp_path)
    again = load_model(tmp_path)
    assert isinstance(again, Majority)
    assert again.crop == Crop(size=48)
    # a tie of 0 and 2 goes to the lower grade
    output = again.predict(Photographs(images, table[:2]))
    assert output.probabilities.tolist() == [[1, 0, 0, 0, 0]] * 2
    assert output.score.tolist() == [0, 0]


def test_the_score_is_the_expected_grade_unless_it_is_given():
    assert Output(np.array([[0.5, 0, 0.5, 0, 0]])).score == pytest.approx([1])
    assert Output(np.eye(5)[:1], np.array([0.3])).score.tolist() == [0.3]


def test_the_partner_is_the_first_photograph_of_the_other_eye():
    table = pd.DataFrame(
        {
            "patient_id": ["a", "b", "a", "a", None, None, "c"],
            "eye": ["left", "left", "right", "right", "left", "right", None],
            "row": range(7),
        }
    )
    part = Photographs(np.zeros((7, 4, 4, 3), np.uint8), table)
    assert part.partner().tolist() == [2, -1, 0, 0, -1, -1, -1]
    assert Photographs(part.images, table[:0]).partner().tolist() == []
