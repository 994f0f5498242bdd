import json
import shutil

import pandas as pd
import pytest
from tests.grading.conftest import dataset  # noqa: F401  a fixture
from tests.grading.test_assembly import results as built  # noqa: F401  a fixture
from tests.predict.test_model import calibrated, experiment, graders, photographs  # noqa: F401  fixtures

from drgrade.errors import UserError
from drgrade.export.portable import PROVENANCE, digest, experiment_of, write_portable
from drgrade.grading.base import Photographs
from drgrade.predict.model import Model
from drgrade.predict.source import EXPORT


def test_a_copy_predicts_as_the_original_does(experiment, photographs, tmp_path):  # noqa: F811
    calibrated(experiment, max_grades=3)
    original = Model.load(experiment)
    write_portable(experiment, list(original.members), original.fit, original.params, tmp_path / "copy")
    shutil.rmtree(experiment)
    copy = Model.load(tmp_path / "copy")
    assert (copy.experiment, copy.fit, copy.params) == ("one", original.fit, original.params)
    pd.testing.assert_frame_equal(copy.grade(photographs), original.grade(photographs))


def test_where_a_copy_is_from(results, tmp_path):
    model = Model.load(results / "seed1")
    write_portable(results, ["seed1"], model.fit, model.params, tmp_path / "copy")
    about = json.loads((tmp_path / "copy" / PROVENANCE).read_text())
    assert about["dataset"] == "demo"
    assert about["licences"] == {"drgrade": "Apache-2.0", "photographs": "Apache-2.0"}
    assert about["trainings"] == {"seed1": {"seed": 1, "start": {"weights": "random", "seed": 1}}}
    assert "Apache License" in (tmp_path / "copy/LICENSE").read_text()
    assert json.loads((tmp_path / "copy" / EXPORT).read_text())["calibration"] is None
    files = {str(path.relative_to(tmp_path / "copy")) for path in (tmp_path / "copy/members").rglob("*.*")}
    assert files == {f"members/seed1/model/model.{kind}" for kind in ("json", "safetensors")}


def test_models_that_build_on_others_take_them_along(built, tmp_path):  # noqa: F811
    folder = built.folder / "grade/ensemble"
    model = Model.load(folder)
    write_portable(folder, ["seed0"], model.fit, model.params, tmp_path / "copy")
    table = built.graded()
    expected = model.predict(Photographs(built.images, table))
    shutil.rmtree(built.folder / "grade")
    shutil.rmtree(built.folder / "features")
    found = Model.load(tmp_path / "copy").predict(Photographs(built.images, table))
    assert found.score.tolist() == expected.score.tolist()


@pytest.mark.parametrize("named", ["", "seed1", "seed1/model", "seed1/model/model.json"])
def test_the_experiment_of_any_path_to_a_model(results, named):
    assert experiment_of(results / named, "seed1") == results.resolve()


def test_a_path_without_trainings_is_refused(tmp_path):
    with pytest.raises(UserError, match="an export starts from trainings; name the folder"):
        experiment_of(tmp_path, "seed0")


def test_a_digest_follows_names_and_contents(tmp_path):
    (tmp_path / "a").write_text("1")
    first = digest(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    second = digest(tmp_path)
    (tmp_path / "b").write_text("2")
    assert len({first, second, digest(tmp_path)}) == 3
    (tmp_path / "b").write_text("1")
    assert digest(tmp_path) == second
