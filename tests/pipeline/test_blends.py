"""Networks of o_O, features, blends of both eyes, an ensemble and activation maps, from Snakemake and DVC."""

import numpy as np
import pandas as pd

NETWORK = {"grader": "o_o", "tied_biases": True, "input_size": 96, "epochs": 1, "batch_size": 4}
CHANGE = {
    "experiments.net": NETWORK | {"encoder": "o_o_128_4x4", "out_of_fold": 2, "checkpoints": ["last"]},
    "experiments.mapped": NETWORK | {"grader": "ram", "encoder": "o_o_ram_128_4x4"},
    "experiments.blend": {"grader": "blend", "features": ["pooled"], "epochs": 2},
    "experiments.ensemble": {"grader": "ensemble", "members": ["blend", "lesion_contrastive"]},
    "features.pooled": {"experiment": "net", "checkpoint": "last", "transforms": 2},
    "features.seen": {"experiment": "net", "out_of_fold": False},
    "explanations.ram": {"method": "ram", "experiment": "mapped", "images": 1},
}


def test_dvc_records_blends_on_features_that_were_not_trained_on(versioned):
    versioned.edit(CHANGE)
    versioned.run("dvc", "repro")
    assert versioned.planned() == set()
    status = versioned.run("dvc", "status")
    assert "features@pooled" not in status
    assert "grade@" not in status
    board = pd.read_csv(versioned.file("evaluate/leaderboard.csv"))
    assert {"net", "mapped", "blend", "ensemble"} <= set(board["experiment"])
    assert board["qwk_fitted"].notna().all()

    rows = pd.read_parquet(versioned.file("features/pooled/seed0/rows.parquet"))
    index = pd.read_parquet(versioned.file("index/index.parquet")).set_index("image_id")
    own = rows[rows["dataset"] == "demo"]
    of_training = own[(index.loc[own["image_id"], "split"] == "train").to_numpy()]
    models = own.groupby("image_id")["model"].nunique()
    split = index.loc[models.index, "split"]
    assert set(models[split == "train"]) == {1}
    assert set(models[split != "train"]) == {2}
    for part in (0, 1):
        left_out = pd.read_parquet(versioned.file(f"grade/net/seed0_part{part}of2/predictions.parquet"))
        left_out = left_out[left_out["split"] == "left_out"]["image_id"]
        seen_by = of_training[of_training["model"] == part]["image_id"]
        assert set(seen_by) == set(left_out)
    assert np.load(versioned.file("features/pooled/seed0/std.npy")).max() > 0
    seen = pd.read_parquet(versioned.file("features/seen/seed0/rows.parquet"))
    assert set(seen[seen["dataset"] == "demo"]["image_id"]) == set(own["image_id"])
    assert set(seen["model"]) == {0}

    maps = list(versioned.file("explain/ram/maps").glob("*.npy"))
    assert maps
    assert np.isfinite(np.load(maps[0])).all()

    versioned.edit({"features.pooled.transforms": 3})
    assert versioned.planned() == {"features", "grade", "calibrate", "evaluate", "report"}
    plan = versioned.snakemake("--dry-run")
    assert "Train and test blend" in plan
    assert "Train and test ensemble" in plan
    assert "Train and test net" not in plan
