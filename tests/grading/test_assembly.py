"""A model and those it builds on grade new photographs as the pipeline graded the same ones."""

import shutil

import numpy as np
import pytest

from drgrade.errors import UserError
from drgrade.grading.assembly import assemble
from drgrade.grading.base import Photographs
from drgrade.grading.blend import Params as Blend
from drgrade.grading.ensemble import Params as Ensemble
from drgrade.grading.extract import extract
from drgrade.grading.finetune import Params
from drgrade.grading.stage import Inputs, grade
from drgrade.params import Crop, Features
from drgrade.schema import PREDICTIONS, read_table

QUICK = Params(encoder="test_efficientnet", start="random", input_size=32, epochs=1, batch_size=8)


@pytest.fixture
def results(dataset):
    """Two networks that left out a part, features of both, a blend, another network, and their ensemble."""
    data = dataset("own", grades=[n // 2 % 5 for n in range(30)])
    which = {"seed": 0, "fold": None}
    place = data.folder / "grade"
    parts = [place / f"net/seed0_part{part}of2" for part in range(2)]
    for part, out in enumerate(parts):
        grade("net", QUICK, Crop(), Inputs(data), **which, part=(part, 2), out=out)
    block = Features(experiment="net", transforms=3, skip=2)
    features = {"set": data.folder / "features/set/seed0"}
    extract("set", block, data, [], [out / "model" for out in parts], **which, out=features["set"])
    inputs = Inputs(data, features=features)
    grade("blend", Blend(features=["set"], model="ridge"), Crop(), inputs, **which, out=place / "blend/seed0")
    grade("other", QUICK, Crop(), Inputs(data), **which, out=place / "other/seed0")
    members = {name: place / name / "seed0" for name in ("blend", "other")}
    inputs = Inputs(data, features=features, members=members)
    ensemble = Ensemble(members=list(members))
    grade("ensemble", ensemble, Crop(), inputs, **which, out=place / "ensemble/seed0")
    return data


def test_new_photographs_are_graded_as_in_the_pipeline(results):
    for experiment in ("blend", "ensemble", "other"):
        folder = results.folder / "grade" / experiment / "seed0"
        expected = read_table(folder / "predictions.parquet", PREDICTIONS).query("split == 'test'")
        assert np.ptp(expected["score"]) > 0
        table = results.graded().set_index("image_id").loc[expected["image_id"]].reset_index()
        model = assemble(folder / "model")
        found = model.grader.predict(model.completed(Photographs(results.images, table))).score
        np.testing.assert_allclose(found, expected["score"], atol=1e-5)


def test_a_model_without_its_place_in_the_results_is_a_users_mistake(results, tmp_path):
    shutil.copytree(results.folder / "grade/ensemble/seed0/model", tmp_path / "alone")
    with pytest.raises(UserError, match="builds on other experiments") as error:
        assemble(tmp_path / "alone")
    assert "\n" not in str(error.value)
    shutil.rmtree(results.folder / "features")
    with pytest.raises(UserError, match=r"features\.json: no such file"):
        assemble(results.folder / "grade/blend/seed0/model")
