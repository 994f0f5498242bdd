import itertools
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from faster_coco_eval.core import mask as mask_tools
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from drgrade.errors import UserError
from drgrade.lesions.masks import MOST_LESION, mask_boxes, mask_lesions, read_mask, run_lengths


def mask_of(*boxes: tuple[int, int, int, int], shape: tuple[int, int] = (40, 50)) -> np.ndarray:
    mask = np.zeros(shape, bool)
    for x, y, width, height in boxes:
        mask[y : y + height, x : x + width] = True
    return mask


def test_parity_grows_by_a_pixel_and_leaves_the_picture() -> None:
    """Oracle of the specification, section 4.1: (0, 0, 3x2) -> -1, -1, 3, 2; a speck becomes 2 x 2."""
    mask = mask_of((0, 0, 3, 2), (20, 10, 1, 1), (45, 35, 5, 5))
    assert mask_boxes(mask, "parity").tolist() == [[-1, -1, 3, 2], [19, 9, 21, 11], [44, 34, 50, 40]]


def test_parity_ignores_holes_and_what_lies_in_them() -> None:
    mask = mask_of((5, 5, 20, 20)) & ~mask_of((8, 8, 14, 14)) | mask_of((12, 12, 3, 3))
    assert mask_boxes(mask, "parity").tolist() == [[4, 4, 25, 25]]


def test_parity_keeps_fragments_and_specks_whatever_the_other_settings() -> None:
    mask = mask_of((5, 5, 2, 2), (8, 5, 2, 2))
    assert len(mask_boxes(mask, "parity", min_area=100, merge_distance=9)) == 2


def brute_components(mask: np.ndarray, min_area: int, merge_distance: int) -> list[list[int]]:
    """Union of mask pixels no further apart than the distance on both axes."""
    pixels = np.argwhere(mask).tolist()
    group = list(range(len(pixels)))
    near = max(merge_distance, 1)
    for (i, a), (j, b) in itertools.combinations(enumerate(pixels), 2):
        if max(abs(a[0] - b[0]), abs(a[1] - b[1])) <= near and group[i] != group[j]:
            group = [group[i] if g == group[j] else g for g in group]
    boxes = []
    for label in set(group):
        ys, xs = zip(*[pixel for pixel, g in zip(pixels, group, strict=True) if g == label], strict=True)
        if len(ys) >= min_area:
            boxes.append([min(xs), min(ys), max(xs) + 1, max(ys) + 1])
    return sorted(boxes, key=lambda box: (box[1], box[0], box[2], box[3]))


@given(
    mask=arrays(
        bool,
        st.tuples(st.integers(1, 12), st.integers(1, 12)),
        elements=st.integers(0, 9).map(lambda v: v < 2),
    ),
    min_area=st.integers(1, 4),
    merge_distance=st.integers(0, 4),
)
def test_corrected_equals_brute_force(mask: np.ndarray, min_area: int, merge_distance: int) -> None:
    found = mask_boxes(mask, "corrected", min_area, merge_distance)
    assert found.tolist() == brute_components(mask, min_area, merge_distance)


@given(
    mask=arrays(
        bool,
        st.tuples(st.integers(1, 12), st.integers(1, 12)),
        elements=st.integers(0, 9).map(lambda v: v < 4),
    ),
    mode=st.sampled_from(["corrected", "parity"]),
)
def test_the_map_holds_the_pixels_of_each_box(mask: np.ndarray, mode: str) -> None:
    boxes, labels = mask_lesions(mask, mode, 2, 2)  # type: ignore[arg-type]
    grown = np.array([1, 1, 0, 0] if mode == "parity" else [0, 0, 0, 0])
    assert set(np.unique(labels)) - {0} == set(range(1, len(boxes) + 1))
    assert not labels[~mask].any()
    for row, box in enumerate(boxes, start=1):
        ys, xs = np.nonzero(labels == row)
        assert [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1] == (box + grown).tolist()


@given(
    mask=arrays(bool, st.tuples(st.integers(1, 6), st.integers(1, 6))),
    origin=st.tuples(st.integers(0, 3), st.integers(0, 3)),
)
def test_run_lengths_are_coco_s(mask: np.ndarray, origin: tuple[int, int]) -> None:
    picture = np.zeros((9, 9), np.uint8)
    picture[origin[1] : origin[1] + mask.shape[0], origin[0] : origin[0] + mask.shape[1]] = mask
    counts = run_lengths(mask, origin, (9, 9))
    assert sum(counts) == 81
    assert min(counts[1:], default=1) > 0
    decoded = mask_tools.decode(mask_tools.frPyObjects({"size": [9, 9], "counts": counts}, 9, 9))
    assert (decoded == picture).all()


@pytest.mark.parametrize("mode", ["corrected", "parity"])
def test_an_empty_mask_has_no_boxes(mode: str) -> None:
    assert mask_boxes(np.zeros((5, 6), bool), mode, 1, 2).shape == (0, 4)  # type: ignore[arg-type]


def test_every_encoding_of_a_mask_reads_alike(tmp_path: Path) -> None:
    mask = mask_of((3, 4, 5, 6))
    palette = Image.fromarray(mask.astype(np.uint8), "P")
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.save(tmp_path / "palette.tif", bits=1)
    Image.fromarray(mask).save(tmp_path / "one_bit.tif")
    red = np.zeros((*mask.shape, 3), np.uint8)
    red[mask] = [255, 0, 0]
    Image.fromarray(red).save(tmp_path / "colour.png")
    Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / "grey.png")
    for path in sorted(tmp_path.iterdir()):
        np.testing.assert_array_equal(read_mask(path), mask, err_msg=path.name)


def test_luminance_of_one_is_background(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 0, 1, 2, 76]], np.uint8)).save(tmp_path / "mask.png")
    assert read_mask(tmp_path / "mask.png").tolist() == [[False, False, False, True, True]]


LESION = mask_of((5, 5, 6, 4), (30, 20, 1, 1))


def palette_of(*colours: tuple[int, int, int]) -> Image.Image:
    image = Image.fromarray(LESION.astype(np.uint8), "P")
    image.putpalette([value for colour in colours for value in colour])
    return image


def transparent(*colour: int) -> Image.Image:
    pixels = np.zeros((*LESION.shape, 4), np.uint8)
    pixels[LESION] = (*colour, 255)
    return Image.fromarray(pixels)


FORMS = {
    "0 and 1": Image.fromarray(LESION.astype(np.uint8)),
    "0 and class 3": Image.fromarray(LESION.astype(np.uint8) * 3),
    "one bit": Image.fromarray(LESION),
    "16 bit": Image.fromarray(LESION.astype(np.uint16) * 65535),
    "16 bit, 0 and 1": Image.fromarray(LESION.astype(np.uint16)),
    "16 bit, 0 and 255": Image.fromarray(LESION.astype(np.uint16) * 255),
    "palette": palette_of((0, 0, 0), (255, 0, 0)),
    "palette that shows nothing": palette_of((0, 0, 0), (0, 0, 0)),
    "palette of 1": palette_of((0, 0, 0), (1, 1, 1)),
    "red on transparent": transparent(255, 0, 0),
    "black on transparent": transparent(0, 0, 0),
    "opaque alpha": Image.fromarray(
        np.dstack([LESION.astype(np.uint8) * 255] * 3 + [0 * LESION + 255]).astype(np.uint8)
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ending", ["png", "tif"])
def test_masks_as_programs_write_them(tmp_path: Path, form: str, ending: str) -> None:
    FORMS[form].save(tmp_path / f"mask.{ending}")
    np.testing.assert_array_equal(read_mask(tmp_path / f"mask.{ending}"), LESION)


CLASSES = LESION.astype(np.uint8) + mask_of((20, 5, 3, 3)) * np.uint8(2)


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (
            Image.fromarray(LESION.astype(np.uint8) + mask_of((20, 5, 3, 3)) * np.uint8(2)),
            "classes 1, 2; write one",
        ),
        (Image.fromarray(255 - LESION.astype(np.uint8) * 255), "of the mask is lesion; if it is inverted"),
        (Image.fromarray(1 - LESION.astype(np.uint8)), "of the mask is lesion; if it is inverted"),
    ],
)
def test_masks_that_mean_something_else_are_refused(tmp_path: Path, image: Image.Image, reason: str) -> None:
    image.save(tmp_path / "mask.png")
    with pytest.raises(UserError, match=rf"mask\.png: .*{reason}"):
        read_mask(tmp_path / "mask.png")


def test_classes_in_a_palette_are_refused(tmp_path: Path) -> None:
    image = Image.fromarray(CLASSES, "P")
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    image.save(tmp_path / "mask.png")
    with pytest.raises(UserError, match="classes 0, 1, 2; write one"):
        read_mask(tmp_path / "mask.png")


@given(st.integers(1, 255), st.integers(0, 40 * 50 // 2 - 1), st.sampled_from(["png", "tif"]))
def test_a_mask_that_is_not_blank_never_yields_nothing(value: int, pixel: int, ending: str) -> None:
    values = np.zeros((40, 50), np.uint8)
    values.ravel()[pixel] = value
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"mask.{ending}")
        Image.fromarray(values).save(path)
        assert np.array_equal(read_mask(path), values > 0)


@pytest.mark.parametrize("content", [b"", b"not a picture"])
def test_a_broken_mask_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "mask.tif").write_bytes(content)
    with pytest.raises(UserError, match=r"mask\.tif: not a readable lesion mask"):
        read_mask(tmp_path / "mask.tif")


def test_a_file_that_another_program_would_draw_is_refused(tmp_path: Path) -> None:
    """Pillow hands PostScript to Ghostscript, which runs it."""
    path = tmp_path / "mask.tif"
    Image.new("L", (8, 8)).save(path, format="EPS")
    with pytest.raises(UserError, match=r"mask\.tif: not a readable lesion mask \(cannot identify"):
        read_mask(path)


def test_real_masks() -> None:
    """IDRiD's masks are 1-bit palette TIFFs of 4288 x 2848 with from a few to hundreds of lesions."""
    root = Path(os.environ.get("DRGRADE_IDRID_ROOT", "/nowhere")) / "A. Segmentation"
    if not root.is_dir():
        pytest.skip("DRGRADE_IDRID_ROOT holds no IDRiD part A")
    mask = read_mask(next(root.glob("2*/a*/1*/IDRiD_01_MA.tif")))
    assert mask.shape == (2848, 4288)
    published, corrected = mask_boxes(mask, "parity"), mask_boxes(mask, "corrected", 4, 2)
    assert 0 < len(corrected) <= len(published)
    assert 0 < mask.mean() < 0.01


def test_real_masks_are_far_from_inverted(idrid: Path) -> None:
    masks = sorted(idrid.glob("A. Segmentation/2*/a*/3*/*.tif"))  # hard exudates cover the most
    assert masks
    assert max(read_mask(path).mean() for path in masks[:6]) < MOST_LESION / 2
