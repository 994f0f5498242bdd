import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from drgrade.errors import UserError
from drgrade.lesions.patches import fitting, read_patches, read_published
from drgrade.params import Patches

PAPER = Patches(size=128, min_score=0.5, border=5)
BOX = ["x1", "y1", "x2", "y2"]


@pytest.mark.parametrize(
    ("box", "kept"),
    [
        ((10, 10, 138, 138), True),  # exactly the patch
        ((10, 10, 138.01, 20), False),
        ((10, 10, 20, 138.01), False),
        ((5, 10, 20, 20), False),  # the border itself is out
        ((5.01, 10, 20, 20), True),
        ((10, 5, 20, 20), False),
        ((490, 490, 507, 500), False),
        ((490, 490, 506.99, 506.99), True),
        ((490, 490, 500, 507), False),
    ],
)
def test_filter_of_the_paper(box: tuple[float, ...], kept: bool) -> None:
    """Specification 6.2, with its strict and non-strict comparisons."""
    assert fitting(np.array([box], float), PAPER, 512).tolist() == [kept]


def test_border_scales_with_the_crop() -> None:
    boxes = np.array([[2.5, 9, 20, 20], [2.6, 9, 20, 20], [200, 9, 253.5, 20], [200, 9, 253.4, 20]])
    assert fitting(boxes, PAPER, 256).tolist() == [False, True, False, True]


class Evil:
    def __reduce__(self) -> tuple:
        return os.system, ("touch should_not_exist",)


@pytest.mark.parametrize("content", [Evil(), {"train": {"a": [Evil()]}}, np.zeros(3), Path("x")])
def test_a_pickle_with_anything_but_numbers_is_refused(
    tmp_path: Path, content: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match="not a pickle of plain numbers"):
        read_patches(tmp_path / "p.pkl")
    assert not (tmp_path / "should_not_exist").exists()


@pytest.mark.parametrize(
    "content", [[1, 2], {"train": [1]}, {"train": {"a": [(1, 2, 3)]}}, {"train": {"a": ["xy"]}}]
)
def test_another_structure_is_refused(tmp_path: Path, content: object) -> None:
    (tmp_path / "p.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=r"p\.pkl"):
        read_patches(tmp_path / "p.pkl")


def test_missing_and_cut_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_patches(tmp_path / "p.pkl")
    (tmp_path / "p.pkl").write_bytes(pickle.dumps({"train": {}})[:-3])
    with pytest.raises(UserError, match="not a pickle of plain numbers"):
        read_patches(tmp_path / "p.pkl")


def test_published_patches_with_numpy_scalars_are_read(tmp_path: Path) -> None:
    box = tuple(np.float32(value) for value in (1, 2, 3.5, 4))
    (tmp_path / "p.pkl").write_bytes(pickle.dumps({"train": {"10_left.jpeg": [box]}, "val": {}}, protocol=2))
    assert read_patches(tmp_path / "p.pkl") == {"train": {"10_left.jpeg": [(1.0, 2.0, 3.5, 4.0)]}, "val": {}}


def raw(tmp_path: Path, content: object) -> Path:
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content, protocol=2))
    return tmp_path / "a.pkl"


def test_raw_predictions_with_and_without_the_published_swap(tmp_path: Path) -> None:
    """Crop of 1000 rows and 1200 columns: x = 0.9 W lands at 461 of 512, swapped at 553 and is lost (6.2)."""
    rows = [(1000, 1200, *map(np.float32, (1080, 500, 1090, 510)), np.float32(0.75), 1)]
    path = raw(tmp_path, {"train": {"1_left.jpeg": rows}, "val": {"2_left.jpeg": [], "3_left.jpeg": rows}})
    right = read_published(path, 512, legacy_swap=False)
    swapped = read_published(path, 512, legacy_swap=True)
    assert right["name"].tolist() == ["1_left.jpeg", "3_left.jpeg"]
    assert right[["rows", "columns", "score"]].iloc[0].tolist() == [1000, 1200, 0.75]
    assert right["lesion"].tolist() == ["HE", "HE"]
    across, down = 512 / 1200, 512 / 1000
    expected = [1080 * across, 500 * down, 1090 * across, 510 * down]
    np.testing.assert_allclose(right[BOX].iloc[1].tolist(), expected)
    np.testing.assert_allclose(
        swapped[BOX].iloc[1].tolist(), [1080 * down, 500 * across, 1090 * down, 510 * across]
    )
    assert right["x1"].iloc[0] == pytest.approx(460.8)
    assert swapped["x1"].iloc[0] == pytest.approx(552.96)


def test_published_patches_move_to_the_size_of_our_crops(tmp_path: Path) -> None:
    path = raw(tmp_path, {"train": {"1_left.jpeg": [(8, 16, 32.5, 64)]}, "val": {}})
    found = read_published(path, 256, legacy_swap=True)
    assert found[BOX].to_numpy().tolist() == [[4, 8, 16.25, 32]]
    assert found[["rows", "columns", "score", "lesion"]].isna().all(axis=None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"train": {}}, "neither 4 numbers"),
        ({"train": {"a": [(1, 2, 3)]}}, "neither 4 numbers"),
        ({"train": {"a": [(1, 2, 3, float("nan"))]}}, "neither 4 numbers"),
        ({"train": {"a": [(1, 2, 3, 4)], "b": [(9, 9, 1, 2, 3, 4, 0.5, 1)]}}, "not {set"),
        ({"train": {"a": [(1, 2, 3, 4), (1, 2)]}}, "not {set"),
        ({"train": [1]}, "not {set"),
        ({"train": {"a": [(9, 0, 1, 2, 3, 4, 0.5, 1)]}}, "no size or a class beyond 0-3"),
        ({"train": {"a": [(9, 9, 1, 2, 3, 4, 0.5, 4)]}}, "no size or a class beyond 0-3"),
    ],
)
def test_other_forms_are_refused(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(UserError, match=rf"a\.pkl: .*{message}"):
        read_published(raw(tmp_path, content), 512, legacy_swap=False)
