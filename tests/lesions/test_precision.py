from typing import Any

import pytest

from drgrade.lesions.precision import average_precision
from drgrade.schema import LESIONS

EX = 3


def truth_of(boxes: list[list[float]]) -> dict[str, Any]:
    """One image with these boxes (x, y, width, height) of EX."""
    return {
        "images": [{"id": 1, "width": 99, "height": 99}],
        "annotations": [
            {
                "id": number,
                "image_id": 1,
                "category_id": EX,
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": 0,
            }
            for number, box in enumerate(boxes, start=1)
        ],
        "categories": [{"id": number, "name": lesion} for number, lesion in enumerate(LESIONS, start=1)],
    }


def found_of(rows: list[tuple[list[float], float]]) -> list[dict[str, Any]]:
    return [{"image_id": 1, "category_id": EX, "bbox": box, "score": score} for box, score in rows]


def test_precision_by_hand() -> None:
    """Two of three EX found, the better-scored box wrong: precision 0, 1/2, 2/3 at recalls 0, 1/3, 2/3."""
    truth = truth_of([[20 * place, 0, 10, 10] for place in range(3)])
    found = found_of([([70, 70, 9, 9], 0.9), ([0, 0, 10, 10], 0.8), ([20, 0, 10, 10], 0.7)])
    result = average_precision(truth, found)
    # interpolated precision is 2/3 up to recall 2/3 (67 of 101 points), then 0
    expected = pytest.approx(67 / 101 * 2 / 3, abs=1e-6)
    assert result["lesions"]["EX"]["AP50"] == result["lesions"]["EX"]["AP75"] == result["AP"] == expected
    assert result["AR100"] == pytest.approx(2 / 3, abs=1e-6)
    assert result["lesions"]["MA"] == {"AP": None, "AP50": None, "AP75": None, "AR100": None, "boxes": 0}


def test_overlap_decides_by_hand() -> None:
    """A box that overlaps by 72 of 100 pixels counts at the IoUs 0.50 to 0.70: half of the ten."""
    result = average_precision(truth_of([[0, 0, 10, 10]]), found_of([([0, 0, 10, 7.2], 0.9)]))
    del result["lesions"]
    assert result == {"AP": 0.5, "AP50": 1.0, "AP75": 0.0, "AR100": 0.5}


def test_the_hundred_best_count() -> None:
    good = ([0.0, 0.0, 10.0, 10.0], 0.1)
    bad = ([50.0, 50.0, 10.0, 10.0], 0.5)
    truth = truth_of([good[0]])
    assert average_precision(truth, found_of([bad] * 99 + [good]))["AR100"] == 1
    assert average_precision(truth, found_of([bad] * 100 + [good]))["AR100"] == 0


def test_nothing_found_is_none_of_what_there_is() -> None:
    result = average_precision(truth_of([[0, 0, 10, 10]]), [])
    assert result["AP"] == result["AP50"] == result["AP75"] == result["AR100"] == 0
    assert result["lesions"]["EX"] == {"AP": 0, "AP50": 0, "AP75": 0, "AR100": 0, "boxes": 1}
    assert result["lesions"]["SE"]["AP"] is None
