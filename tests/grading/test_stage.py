import pandas as pd
import pytest

from drgrade.errors import UserError
from drgrade.grading.base import splits
from drgrade.grading.stage import (
    External,
    graded_external,
    labelled,
    start_weights,
    started_from,
    trainings,
)
from drgrade.params import Experiment
from drgrade.schema import CROPS, INDEX, write_table


def table(folds: list[int | None], split: list[str]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "image_id": [f"i{n}" for n in range(len(folds))],
            "patient_id": [f"p{n}" for n in range(len(folds))],
            "grade": pd.array([n % 5 for n in range(len(folds))], "Int8"),
            "split": split,
            "fold": pd.array(folds, "Int8"),
        }
    )


def test_holdout_uses_the_split_column():
    rows = table([None] * 4, ["train", "val", "test", "train"])
    ((fold, parts),) = splits(rows, "best")
    assert fold is None
    assert {part: list(found["image_id"]) for part, found in parts.items()} == {
        "train": ["i0", "i3"], "val": ["i1"], "test": ["i2"],
    }  # fmt: skip


@pytest.mark.parametrize(("select", "held_out"), [("best", [1, 2, 0]), ("last", [None, None, None])])
def test_every_photograph_is_tested_once_out_of_fold(select, held_out):
    rows = table([0, 1, 2] * 4, ["train"] * 12)
    tested = []
    for (fold, parts), val in zip(splits(rows, select), held_out, strict=True):
        assert set(parts["test"]["fold"]) == {fold}
        assert set(parts["val"]["fold"]) == (set() if val is None else {val})
        assert set(parts["train"]["fold"]) == {0, 1, 2} - {fold, val}
        tested += list(parts["test"]["image_id"])
    assert sorted(tested) == sorted(rows["image_id"])


def test_trainings_are_seeds_by_folds_and_refuse_an_empty_training_set():
    rows = table([0, 1] * 5, ["train"] * 10)
    made = [(seed, fold) for seed, fold, _ in trainings(rows, Experiment(seeds=[3, 4]), "last")]
    assert made == [(3, 0), (3, 1), (4, 0), (4, 1)]
    with pytest.raises(UserError, match="no graded training photographs"):
        list(trainings(table([None], ["test"]), Experiment(), "best"))


def test_label_fractions_take_whole_patients_inside_one_another():
    rows = table([None] * 100, ["train"] * 100)
    tenth, quarter = (set(labelled(rows, fraction, 0)["image_id"]) for fraction in (0.1, 0.25))
    assert tenth < quarter
    assert len(tenth) == 10
    assert len(labelled(rows, 1.0, 0)) == 100


def test_start_weights_prefer_the_folds_own_encoder(tmp_path):
    assert start_weights("imagenet", None, 1) == "imagenet"
    (tmp_path / "encoder.safetensors").write_text("")
    assert start_weights("lesion_contrastive", tmp_path, 1).endswith("encoder.safetensors")
    (tmp_path / "encoder_fold1.safetensors").write_text("")
    assert start_weights("lesion_contrastive", tmp_path, 1).endswith("encoder_fold1.safetensors")
    with pytest.raises(UserError, match="run the stage pretrain"):
        start_weights("lesion_contrastive", tmp_path / "none", None)


def test_a_grader_without_weights_started_from_none(tmp_path):
    """Though no ImageNet weights of this encoder are to be found."""
    assert started_from(tmp_path, "resnet18", "imagenet", 0) == {}
    (tmp_path / "model.safetensors").write_text("")
    assert started_from(tmp_path, "resnet18", "random", 2) == {"weights": "random", "seed": 2}


def test_an_external_dataset_without_grades_is_refused(tmp_path):
    """As the test part of APTOS 2019, whose grades were never released; b's only graded crop failed."""
    index = pd.DataFrame({"image_id": ["a", "b", "c"], "subset": "grading", "grade": [None, 2, None]})
    index["status"] = ["unlabelled", "ok", "unlabelled"]
    cut = pd.DataFrame({"image_id": ["a", "b", "c"], "row": [0, None, 2], "status": ["ok", "failed", "ok"]})
    site = External("site", tmp_path / "index.parquet", tmp_path / "crops.parquet", tmp_path / "store.json")
    write_table(index.reindex(columns=list(INDEX)), site.index, INDEX)
    write_table(cut.reindex(columns=list(CROPS)), site.crops, CROPS)
    with pytest.raises(UserError, match=r"^roles\.external: 'site' has no graded photograph with a crop"):
        graded_external(site)
    write_table(cut.assign(row=[0, 1, 2], status="ok").reindex(columns=list(CROPS)), site.crops, CROPS)
    assert graded_external(site)["image_id"].tolist() == ["b"]
