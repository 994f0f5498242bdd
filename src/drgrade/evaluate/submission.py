"""Submission files of Kaggle's Diabetic Retinopathy Detection (2015), and their score.

A submission has the columns image and level (the grade 0-4), one line for each of the 53,576 photographs of
the test part. The competition scored it by quadratic weighted kappa (QWK), separately on the public part
(10,906 photographs) and on the private part (42,670), which decided the ranking. For EyePACS, the splits val
and test of ``index.scheme: official`` are these two parts.
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from drgrade.bootstrap import interval
from drgrade.data.eyepacs import USAGE
from drgrade.data.labels import key, read_labels
from drgrade.errors import UserError
from drgrade.evaluate.intervals import bootstrap
from drgrade.evaluate.metrics import qwk, to_grades
from drgrade.evaluate.predictions import gather
from drgrade.evaluate.thresholds import fit_thresholds, grades_by
from drgrade.files import atomic_write
from drgrade.params import Evaluate
from drgrade.tables import read_csv

DEFAULTS = Evaluate()
EYES = ("left", "right")


def write_submission(
    predictions: Sequence[Path],
    out: Path,
    *,
    external: str | None = None,
    sample: Path | None = None,
    thresholds: Literal["midpoints", "fitted"] = "midpoints",
    continuous: bool = False,
) -> None:
    """Write a CSV with the columns image and level, sorted by image.

    The score of a photograph is its mean over all trainings of the experiment.

    Args:
        predictions: ``predictions.parquet`` of one or more trainings (seeds, folds) of one experiment.
        out: the CSV.
        external: name of an external dataset, whose photographs are submitted in place of those of the splits
            val and test.
        sample: a CSV with a column image, such as Kaggle's sampleSubmission.csv: the submission must have
            exactly these images.
        thresholds: ``midpoints`` grades a score by 0.5, 1.5, 2.5 and 3.5; ``fitted`` by the thresholds with
            the best QWK of the mean scores on the validation photographs. These are the public part, whose
            own score is then too good; no private grade is used.
        continuous: add the column score, the mean score, 0-4.

    Raises:
        UserError: a table cannot be read or has an invalid score; there are several experiments; seeds have
            different photographs; there are no predictions to submit or to fit thresholds on; or the images
            differ from those of ``sample``.
    """
    name, table = _experiment(predictions)
    scores = mean_scores(_submitted(table, name, external), name)
    if sample is not None:
        _check_images(
            scores.index, _images(sample), name, sample,
            "photographs that are not used have a status and a reason in index.parquet",
        )  # fmt: skip
    values = scores.to_numpy()
    levels = to_grades(values) if thresholds == "midpoints" else _by_fitted(values, table, name)
    submission = pd.DataFrame({"image": scores.index, "level": levels})
    if continuous:
        submission["score"] = values
    with atomic_write(out) as partial:
        submission.to_csv(partial, index=False, lineterminator="\n")


def mean_scores(rows: pd.DataFrame, name: str) -> pd.Series:
    """Mean score of each photograph over the trainings of one experiment.

    Args:
        rows: predictions of one dataset, columns ``drgrade.schema.PREDICTIONS``.
        name: name of the experiment, for messages.

    Returns:
        Float64 scores, indexed by image_id in ascending order.

    Raises:
        UserError: a score is not a finite number, or a seed lacks a photograph that another one has.
    """
    score = rows["score"].to_numpy(np.float64, na_value=np.nan)
    to_grades(score, [f"{name}: {image}" for image in rows["image_id"]])  # raises; a mean would skip NaN
    by_seed = pd.Series(score).groupby([rows["image_id"].to_numpy(str), rows["seed"].to_numpy(int)]).mean()
    wide = by_seed.unstack()
    for seed, lacking in wide.isna().items():
        if lacking.any():
            raise UserError(
                f"{name}: seed {seed} lacks {lacking.sum()} photographs of other seeds, such as "
                f"{wide.index[lacking][0]}; train all seeds on the same index"
            )
    return wide.mean(axis=1)


def score_submission(
    submission: Path, solution: Path, params: Evaluate = DEFAULTS
) -> dict[str, dict[str, float]]:
    """Score a submission as Kaggle did, with 95 % intervals from a bootstrap over patients.

    Args:
        submission: CSV with the columns image and level; others are ignored.
        solution: retinopathy_solution.csv: image, level, Usage (Public or Private).
        params: number of bootstrap resamples, and their seed.

    Returns:
        For ``public``, ``private`` (as far as the solution has them) and ``all``: ``qwk``, ``qwk_low``,
        ``qwk_high``, ``n`` (photographs) and ``patients``.

    Raises:
        UserError: a file is missing or invalid (a level that is not 0-4, an image that occurs twice), or the
            images differ.
    """
    if not submission.is_file():
        raise UserError(f"{submission}: no such file; write it with the verb submission")
    levels = {key(label.image): label.grade for label in read_labels(submission, "image", "level")}
    truth = read_labels(solution, "image", "level", ("Usage",), allowed={"Usage": set(USAGE)})
    without = [label.image for label in truth if not label.other["Usage"]]
    if without:
        raise UserError(f"{solution}: {without[0]}: no Usage; it must be Public or Private")
    names = [key(label.image) for label in truth]
    _check_images(levels, names, str(submission), solution, "submit exactly the images of the test part")
    table = pd.DataFrame(
        {
            "usage": [label.other["Usage"].lower() for label in truth],
            "patient": [patient_of(name) for name in names],
            "grade": [label.grade for label in truth],
            "level": [levels[name] for name in names],
        }
    )
    parts = {usage: table[table["usage"] == usage] for usage in USAGE} | {"all": table}
    return {part: _measured(rows, params) for part, rows in parts.items() if len(rows)}


def patient_of(image: str) -> str:
    """The patient of an EyePACS photograph: its name without ``_left`` or ``_right``."""
    patient, _, eye = image.rpartition("_")
    return patient if patient and eye in EYES else image


def _measured(rows: pd.DataFrame, params: Evaluate) -> dict[str, float]:
    """QWK with its interval, and numbers of photographs and patients, of rows with grade and level."""
    grade, level = rows["grade"].to_numpy(np.int64), rows["level"].to_numpy(np.int64)
    draws = bootstrap(grade, level[None], rows["patient"], params.bootstrap, params.seed)
    low, high = map(float, interval(draws))
    counts = {"n": len(rows), "patients": rows["patient"].nunique()}
    return {"qwk": qwk(grade, level), "qwk_low": low, "qwk_high": high, **counts}


def _experiment(predictions: Sequence[Path]) -> tuple[str, pd.DataFrame]:
    """Name and predictions of the one experiment.

    Raises:
        UserError: there are none, or several, or a table is invalid.
    """
    found = gather(predictions)
    if len(found) != 1:
        names = ", ".join(found) or "none"
        raise UserError(f"predictions: a submission is of one experiment, not of {names}; name its tables")
    return next(iter(found.items()))


def _submitted(table: pd.DataFrame, name: str, external: str | None) -> pd.DataFrame:
    """The rows of the photographs to submit."""
    outside = table["split"] == "external"
    if external is None:
        rows = table[table["split"].isin(["val", "test"])]
        if rows.empty:
            raise UserError(f"{name}: no predictions of the splits val and test; name an external dataset")
        return rows
    rows = table[outside & (table["dataset"] == external)]
    if rows.empty:
        known = ", ".join(sorted(table.loc[outside, "dataset"].unique())) or "none"
        raise UserError(f"{name}: no predictions of the external dataset {external!r}; there are: {known}")
    return rows


def _by_fitted(scores: NDArray[np.float64], table: pd.DataFrame, name: str) -> NDArray[np.int8]:
    """Grade scores by thresholds that are fitted on the validation photographs."""
    val = table[(table["split"] == "val") & table["grade"].notna()]
    if val.empty:
        raise UserError(f"{name}: no graded validation photographs to fit thresholds on; use midpoints")
    known = mean_scores(val, name)
    grades = val.drop_duplicates("image_id").set_index("image_id")["grade"].loc[known.index]
    return grades_by(scores, fit_thresholds(known.to_numpy(), grades.to_numpy(int)))


def _images(sample: Path) -> list[str]:
    """The column image of a CSV.

    Raises:
        UserError: the file cannot be read or lacks the column, or an image is empty or occurs twice.
    """
    header, lines = read_csv(sample, "name a CSV with the images to submit")
    if "image" not in header:
        raise UserError(f"{sample}: line 1: no column 'image'; add it")
    seen: dict[str, int] = {}
    for number, cells in lines:
        image = cells.get("image", "")
        if not image:
            raise UserError(f"{sample}: line {number}: no image; fill it in or delete the line")
        if seen.setdefault(image, number) != number:
            raise UserError(f"{sample}: line {number}: {image} stands in line {seen[image]} already")
    return list(seen)


def _check_images(
    found: Collection[str], expected: Sequence[str], name: str, file: Path, remedy: str
) -> None:
    """Check that ``found``, the images of ``name``, are those of ``file``.

    Raises:
        UserError: they are not; gives the first missing and the first other image, and how many there are.
    """
    missing, others = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    problems = []
    if missing:
        problems.append(f"lacks {len(missing)} of the {len(expected)} images of {file}, first {missing[0]}")
    if others:
        problems.append(f"has {len(others)} images that {file} lacks, first {others[0]}")
    if problems:
        raise UserError(f"{name}: {' and '.join(problems)}; {remedy}")
