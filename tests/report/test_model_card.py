import json

import pytest

from drgrade.report.model_card import model_card, start


@pytest.fixture
def card(run):
    metrics = json.loads(run["metrics"].read_text())
    return {name: model_card(name, metrics[name], run["params"]) for name in metrics}


def test_card_says_what_a_reader_must_know(card):
    text = card["good"]
    assert text.startswith("# good\n")
    for title in ("Use", "Data", "Model", "Results", "Limits", "Parameters"):
        assert f"\n## {title}\n" in text
    assert "not a diagnosis" in text
    assert "licence Apache-2.0" in text
    assert "7 test photographs of 4 patients" in text
    assert "0.612 to 0.812" in text
    assert "| Quadratic weighted kappa | 0.712 |" in text
    assert "| Quadratic weighted kappa, thresholds fitted on validation photographs | 0.735 |" in text
    assert "| 3 severe | 6 | 0.750 |" in text
    assert "| 0 none | 0 | – |" in text
    assert "sensitivity, score of 1.5 or more | – |" in text
    assert "training seeds: 3" in text
    assert "Fewer than 30 test photographs of grade 0, 1, 2, 3, 4" in text


def test_card_warns_where_no_two_photographs_are_of_one_patient(run):
    metrics = json.loads(run["metrics"].read_text())["good"]
    assert "No two photographs" not in model_card("good", metrics, run["params"])
    alone = model_card("good", metrics | {"patients": metrics["n"]}, run["params"])
    assert "two eyes of one person may be in both training and test" in alone


def test_card_holds_the_params_of_its_model_only(card):
    assert "lesion_contrastive:" in card["good"]
    assert "temperature: 0.07" in card["good"]
    assert "temperature" not in card["majority"]
    assert "most common training grade" in card["majority"]


@pytest.mark.parametrize(
    ("experiment", "words"),
    [
        ({"start": "random", "encoder": "resnet18"}, ["random"]),
        ({"start": "imagenet", "encoder": "tf_efficientnet_lite0"}, ["ImageNet", "Apache-2.0"]),
        ({"start": "imagenet", "encoder": "resnet18"}, ["imagenet", "that of the weights file"]),
        (
            {"start": "lesion_contrastive", "encoder": "tf_efficientnet_lite0"},
            ["demo", "itself from", "Apache-2.0"],
        ),
    ],
)
def test_start_weights_carry_their_licence(run, experiment, words):
    text = start(experiment, run["params"])
    assert all(word in text for word in words)
