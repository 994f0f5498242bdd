"""Masks brought into crops: three photographs of 150 x 200 px with drawn rectangles."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tests.disks import disk, fill

from drgrade.data.registry import DATASETS
from drgrade.errors import UserError
from drgrade.images.geometry import CropGeometry
from drgrade.lesions.mask_store import BITS, Masks, open_masks, write_masks
from drgrade.params import LesionMasks
from drgrade.schema import CROPS, INDEX, MASKS, read_table, write_table

HEIGHT, WIDTH, SIZE = 150, 200, 85
BOX = (20, -10, 190, 160)  # two original pixels to a pixel of the crop
DRAWN = {
    "a": {"MA": (30, 30, 34, 34), "EX": (32, 32, 72, 60)},
    "b": {"HE": (100, 70, 130, 95), "SE": None},  # soft exudates were looked for, there are none
    "c": {"SE": (40, 40, 60, 60)},
    "d": {},
}


@DATASETS.register("drawn")
class Drawn:
    """A mask file for each kind that was looked for."""

    def masks(self, root: Path, image_id: str) -> dict[str, Path]:
        return {path.stem.split("_")[1]: path for path in root.glob(f"{image_id}_*.png")}


@pytest.fixture
def drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Index, crops and raw masks of four photographs; d has no mask."""
    monkeypatch.setenv("DRGRADE_DRAWN_ROOT", str(tmp_path / "raw"))
    (tmp_path / "raw").mkdir()
    for name, kinds in DRAWN.items():
        for kind, box in kinds.items():
            Image.fromarray(rectangle(box).astype(np.uint8) * 255).save(tmp_path / f"raw/{name}_{kind}.png")
    known = {"subset": "segmentation", "split": "train", "status": "ok", "width": WIDTH, "height": HEIGHT}
    index = pd.DataFrame({"image_id": list(DRAWN)}).assign(**known)
    write_table(index.reindex(columns=list(INDEX)), tmp_path / "index.parquet", INDEX)
    crops = index[["image_id"]].assign(**dict(zip(("x0", "y0", "x1", "y1"), BOX, strict=True)), status="ok")
    crops["row"] = range(len(crops))
    write_table(crops.reindex(columns=list(CROPS)), tmp_path / "crops.parquet", CROPS)
    return tmp_path


def rectangle(box: tuple[int, int, int, int] | None) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    if box is not None:
        x1, y1, x2, y2 = box
        mask[y1:y2, x1:x2] = True
    return mask


def write(root: Path, *kinds: str, workers: int = 1, out: str = "out") -> Path:
    params = LesionMasks(kinds=list(kinds) or list(BITS))
    write_masks("drawn", root / "index.parquet", root / "crops.parquet", SIZE, params, root / out, workers)
    return root / out


def masks(folder: Path, *image_ids: str) -> Masks:
    return open_masks(folder, image_ids)


def test_every_kind_is_a_bit_where_the_geometry_puts_it(drawn: Path) -> None:
    out = write(drawn)
    found = masks(out, "c", "a", "b")
    assert (found[:].shape, found[0].dtype) == ((3, SIZE, SIZE), np.uint8)
    for place, name in enumerate("cab"):
        for kind, bit in BITS.items():
            expected = CropGeometry(*BOX, SIZE).mask_to_crop(rectangle(DRAWN[name].get(kind)))
            assert (((found[place] & bit) > 0) == expected).all(), (name, kind)
            assert bool(found.annotated[place] & bit) == (kind in DRAWN[name])
    # 30 to 34 px of the photograph, less 20 and 10 to the left and above, halved
    assert np.argwhere(found[1] & BITS["MA"]).tolist() == [[20, 5], [20, 6], [21, 5], [21, 6]]
    assert found[1][21, 6] == BITS["MA"] | BITS["EX"]
    assert (found[np.array([2, 0])] == found[:][[2, 0]]).all()
    assert read_table(out / "masks.parquet", MASKS)["image_id"].tolist() == ["a", "b", "c"]


def test_only_kinds_that_are_asked_for_are_read(drawn: Path) -> None:
    out = write(drawn, "HE", "SE")
    assert masks(out, "b", "c").annotated.tolist() == [BITS["HE"] | BITS["SE"], BITS["SE"]]
    with pytest.raises(UserError, match=r"masks\.parquet: no mask of a; run the stage lesion_masks again"):
        masks(out, "a")


def test_workers_do_not_change_a_byte(drawn: Path) -> None:
    one, two = write(drawn), write(drawn, workers=2, out="two")
    for name in ("masks.npy", "masks.parquet"):
        assert (one / name).read_bytes() == (two / name).read_bytes()


def test_a_broken_mask_is_a_row_with_a_reason(drawn: Path) -> None:
    (drawn / "raw/a_EX.png").write_bytes(b"not a picture")
    Image.new("L", (HEIGHT, WIDTH)).save(drawn / "raw/c_SE.png")
    table = read_table(write(drawn) / "masks.parquet", MASKS).set_index("image_id")
    assert table["status"].to_dict() == {"a": "failed", "b": "ok", "c": "failed"}
    assert "a_EX.png: not a readable lesion mask" in table["reason"]["a"]
    assert table["reason"]["c"].endswith("c_SE.png: (150, 200) px, the photograph has (200, 150)")
    assert masks(drawn / "out", "b")[0].any()


def test_a_dataset_without_masks_is_refused(drawn: Path) -> None:
    for path in (drawn / "raw").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"_.*png: not a readable lesion mask .*other 2 are no better"):
        write(drawn)
    assert not (drawn / "out/masks.parquet").exists()
    for path in (drawn / "raw").iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"^roles\.lesions: 'drawn' has no photographs with masks of MA, HE"):
        write(drawn)


def test_a_cut_off_array_is_named(drawn: Path) -> None:
    out = write(drawn)
    (out / "masks.npy").write_bytes((out / "masks.npy").read_bytes()[:500])
    with pytest.raises(UserError, match=r"masks\.npy: .*run the stage lesion_masks again"):
        masks(out, "a")


def test_a_full_disk_is_named_and_leaves_nothing(drawn: Path) -> None:
    expected = write(drawn)
    with disk(drawn / "small", "64k") as small:
        ballast = fill(small, left=2 * SIZE * SIZE)
        with pytest.raises(OSError, match=r"No space left on device: '.*/small/masks\.npy'"):
            write(drawn, out="small")
        assert list(small.iterdir()) == [ballast]
        ballast.unlink()
        write(drawn, out="small")
        for name in ("masks.npy", "masks.parquet"):
            assert (small / name).read_bytes() == (expected / name).read_bytes()
