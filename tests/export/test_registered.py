"""The best model of a pipeline is registered in MLflow as the champion."""

import json

import pandas as pd
import pytest
from tests.predict.test_model import calibrated, experiment, graders, photographs  # noqa: F401  fixtures

from drgrade import tracking
from drgrade.predict.model import Model
from drgrade.publish import publish


@pytest.fixture
def trainings(experiment, tmp_path, monkeypatch):  # noqa: F811
    """Records of an experiment's trainings, the first with its run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv(tracking.PARENT, json.dumps({"grade": {"lr": 1.0}}))
    found = [experiment / f"seed{seed}/training.json" for seed in range(2)]
    for seed, path in enumerate(found):
        path.write_text(json.dumps({"seed": seed}))
    with tracking.track("grade", "one seed0", {}) as run:
        run.tags({"models": tracking.models_digest(found[0])})
    return found


def versions():
    from mlflow import MlflowClient

    client = MlflowClient(tracking.tracking_uri())
    return client, client.search_model_versions("name = 'drgrade'")


def test_the_champion_grades_as_the_results_do(trainings, experiment, photographs):  # noqa: F811
    file = calibrated(experiment)
    publish({"one": 0.8, "majority": 0.0}, "one", {"one": trainings}, file)
    client, (version,) = versions()
    assert client.get_model_version_by_alias("drgrade", "champion").version == version.version
    assert version.tags == {"experiment": "one"}
    champion = Model.load("models:/drgrade@champion")
    pd.testing.assert_frame_equal(champion.grade(photographs), Model.load(experiment).grade(photographs))
    publish({"one": 0.8}, "one", {"one": trainings}, file)
    assert len(versions()[1]) == 1
    calibrated(experiment, alpha=0.3)
    publish({"one": 0.8}, "one", {"one": trainings}, file)
    client, found = versions()
    assert len(found) == 2
    assert client.get_model_version_by_alias("drgrade", "champion").version == max(
        one.version for one in found
    )


def test_trainings_without_a_run_are_not_registered(trainings, experiment):  # noqa: F811
    trainings[0].write_text(json.dumps({"seed": 7}))  # not the one that was tracked
    publish({"one": 0.8}, "one", {"one": trainings}, calibrated(experiment))
    assert versions()[1] == []
