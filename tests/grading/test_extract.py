"""The stage ``features``: whose features it stores, and that they are those of the networks."""

import json

import numpy as np
import pandas as pd
import pytest

from drgrade.cli import main
from drgrade.errors import UserError
from drgrade.grading.base import Photographs
from drgrade.grading.blend import Params as Blend
from drgrade.grading.extract import extract
from drgrade.grading.feature_sets import read_features
from drgrade.grading.finetune import Finetune, Params
from drgrade.grading.majority import Majority
from drgrade.grading.majority import Params as MajorityParams
from drgrade.grading.models import load_model
from drgrade.grading.photographs import parts_of
from drgrade.grading.stage import Inputs, grade
from drgrade.images.quasi import quasi_random
from drgrade.params import Crop, Features
from drgrade.schema import PREDICTIONS, read_table
from drgrade.seeding import seed_everything

QUICK = Params(
    encoder="test_efficientnet", start="random", input_size=32, epochs=1, batch_size=8,
    augment={"pca": 0.3, "flip": 0.0}, checkpoints=["last"],
)  # fmt: skip
GRADES = [n // 2 % 5 for n in range(30)]
"""Both eyes of 15 patients."""


def models(folder, count: int) -> list:
    """Untrained networks, each with other weights."""
    found = []
    for number in range(count):
        grader = Finetune(QUICK, Crop())
        seed_everything(number, "head")
        grader.network = grader.new_network("random")
        grader.save(folder / str(number))
        found.append(folder / str(number))
    return found


def block(**changed) -> Features:
    return Features(**{"experiment": "net"} | changed)


def rows_of(found, dataset: str) -> dict[str, list[int]]:
    """The networks that gave features of each photograph."""
    own = found.rows[found.rows["dataset"] == dataset]
    return own.groupby("image_id")["model"].agg(list).to_dict()


def test_a_training_photograph_is_read_by_the_network_that_has_not_seen_it(dataset, tmp_path):
    data, site, paths = dataset("own", grades=GRADES), dataset("site", pixel_seed=2), models(tmp_path, 2)
    extract("set", block(transforms=4), data, [site], paths, seed=5, fold=None, out=tmp_path / "out")
    found = read_features(tmp_path / "out", "set")
    assert (found.models, found.in_sample, len(found.rows)) == (2, False, 18 + 2 * 12 + 2 * 15)
    given = rows_of(found, "own")
    for number in range(2):
        parts = parts_of(
            data.graded(), seed=5, fold=None, select="best", label_fraction=1, part=(number, 2)
        )  # fmt: skip
        assert all(given.pop(name) == [number] for name in parts["left_out"]["image_id"])
    assert set(given) == set(data.index.query("split != 'train'")["image_id"])
    assert all(numbers == [0, 1] for numbers in [*given.values(), *rows_of(found, "site").values()])
    assert (found.std > 0).any(axis=1).all()


@pytest.mark.parametrize("transforms", [1, 3])
def test_features_are_the_moments_of_each_network(transforms, dataset, tmp_path):
    data, site, paths = dataset("own", grades=GRADES), dataset("site", pixel_seed=2), models(tmp_path, 2)
    params = block(transforms=transforms, sequence="halton", skip=7)
    extract("set", params, data, [site], paths, seed=5, fold=None, out=tmp_path / "out")
    found = read_features(tmp_path / "out", "set")
    for dataset_, number in (("own", 0), ("own", 1), ("site", 1)):
        source, grader = {"own": data, "site": site}[dataset_], load_model(paths[number])
        own = found.rows.query("dataset == @dataset_ and model == @number")
        shown = source.graded().set_index("image_id").loc[own["image_id"]].reset_index()
        changes = None if transforms == 1 else quasi_random(params, QUICK.augment)
        mean, std = grader.moments(Photographs(source.images, shown), changes)
        np.testing.assert_allclose(found.mean[own["row"].to_numpy(int)], mean, atol=1e-6)
        np.testing.assert_allclose(found.std[own["row"].to_numpy(int)], std, atol=1e-6)
    assert (found.std == 0).all() == (transforms == 1)


def test_one_network_reads_all_photographs(dataset, tmp_path):
    data = dataset("own", grades=GRADES, folds=3)
    extract("set", block(), data, [], models(tmp_path, 1), seed=0, fold=1, out=tmp_path / "out")
    found = read_features(tmp_path / "out", "set")
    assert (found.models, found.in_sample) == (1, True)
    assert rows_of(found, "own") == {f"i{n}": [0] for n in range(30)}
    facts = json.loads((tmp_path / "out/features.json").read_text())
    assert facts["params"] == block().model_dump()


def test_the_checkpoint_is_read_and_one_that_lacks_is_named(dataset, tmp_path):
    data, (path, other) = dataset("own", grades=GRADES), models(tmp_path, 2)
    (other / "model.safetensors").rename(path / "model_last.safetensors")
    means, which = {}, {"seed": 0, "fold": None, "out": tmp_path / "out"}
    for checkpoint in ("selected", "last"):
        extract("set", block(checkpoint=checkpoint), data, [], [path], **which)
        means[checkpoint] = np.array(read_features(tmp_path / "out", "set").mean)
    assert np.abs(means["last"] - means["selected"]).max() > 1e-3
    with pytest.raises(UserError, match=r"model_best\.safetensors: no such file; name best in") as error:
        extract("set", block(checkpoint="best"), data, [], [path], **which)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("transforms", [1, 4])
def test_a_grader_without_an_encoder_is_a_users_mistake(transforms, dataset, tmp_path):
    grader = Majority(MajorityParams(), Crop())
    grader.grade = 0
    grader.save(tmp_path / "model")
    with pytest.raises(UserError, match="'majority' has no encoder") as error:
        extract(
            "set", block(transforms=transforms), dataset("own"), [], [tmp_path / "model"], seed=0, fold=None,
            out=tmp_path / "out",
        )  # fmt: skip
    assert "\n" not in str(error.value)


def test_a_blend_is_fitted_on_networks_that_each_left_out_a_part(dataset, tmp_path):
    """The whole way through the command line: two networks, their features, a blend of both eyes."""
    data, site = dataset("own", grades=GRADES), dataset("site", pixel_seed=2)
    common = ["--seed", "0", "--dataset", "own", "--data", str(data.folder)]
    common += ["--external", "site", str(site.folder)]
    for part in range(2):
        training = ["grade", "--experiment", "net", "--part", f"{part}/2", *common]
        options = ["--params", QUICK.model_dump_json(), "--crop-params", "{}"]
        assert main([*training, *options, "--out", str(tmp_path / f"part{part}")]) == 0
    left_out = [left_out_rows(tmp_path / f"part{part}", part) for part in range(2)]
    assert sorted(pd.concat(left_out)) == sorted(data.index.query("split == 'train'")["image_id"])
    features = ["features", "--name", "set", "--params", block(transforms=3).model_dump_json(), *common]
    folders = [str(tmp_path / f"part{part}/model") for part in range(2)]
    assert main([*features, "--models", *folders, "--out", str(tmp_path / "set")]) == 0
    # in this order only
    assert main([*features, "--models", *folders[::-1], "--out", str(tmp_path / "wrong")]) == 2
    given = rows_of(read_features(tmp_path / "set", "set"), "own")
    for part, names in enumerate(left_out):
        assert all(given[name] == [part] for name in names)
    blend = Blend(features=["set"], model="ridge")
    inputs = Inputs(data, external=[site], features={"set": tmp_path / "set"})
    for out in ("blend", "again"):
        grade("blend", blend, Crop(), inputs, seed=0, fold=None, out=tmp_path / out)
    first, again = (
        read_table(tmp_path / out / "predictions.parquet", PREDICTIONS) for out in ("blend", "again")
    )
    pd.testing.assert_frame_equal(first, again)
    counts = first["split"].value_counts().to_dict()
    assert counts == {"val": 6, "test": 6, "external": 15}
    assert np.ptp(first["score"]) > 0
    assert not list((tmp_path / ".cache").glob("drgrade/training/*"))


def left_out_rows(folder, part: int) -> pd.Series:
    """Names of the photographs that a training left out, which its predictions list."""
    table = read_table(folder / "predictions.parquet", PREDICTIONS)
    assert set(table["split"]) == {"val", "left_out"}
    assert np.isfinite(table["score"]).all()
    about = json.loads((folder / "training.json").read_text())
    assert about["part"] == [part, 2]
    assert set(about["files"]) == {"model.json", "model.safetensors", "model_last.safetensors"}
    return table.loc[table["split"] == "left_out", "image_id"]
