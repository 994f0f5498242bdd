import cv2
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from drgrade.report.verdicts import cutout, verdict_sheet, verdicts

COLUMNS = ["image", "lesion", "x1", "y1", "x2", "y2", "score"]
SCORES = {"MA": 0.5, "HE": None}
TRUTH = pd.DataFrame(
    [
        (0, "MA", 10, 10, 16, 16, 0.9),
        (0, "MA", 30, 10, 36, 16, 0.4),
        (1, "MA", 50, 10, 56, 16, -np.inf),
        (1, "HE", 70, 10, 90, 30, 0.99),
    ],
    columns=COLUMNS,
)
FOUND = pd.DataFrame(
    [
        (1, "HE", 70, 10, 90, 30, 0.99, True),
        (0, "MA", 10, 10, 16, 17, 0.9, True),
        (1, "MA", 5, 70, 12, 77, 0.7, False),
        (0, "MA", 5, 60, 12, 67, 0.6, False),
        (0, "MA", 30, 10, 36, 17, 0.4, True),
        (0, "MA", 80, 80, 90, 90, 0.2, False),
    ],
    columns=[*COLUMNS, "hit"],
)


def test_each_box_gets_the_verdict_of_its_threshold():
    chosen = verdicts(TRUTH, FOUND, SCORES, 5)
    by_kind = {
        key: rows["x1"].tolist() if key[1] == "false alarm" else sorted(rows["x1"])
        for key, rows in chosen.groupby(["lesion", "verdict"])
    }
    assert by_kind == {
        ("MA", "hit"): [10],
        ("MA", "missed"): [30, 50],
        ("MA", "false alarm"): [5, 5],
        ("HE", "missed"): [70],  # no threshold lets its detection in
    }
    alarms = chosen[chosen["verdict"] == "false alarm"]
    assert alarms[["y1", "place"]].to_numpy().tolist() == [[70, 0], [60, 1]], "best score first"
    assert verdicts(TRUTH, FOUND, SCORES, 1)["place"].tolist() == [0] * 4
    assert verdicts(TRUTH.head(0), FOUND.head(0), SCORES, 5).empty


def test_cutouts_are_centred_and_boxes_lie_on_their_lesions():
    picture = np.zeros((100, 100, 3), np.uint8)
    picture[10:30, 70:90] = 255
    axes = Figure().subplots()
    row = pd.Series({"x1": 70, "y1": 10, "x2": 90, "y2": 30, "lesion": "HE", "verdict": "missed"})
    cutout(axes, picture, row)
    shown = axes.images[0].get_array()
    assert shown.shape == (96, 96, 3)
    # 60 px in 96: the box of 20 px is the middle 32
    assert (shown[33:63, 33:63] == 255).all()
    assert not shown[:31].any()
    (box,) = axes.patches
    np.testing.assert_allclose(box.get_bbox().extents, [32, 32, 64, 64])
    assert box.get_linestyle() == "dashed" or box.get_linestyle() == "--"


def test_the_sheet_reads_each_photograph_once_and_is_the_same_again(tmp_path):
    asked = []

    def read(image):
        asked.append(image)
        return np.full((100, 100, 3), 90 + 60 * image, np.uint8)

    chosen = verdicts(TRUTH, FOUND, SCORES, 3)
    for name in ("one.png", "two.png"):
        verdict_sheet(chosen, read, 3, tmp_path / name)
    assert asked == [0, 1, 0, 1]
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    levels = np.unique(cv2.imread(str(tmp_path / "one.png")))
    assert {90, 150} <= set(levels.tolist())
