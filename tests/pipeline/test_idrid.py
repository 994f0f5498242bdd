"""The real thing: photographs of 4288x2848 through Snakemake, from raw files to tiles and patches."""

import json

import pandas as pd

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


def test_real_photographs_end_to_end(idrid, fresh):
    fresh.edit(REAL)
    fresh.snakemake("--", "results/idrid/evaluate/leaderboard.csv", DRGRADE_IDRID_ROOT=str(idrid))
    results = fresh.folder / "results/idrid"
    index = read_table(results / "index/index.parquet", INDEX)
    assert (index["subset"] == "segmentation").sum() == 18
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
    # one encoder for each fold, blind to it; every graded photograph tested once
    assert len(list((results / "pretrain/lesion_contrastive/weights").glob("encoder_fold*.safetensors"))) == 2
    tables = (results / "grade/lesion_contrastive").glob("seed0_fold[01]/predictions.parquet")
    predictions = pd.concat(map(pd.read_parquet, tables))
    graded = index[index["subset"] == "grading"]
    assert sorted(predictions["image_id"]) == sorted(graded["image_id"])
    assert list(pd.read_csv(results / "evaluate/leaderboard.csv")["n"]) == [len(graded)]
