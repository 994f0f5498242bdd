import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drgrade.grading.base import GRADERS, Photographs, Training, interpolated
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
    import pandas as pd

    table = pd.DataFrame({"grade": [2, 2, 4, 0, 0], "row": range(5)})
    images = np.zeros((5, 4, 4, 3), np.uint8)
    grader = GRADERS.get("majority")("", {})
    grader.fit(
        Training(Photographs(images, table), Photographs(images, table), "random", 0, "m", "", NullRun())
    )
    grader.save(tmp_path)
    again = GRADERS.get("majority").load(tmp_path)
    # a tie of 0 and 2 goes to the lower grade
    assert again.predict(images, np.arange(2)).tolist() == [[1, 0, 0, 0, 0]] * 2
