import cv2
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from drgrade import schema
from drgrade.images.geometry import CropGeometry
from drgrade.report.plots import LESION_COLOURS, confusion_chart, leaderboard_chart
from drgrade.report.sheets import (
    choose,
    crop_sheet,
    draw_boxes,
    error_sheet,
    heat_in_crop,
    heat_map_sheet,
    lesion_sheet,
    shrunk,
    worst,
    worst_sheet,
)


def has_colour(path, colour):
    """Whether an image holds pixels of about this colour."""
    picture = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB).astype(float) / 255
    return bool((np.abs(picture - np.array(to_rgb(colour))).max(axis=2) < 0.06).any())


def graded(grades):
    names = [f"im{place}" for place in range(len(grades))]
    return pd.DataFrame({"image_id": names, "grade": pd.array(grades, dtype="Int8")})


def test_every_grade_has_its_turn():
    table = graded([0] * 50 + [1] * 3 + [2] * 20 + [None] * 9)
    chosen = choose(table, 13)
    counts = chosen["grade"].value_counts(dropna=False)
    assert counts[0] == 4
    assert counts[1] == 3
    assert counts[2] == 3
    assert counts[pd.NA] == 3
    assert chosen["grade"].isna().tolist() == [False] * 10 + [True] * 3


def test_choice_is_stable_and_no_longer_than_the_table():
    table = graded([0, 1, None])
    assert len(choose(table, 50)) == 3
    assert (
        choose(table.sample(frac=1, random_state=3), 2)["image_id"].tolist()
        == choose(table, 2)["image_id"].tolist()
    )
    assert choose(table.head(0), 5).empty


def test_boxes_are_drawn_where_the_lesions_are(run):
    """Crop box (-20, 10, 76, 106) at 48 px: crop = (original - origin) / 2."""
    crops = run.graded.crops
    axes = Figure().subplots()
    boxes = schema.read_table(run.lesions, schema.LESION_BOXES).query("image_id == 'im_0'")
    draw_boxes(axes, crops, "im_0", boxes)
    drawn = [patch.get_bbox().extents.tolist() for patch in axes.patches]
    assert drawn == [[25, 15, 30, 25], [10, 5, 15, 10], [35, 20, 40, 25]]
    assert [patch.get_edgecolor()[:3] for patch in axes.patches] == [
        to_rgb(LESION_COLOURS[lesion]) for lesion in ("MA", "HE", "EX")
    ]
    # the crop fills the axes, pixel edges as in CropGeometry
    assert axes.images[0].get_extent() == [0, 48, 48, 0]
    assert axes.get_xlim() == (0, 48)
    assert axes.get_ylim() == (48, 0)


def test_weak_detections_are_not_drawn(run, values, tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(
        "drgrade.report.sheets.draw_boxes", lambda axes, crops, name, boxes: drawn.update({name: len(boxes)})
    )
    lesions = schema.read_table(run.lesions, schema.LESION_BOXES)
    crops, index = run.graded.crops, run.graded.index
    lesion_sheet(index, crops, lesions, values["patches"], tmp_path / "sheet.png")
    assert drawn == {"im_0": 2, "im_7": 1}


@pytest.mark.parametrize("rows", [0, 5])
def test_sheets_are_pictures_even_without_detections(rows, run, values, tmp_path):
    crops, index = run.graded.crops, run.graded.index
    lesions = schema.read_table(run.lesions, schema.LESION_BOXES).head(rows)
    lesion_sheet(index, crops, lesions, values["patches"], tmp_path / "lesions.png")
    crop_sheet(index, crops, 24, tmp_path / "crops.png")
    for name in ("lesions.png", "crops.png"):
        assert cv2.imread(str(tmp_path / name)).std() > 10


def test_large_crops_are_shrunk_to_the_sheet():
    crop = np.full((512, 512, 3), 77, np.uint8)
    assert shrunk(crop, 160).shape == (160, 160, 3)
    assert (shrunk(crop, 160) == 77).all()
    assert shrunk(crop[:100, :100], 160).shape == (100, 100, 3)


def test_charts_bear_negative_and_undefined_values(tmp_path):
    table = pd.DataFrame(
        {"experiment": ["a", "b"], "qwk": [0.2, -0.3], "qwk_low": [-0.1, np.nan], "qwk_high": [0.4, np.nan]}
    )
    leaderboard_chart(table, {"a": [0.1, 0.3], "b": [-0.3]}, tmp_path / "chart.png")
    assert has_colour(tmp_path / "chart.png", "#9db8d6")
    assert has_colour(tmp_path / "chart.png", "#c2410c")
    confusion_chart({f"m{n}": np.zeros((5, 5), int) for n in range(5)}, tmp_path / "matrices.png")
    assert cv2.imread(str(tmp_path / "matrices.png")) is not None


def test_the_worst_come_first_and_the_lowest_measure_is_blamed(run, tmp_path):
    index = run.graded.index.copy()
    index["quality"] = pd.array([0.5, 0.1, 0.9, 0.1, *[None] * (len(index) - 4)], dtype="Float32")
    for measure in ("fov", "sharpness", "exposure", "contrast"):
        index[measure] = pd.array([0.95] * len(index), dtype="Float32")
    index.loc[0, "contrast"], index.loc[1, "sharpness"], index.loc[3, "exposure"] = 0.5, 0.1, 0.1
    chosen = worst(index, 3)
    assert chosen["image_id"].tolist() == ["im_1", "im_3", "im_0"]
    assert chosen["blame"].tolist() == ["sharpness", "exposure", "contrast"]
    crops = run.graded.crops
    for name, table in {"some.png": index, "none.png": index.assign(quality=pd.NA)}.items():
        worst_sheet(table, crops, 3, tmp_path / name)
        assert cv2.imread(str(tmp_path / name)).std() > 0 or name == "none.png"


def titles(monkeypatch):
    """Collects the titles of the axes that are drawn."""
    found = []
    monkeypatch.setattr("matplotlib.axes.Axes.set_title", lambda self, title, **kwargs: found.append(title))
    return found


def test_errors_are_shown_with_both_grades_and_the_probability(run, tmp_path, monkeypatch):
    shown = titles(monkeypatch)
    errors = pd.read_csv(run.evaluated / "errors.csv")
    error_sheet(errors, run.graded.crops, tmp_path / "errors.png")
    assert shown == [
        "true grade 1\npredicted 3, probability 0.44\nim_2",
        "true grade 4\npredicted 0, probability 1.00\nim_6",
    ]
    assert cv2.imread(str(tmp_path / "errors.png")).std() > 10
    error_sheet(errors.head(0), run.graded.crops, tmp_path / "none.png")
    assert cv2.imread(str(tmp_path / "none.png")).std() > 0


def test_heat_maps_are_sorted_by_grade(run, tmp_path, monkeypatch):
    shown = titles(monkeypatch)
    for name in ("im_6", "im_3", "im_0", "im_7"):  # the last one has no grade
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.full((60, 80), 200, np.uint8))
    heat_map_sheet(run.graded.index, run.graded.crops, tmp_path, tmp_path / "sheet/cam.png")
    assert shown == ["0 none\nim_0", "2 moderate\nim_3", "4 proliferative\nim_6"]
    assert cv2.imread(str(tmp_path / "sheet/cam.png")).std() > 10
    heat_map_sheet(run.graded.index, run.graded.crops, tmp_path / "empty", tmp_path / "none.png")
    assert cv2.imread(str(tmp_path / "none.png")).std() > 0


def test_a_heat_map_is_cut_where_the_crop_is(tmp_path):
    """A photograph of 160 x 120 px, its map at half that size: hot from x = 80 on."""
    heat = np.zeros((60, 80), np.uint8)
    heat[:, 40:] = 255
    cv2.imwrite(str(tmp_path / "map.png"), heat)
    found = heat_in_crop(tmp_path / "map.png", CropGeometry(60, 20, 100, 60, 48), 160, 20)
    assert found.shape == (20, 20)
    assert (found[:, :9] == 0).all()
    assert (found[:, 11:] == 1).all()
    outside = heat_in_crop(tmp_path / "map.png", CropGeometry(120, 0, 200, 80, 48), 160, 20)
    assert (outside[:, :9] == 1).all()
    assert (outside[:, 11:] == 0).all()
