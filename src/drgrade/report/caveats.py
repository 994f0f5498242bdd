"""Caveats of a model card: what the results themselves say against the model."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from drgrade.data.patients import UNKNOWN
from drgrade.schema import GRADE_NAMES

SCARCE = 30
"""With fewer photographs of a grade its recall is called rough."""
FEWEST = 10
"""With fewer, nothing else is said of it."""
FOUND = 0.6
"""A grade with a lower recall is named."""
OFF = 0.1
"""From this calibration error on, probabilities should not be used as they are."""
ALWAYS = [
    "An interval covers other patients of the same kind, not other cameras, clinics or graders.",
    "Grades of one reader or one reading centre: their disagreement is part of the error.",
    "Before any other use, test it on photographs of the place where it is to be used, and fit calibration "
    "and threshold there.",
]


def caveats(metrics: Mapping[str, Any], defects: Sequence[str]) -> list[str]:
    """Return the lines of the section; those on results only where there is something to say.

    Args:
        metrics: entry of the experiment in ``metrics.json``.
        defects: known defects of the dataset that it is tested on.
    """
    return [f"- {line}" for line in (*weaknesses(metrics), *ALWAYS, *few(metrics), *defects)]


def weaknesses(metrics: Mapping[str, Any]) -> Iterator[str]:
    """Yield sentences on grades that are often missed, on missed disease and on poor probabilities."""
    for row in metrics["grades"]:
        if row["n"] >= FEWEST and row["recall"] < FOUND:
            grade = f"grade {row['grade']} ({GRADE_NAMES[row['grade']]})"
            yield f"Of the {row['n']} test photographs of {grade}, {row['recall']:.0%} are graded so."
    if metrics["accuracy"] < 1:
        yield (
            f"{metrics['accuracy']:.0%} of the test photographs get their grade; on average a score is "
            f"{metrics['mae']:.2f} grades off."
        )
    if far := distant(metrics["grades"]):
        yield far
    missed = 1 - (1.0 if metrics["referable_sensitivity"] is None else metrics["referable_sensitivity"])
    if missed > 0:
        yield f"{missed:.0%} of the photographs of grade 2 or more score below 1.5 and would be missed."
    errors = {row["method"]: row["ece"] for row in metrics["calibration"] if row["ece"] is not None}
    if errors.get("none", 0.0) >= OFF:
        after = [f"{error:.2f} after the method {name}" for name, error in errors.items() if name != "none"]
        yield (
            f"The probability of the named grade is off by {errors['none']:.2f} on average"
            + "".join(f", {one}" for one in after)
            + "; calibrate it before use."
        )


def distant(grades: Sequence[Mapping[str, Any]]) -> str:
    """Return a sentence on errors of two grades and more; empty if there are none.

    Args:
        grades: ``grades`` of the experiment in ``metrics.json``.
    """
    counts = np.array([row["predicted"] for row in grades])
    off = np.abs(np.subtract.outer(np.arange(len(counts)), np.arange(len(counts))))
    share = counts[off > 1].sum() / counts.sum()
    if not share:
        return ""
    furthest = off[counts > 0].max()
    return (
        f"{share:.0%} of the test photographs are graded two or more grades off; the furthest error is of "
        f"{furthest} grades."
    )


def few(metrics: Mapping[str, Any]) -> Iterator[str]:
    """Yield sentences on rare grades, and on patients that are not known."""
    scarce = [str(row["grade"]) for row in metrics["grades"] if row["n"] < SCARCE]
    if scarce:
        yield f"Fewer than {SCARCE} test photographs of grade {', '.join(scarce)}: recall there is rough."
    if metrics["n"] == metrics["patients"]:
        yield UNKNOWN
