"""The real thing: photographs of 4288x2848 through Snakemake, from raw files to tiles and patches."""

import json
import re
from pathlib import Path

from drgrade.data.idrid import PART_A
from drgrade.lesions.patches import read_patches
from drgrade.schema import CROPS, INDEX, LESION_BOXES, read_table

REAL = {
    "datasets": {"idrid": {"limit": 10}},
    "roles": {"lesions": "idrid", "pretrain": "idrid", "grade": "idrid", "external": []},
    "index": {"scheme": "kfold", "folds": 2},
    "crop": {"size": 128},
    "lesion_boxes": {"tile": 256, "scale": 0.125},
    "grade": {"input_size": 64, "epochs": 1, "batch_size": 4, "select": "last"},
    "experiments": {"lesion_contrastive": {"start": "lesion_contrastive"}},
}


def link(idrid: Path, root: Path, count: int) -> None:
    """The dataset with few photographs in part A: those with all four kinds of lesions, as a test needs."""
    marked = sorted(path.stem.removesuffix("_SE") for path in idrid.glob(f"{PART_A}/*/*/*Soft*/*_SE.tif"))
    for path in idrid.rglob("*.*"):
        part, *inside = path.relative_to(idrid).parts
        if path.is_file() and inside and (part != PART_A or path.stem.startswith(tuple(marked[:count]))):
            (root / part).joinpath(*inside[:-1]).mkdir(parents=True, exist_ok=True)
            (root / part).joinpath(*inside).symlink_to(path)


def test_real_photographs_end_to_end(idrid, fresh, tmp_path):
    fresh.edit(REAL)
    link(idrid, tmp_path / "idrid", 6)
    root = {"DRGRADE_IDRID_ROOT": str(tmp_path / "idrid")}
    fresh.snakemake("--", "all_patches", **root)
    results = fresh.folder / "results/idrid"
    index = read_table(results / "index/index.parquet", INDEX)
    assert (index["subset"] == "segmentation").sum() == 6
    assert set(zip(index["width"], index["height"], strict=True)) == {(4288, 2848)}
    crops = read_table(results / "crop/crops.parquet", CROPS)
    assert (crops["status"] == "ok").all()
    # the eye fills most of these photographs: about 3,400 of 4,288 columns
    assert (crops["x1"] - crops["x0"]).between(3000, 4000).all()
    boxes = json.loads((results / "lesion_boxes/train.json").read_text())
    assert len({box["category_id"] for box in boxes["annotations"]}) == 4
    lesions = read_table(results / "lesions/lesions.parquet", LESION_BOXES)
    assert lesions["x2"].max() <= 4288
    assert lesions["y2"].max() <= 2848
    assert set(read_patches(results / "patches/detector/patches.pkl")["train"]) <= set(index["image_id"])
    # one encoder for each fold, blind to it; one training for each fold
    plan = fresh.snakemake("--dry-run", "--printshellcmds", **root)
    (pretraining,) = re.findall(r"drgrade pretrain .*", plan)
    assert "--by-fold" in pretraining
    folds = re.findall(r"drgrade grade --experiment lesion_contrastive --seed 0 --fold (\d)", plan)
    assert sorted(folds) == ["0", "1"]
