"""Model cards: intended use, data, training and performance of each experiment.

After Mitchell et al., Model Cards for Model Reporting, FAT* 2019, with their headings.
"""

from collections.abc import Mapping
from typing import Any

import pandas as pd
import yaml

from drgrade.data.patients import BY_NUMBER
from drgrade.data.registry import DATASETS
from drgrade.params import Params, parse_start
from drgrade.report.card_tables import analyses
from drgrade.report.caveats import caveats
from drgrade.report.markdown import markdown_table
from drgrade.report.tables import Results
from drgrade.report.weights import Records, history

NOTICE = (
    "Research use only. A grade from this model is not a diagnosis and must not guide the care of a patient."
)
SCHEMES = {
    "official": "the dataset's own split, its training part divided into training and validation; training "
    "photographs that copy a test photograph are left out",
    "holdout": "whole patients drawn into training, validation and test",
    "file": "as a list of the user's says",
    "kfold": "cross-validation by patient; every photograph is graded by a model that never saw its patient",
}
PURPOSES = {
    "grade": "trains and tests the grader",
    "pretrain": "pretraining, without grades",
    "lesions": "lesion masks",
    "external": "external test",
}
"""What the datasets are for, by role."""


def model_card(name: str, results: Results, records: Records, params: Mapping[str, Any]) -> str:
    """Return the model card of one experiment, in Markdown.

    Args:
        name: name of the experiment.
        results: of the stage evaluate.
        records: what the trainings recorded of their initial weights.
        params: all params, with defaults filled in.
    """
    metrics = results.metrics[name]
    parts = {
        "Model details": [*model(resolved(name, params), metrics, params), *weights(name, records, params)],
        "Intended use": INTENDED,
        "Factors": FACTORS,
        "Metrics": MEASURES,
        "Evaluation data": evaluation_data(metrics, results.tables["external"], params),
        "Training data": training_data(params),
        "Quantitative analyses": analyses(name, results, params["calibrate"]["point"]),
        "Ethical considerations": ETHICS,
        "Caveats and recommendations": caveats(metrics, DATASETS.get(params["roles"]["grade"]).card.defects),
        "How to load": how_to_load(name, params),
        "Parameters": ["```yaml", parameters(name, params), "```"],
    }
    lines = [f"# Model card: {name}", "", f"**{NOTICE}**", ""]
    for title, paragraph in parts.items():
        lines += [f"## {title}", "", *paragraph, ""]
    return "\n".join(lines).rstrip() + "\n"


INTENDED = [
    "- Use: research, to compare methods of training and grading on the same photographs.",
    "- Users: researchers and engineers who know the limits below.",
    "- Out of scope: diagnosis, screening, triage and any other clinical decision; photographs of other "
    "cameras or populations without a test on them; any question but the grade of diabetic retinopathy.",
]
FACTORS = [
    "Camera and clinic, quality and resolution of the photograph, and how common each grade is, all change "
    "what a model is worth. Measured below: by eye, quality, resolution and dataset. Not measured, as the "
    "datasets name none of them to the pipeline: age, sex, ethnicity, type and duration of diabetes, other "
    "diseases of the eye.",
]
MEASURES = [
    "Agreement with the true grades is measured by the quadratic weighted kappa: 0 is chance, 1 is perfect. "
    "Values are means over training seeds; intervals are 95 %, by a bootstrap over patients. Grades are "
    "scores rounded at the midpoints, where nothing else is said. Operating points and calibration are "
    "fitted on validation photographs and measured on test photographs, on the mean of all training seeds.",
]
ETHICS = [
    "- A missed case can cost sight, a false alarm costs a visit and worry: no threshold here was chosen "
    "with patients or clinicians.",
    "- Photographs of an eye are health data. What may be done with a model that was trained on them depends "
    "on the licences of the datasets and of the start weights; drgrade does not settle that.",
    "- A group of patients that is rare in the training data may be graded worse, without the tables above "
    "showing it.",
]


def scheme_of(params: Mapping[str, Any]) -> str:
    """Return how the graded dataset is split: a key of SCHEMES."""
    return params["datasets"][params["roles"]["grade"]]["scheme"] or params["index"]["scheme"]


def resolved(name: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the params of an experiment, with defaults from the block ``grade`` filled in."""
    return Params.model_validate(params).experiment(name).model_dump()


def start(experiment: Mapping[str, Any], params: Mapping[str, Any]) -> str:
    """Describe what the encoder's training began with, back to the first weights."""
    method = experiment["start"]
    kind, name = parse_start(method, params["pretrain"])
    if kind == "experiment":
        other = resolved(name, params)
        before = f", itself from: {start(other, params)}" if "encoder" in other else ""
        return f"the model of the experiment {name} of the same seed and fold{before}"
    if kind == "pretrain":
        block = params["pretrain"][method]
        before = start({"start": block["start"], "encoder": block["encoder"]}, params)
        return f"{method} pretraining on {params['roles']['pretrain']}, itself from: {before}"
    return {"random": "random", "imagenet": "ImageNet"}.get(kind, f"the file {method}")


def model(experiment: Mapping[str, Any], metrics: Mapping[str, Any], params: Mapping[str, Any]) -> list[str]:
    """Return the lines on the grader, its encoder and its training."""
    if experiment["grader"] == "majority":
        return [
            "Predicts the most common training grade, whatever the photograph: the floor of the comparison."
        ]
    lines = [f"- grader: {experiment['grader']}"]
    if "encoder" in experiment:
        crop = params["crop"]
        lines = [
            f"- grader: {experiment['grader']}, encoder {experiment['encoder']}",
            f"- start weights: {start(experiment, params)}",
            f"- input: {experiment['input_size']} px, from crops of {crop['size']} px (rule {crop['rule']})",
        ]
    if experiment["members"]:
        lines.append(f"- builds on the experiments: {', '.join(experiment['members'])}")
    if metrics["parameters"]:
        lines.append(f"- number of weights: {metrics['parameters']:,}")
    return [
        *lines,
        f"- labels used: {experiment['label_fraction']:.0%} of the training patients",
        f"- training seeds: {', '.join(map(str, experiment['seeds']))}",
        "- output: a score from 0 to 4 and the probability of each of the five grades (ICDR scale)",
    ]


def weights(name: str, records: Records, params: Mapping[str, Any]) -> list[str]:
    """Return the table of all initial weights, with their SHA-256, source and licence; empty without any."""
    steps = history(name, records, Params.model_validate(params))
    if not steps:
        return []
    return ["", *markdown_table(("network", "started from", "SHA-256", "source and licence"), steps)]


def evaluation_data(
    metrics: Mapping[str, Any], external: pd.DataFrame, params: Mapping[str, Any]
) -> list[str]:
    """Return the lines on the photographs that the model was tested on."""
    roles = params["roles"]
    lines = [
        f"- {roles['grade']}: {metrics['n']} test photographs of {metrics['patients']} patients. Split: "
        f"{SCHEMES[scheme_of(params)]} (seed {params['index']['seed']}).",
    ]
    if size := params["datasets"][roles["grade"]]["numbers_per_patient"]:
        lines.append(f"- {BY_NUMBER.format(size)}")
    for dataset in roles["external"]:
        rows = external[external["dataset"] == dataset]
        count = f", {rows['n'].iloc[0]} photographs" if len(rows) else ""
        lines.append(f"- {PURPOSES['external']}{count}, never trained on: {described(dataset)}")
    return [*lines, "", "The cards in `dataset_cards/` say more of each dataset."]


def training_data(params: Mapping[str, Any]) -> list[str]:
    """Return the lines on the datasets that are trained on, with licence, source and citation."""
    roles = params["roles"]
    return [f"- {PURPOSES[role]}: {described(roles[role])}" for role in ("grade", "pretrain", "lesions")]


def described(dataset: str) -> str:
    """Return title, version, licence, source and citation of a dataset."""
    card = DATASETS.get(dataset)().card
    facts = [f"version {card.version}", f"licence: {card.licence}", f"source: {card.source}"]
    if card.access != "synthetic":
        facts.append(f"citation: {card.citation}")
    return "; ".join([f"{card.title} (`{dataset}`)", *facts])


def how_to_load(name: str, params: Mapping[str, Any]) -> list[str]:
    """Return the lines of Python that load the model, the mean of its trainings, and grade a photograph."""
    return [
        "```python",
        "from pathlib import Path",
        "from drgrade.predict.model import Model",
        f'model = Model.load("results/{params["roles"]["grade"]}/grade/{name}")',
        'table = model.grade([Path("17_left.jpeg"), Path("17_right.jpeg")])',
        "```",
    ]


def parameters(name: str, params: Mapping[str, Any]) -> str:
    """Return the params that determine this model, as YAML."""
    experiment = resolved(name, params)
    used = {key: params[key] for key in ("datasets", "roles", "index", "crop")}
    used["experiment"] = experiment
    if experiment.get("start") in params["pretrain"]:
        used["pretrain"] = {experiment["start"]: params["pretrain"][experiment["start"]]}
        used |= {key: params[key] for key in ("lesion_boxes", "detector", "lesions", "patches")}
    return yaml.safe_dump(used, sort_keys=True).rstrip()
