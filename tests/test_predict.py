import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from drgrade.errors import UserError
from drgrade.grading.finetune import Finetune, Params
from drgrade.grading.regression import Regressor
from drgrade.params import Crop
from drgrade.predict import predict_files


@pytest.fixture
def model(tmp_path):
    """A network that has learnt nothing, with a head that makes its scores differ."""
    grader = Finetune(Params(input_size=32), Crop(size=48))
    grader.network = Regressor("tf_efficientnet_lite0", "imagenet")
    grader.save(tmp_path / "model")
    return tmp_path / "model"


def disc(red: int) -> Image.Image:
    y, x = np.mgrid[:120, :160]
    inside = (x - 80) ** 2 + (y - 60) ** 2 < 55**2
    return Image.fromarray((inside[..., None] * np.array([red, 60, 20])).astype(np.uint8))


def test_a_folder_with_a_broken_photograph_is_graded_all_the_same(model, tmp_path):
    folder = tmp_path / "photographs"
    folder.mkdir()
    disc(200).save(folder / "a.jpg")
    disc(120).save(folder / "b.png")
    (folder / "c.jpg").write_text("not a photograph")
    (folder / "d.jpg").write_bytes((folder / "a.jpg").read_bytes()[:900])
    (folder / "notes.txt").write_text("left alone")
    predict_files([folder], model, tmp_path / "grades.csv")
    table = pd.read_csv(tmp_path / "grades.csv", keep_default_na=False)
    assert [path.rsplit("/", 1)[1] for path in table["file"]] == ["a.jpg", "b.png", "c.jpg", "d.jpg"]
    assert list(table["status"]) == ["ok", "ok", "failed", "failed"]
    assert all(table["reason"][2:])
    assert list(table["score"][2:]) == ["", ""]
    assert set(table["use"]) == {"research only, not a diagnosis"}


def test_one_photograph_gets_the_same_score_alone_and_in_company(model, tmp_path):
    disc(200).save(tmp_path / "a.png")
    disc(90).save(tmp_path / "b.png")
    predict_files([tmp_path / "a.png"], model, tmp_path / "alone.csv")
    predict_files([tmp_path / "b.png", tmp_path / "a.png"], model, tmp_path / "both.csv")
    alone, both = (pd.read_csv(tmp_path / name) for name in ("alone.csv", "both.csv"))
    assert alone.loc[0, "score"] == pytest.approx(both.loc[1, "score"], abs=2e-4)
    p = alone.loc[0, [f"p{grade}" for grade in range(5)]].astype(float)
    assert p.sum() == pytest.approx(1, abs=1e-3)
    assert (p * np.arange(5)).sum() == pytest.approx(alone.loc[0, "score"], abs=1e-3)


def test_what_is_missing_is_named(model, tmp_path):
    with pytest.raises(UserError, match=r"gone\.jpg: no such file"):
        predict_files([tmp_path / "gone.jpg"], model, tmp_path / "o.csv")
    disc(200).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"model\.json: no such file; name a model's folder"):
        predict_files([tmp_path / "a.png"], tmp_path, tmp_path / "o.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no photographs"):
        predict_files([tmp_path / "empty"], model, tmp_path / "o.csv")
    assert json.loads((model / "model.json").read_text())["crop"]["size"] == 48
