"""Dataset cards: what each dataset holds, where it is from, and what is wrong with it.

After Gebru et al., Datasheets for Datasets, Communications of the ACM 64(12), 2021, with their headings.
"""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from drgrade.data.patients import BY_NUMBER, UNKNOWN
from drgrade.data.registry import DATASETS, Card
from drgrade.images.dataset import CroppedDataset
from drgrade.params import Params
from drgrade.report.inputs import grade_counts
from drgrade.report.markdown import markdown_table, text
from drgrade.report.model_card import PURPOSES, SCHEMES
from drgrade.schema import CROPS, read_table, takes_part

LISTED = 10
"""Largest number of reasons for leaving out photographs that a card lists."""
POOR, GOOD = 0.5, 0.9
"""Limits of the computed quality; see :mod:`drgrade.images.quality`."""
ACCESS = {
    "synthetic": "Synthetic: none shows a patient, and nothing that is found on them holds for patients.",
    "open": "Real photographs of patients, open to anyone.",
    "form": "Real photographs of patients, given out on the source's terms.",
}
"""What the images are, by ``Card.access``."""


def dataset_card(data: CroppedDataset, params: Mapping[str, Any]) -> str:
    """Return the card of one dataset, in Markdown.

    Args:
        data: the dataset, after the stages index and crop.
        params: all params, with defaults filled in.
    """
    card: Card = DATASETS.get(data.name)().card
    index = data.index
    parts = {
        "Motivation": motivation(data.name, card, params),
        "Composition": composition(index, card, params["datasets"][data.name]["limit"]),
        "Collection process": collection(data.name, card),
        "Preprocessing, cleaning, labelling": cleaning(index, read_table(data.crops_file, CROPS), params),
        "Uses": uses(data.name, index, card, params),
        "Distribution": [f"- Licence: {card.licence}", f"- Source: {card.source}"],
        "Maintenance": [f"This is version {card.version}. drgrade looks for no newer one."],
    }
    lines = [f"# Dataset card: {card.title} (`{data.name}`)", ""]
    for title, paragraph in parts.items():
        lines += [f"## {title}", "", *paragraph, ""]
    return "\n".join(lines).rstrip() + "\n"


def roles_of(name: str, params: Mapping[str, Any]) -> list[str]:
    """Return what a dataset is for in a run."""
    roles = {role: [named] if isinstance(named, str) else named for role, named in params["roles"].items()}
    return [purpose for role, purpose in PURPOSES.items() if name in roles[role]]


def motivation(name: str, card: Card, params: Mapping[str, Any]) -> list[str]:
    """Return the lines on what the dataset is for."""
    lines = [f"- In this run: {'; '.join(roles_of(name, params))}."]
    return lines if card.access == "synthetic" else [*lines, f"- Why it was made: {card.citation}."]


def composition(index: pd.DataFrame, card: Card, limit: int | None) -> list[str]:
    """Return the lines on the photographs: grades by split, masks, patients, eyes, size and quality.

    Args:
        index: ``index.parquet``.
        card: card of the dataset.
        limit: ``datasets.<name>.limit``.
    """
    used = index[takes_part(index)]
    in_folds = index["fold"].notna().any()
    counted = index.assign(split="fold " + index["fold"].astype("string")) if in_folds else index
    grades = grade_counts(counted)
    masked = used[used["subset"] == "segmentation"].groupby(used["split"].fillna("no split")).size()
    graded = used[(used["subset"] == "grading") & used["grade"].notna()]
    lines = [
        "Graded photographs that are used:",
        "",
        *markdown_table(list(grades.columns), grades.itertuples(index=False)),
        "",
        f"- Photographs with lesion masks: {_counts(masked) or 'none'}",
        f"- Photographs without a grade, for pretraining only: {int((used['status'] == 'unlabelled').sum())}",
        f"- Eye known: {int(graded['eye'].notna().sum())} of {len(graded)}",
        *sizes_and_quality(used),
    ]
    if card.counts:
        complete = ", ".join(f"{part} {count.photographs:,}" for part, count in card.counts.items())
        lines.append(f"- The complete dataset, by part: {complete}")
    if limit is not None:
        lines.append(f"- A part of it is used: at most {limit} graded photographs (`limit`)")
    return lines


def sizes_and_quality(used: pd.DataFrame) -> list[str]:
    """Return the lines on size in pixels, computed quality and the dataset's own quality labels."""
    side = used[["width", "height"]].max(axis=1)
    size = (used["width"].astype("string") + " x " + used["height"].astype("string")).value_counts()
    quality = used["quality"].dropna()
    lines = []
    if len(size):
        lines.append(
            f"- Larger side: {side.min()} to {side.max()} px, median {side.median():g}; {len(size)} sizes, "
            f"most common {size.index[0]} ({size.iloc[0]} photographs)"
        )
    if len(quality):
        lines.append(
            f"- Computed quality (0 to 1): median {text(float(quality.median()))}; "
            f"{(quality < POOR).mean():.0%} below {POOR}, {(quality >= GOOD).mean():.0%} at {GOOD} or above"
        )
    labels = used["quality_label"].dropna()
    if len(labels):
        lines.append(f"- Quality as the dataset labels it: {_counts(labels.value_counts())}")
    return lines


def collection(name: str, card: Card) -> list[str]:
    """Return the lines on where the images are from."""
    return [
        f"- {ACCESS[card.access]}",
        f"- The stage `download` listed the files that were used, with their SHA-256: "
        f"`results/{name}/download/manifest.tsv`.",
    ]


def cleaning(index: pd.DataFrame, crops: pd.DataFrame, params: Mapping[str, Any]) -> list[str]:
    """Return the lines on the crops, and the table of what is not used, with reasons."""
    crop, rules = params["crop"], params["index"]
    failed = crops[(crops["status"] != "ok") & crops["image_id"].isin(index["image_id"][takes_part(index)])]
    rows = [index.loc[~takes_part(index), ["status", "reason"]], failed[["status", "reason"]]]
    reasons = pd.concat(rows).fillna("").value_counts().reset_index(name="rows")
    reasons = reasons.sort_values(["rows", "status", "reason"], ascending=[False, True, True])
    lines = [
        f"- Cropped by the rule {crop['rule']} to {crop['size']} px.",
        "- Near-identical photographs stay in one part of the split.",
    ]
    if rules["min_quality"]:
        lines.append(f"- Those with a computed quality below {rules['min_quality']:g} are not used.")
    lines.append("")
    if reasons.empty:
        return [*lines, "No photograph and no label is left out."]
    shown = reasons.head(LISTED)
    table = markdown_table(("left out", "reason", "rows"), shown.itertuples(index=False))
    rest = int(reasons["rows"].iloc[LISTED:].sum())
    return [*lines, *table, *(["", f"And {rest} rows for other reasons, in `input.csv`."] if rest else [])]


def uses(name: str, index: pd.DataFrame, card: Card, params: Mapping[str, Any]) -> list[str]:
    """Return the lines on split and known defects."""
    defects = list(card.defects)
    if not index["patient_id"].duplicated().any():
        defects.append(UNKNOWN)
    if size := params["datasets"][name]["numbers_per_patient"]:
        defects.append(BY_NUMBER.format(size))
    lines = ["Known defects:" if defects else "No defects are known to drgrade.", ""]
    lines += [f"- {defect}" for defect in defects]
    if name in params["roles"]["external"]:
        return ["All of its graded photographs are tested on, whatever its own split.", "", *lines]
    return [f"Split: {SCHEMES[Params.model_validate(params).scheme(name)]}.", "", *lines]


def _counts(counts: pd.Series) -> str:
    """Counts by name in one line, such as ``test 3, train 9``."""
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
