"""The stage ``evaluate``: compare all experiments, using their prediction tables only.

The leaderboard shows the split ``test``; with cross-validation these are the out-of-fold predictions.
Scores are converted to grades at the midpoints and, for comparison, at thresholds fitted on validation
photographs. The results of the same models on external datasets are written to a separate table.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from drgrade.bootstrap import interval
from drgrade.evaluate.intervals import bootstrap
from drgrade.evaluate.metrics import confusion, qwk, recall, summary
from drgrade.evaluate.predictions import Measured, gather, same_photographs, tested, tested_externally
from drgrade.files import atomic_write, write_json
from drgrade.params import Evaluate
from drgrade.report.plots import confusion_chart, leaderboard_chart
from drgrade.schema import GRADES

log = logging.getLogger(__name__)

BASELINE = "majority"
DIGITS = 6
PER_SEED = ("qwk", "accuracy", "macro_f1", "mae", "referable_auc")
"""Metrics in ``metrics.json`` for each training seed; for other metrics it has only the mean over seeds."""
FITTED = (
    "qwk_fitted", "qwk_fitted_low", "qwk_fitted_high", "fitted_gain", "fitted_gain_low", "fitted_gain_high",
)  # fmt: skip
"""QWK with thresholds fitted on validation photographs, and its gain over ``qwk``; both with intervals.

Empty if a training has no validation photographs.
"""
COLUMNS = (
    "experiment", "qwk", "qwk_low", "qwk_high", "qwk_sd", "seeds", "n", "patients", "accuracy",
    "balanced_accuracy", "macro_f1", "mae", "referable_auc", "referable_sensitivity", "referable_specificity",
    *FITTED, "vs_majority", "vs_majority_low", "vs_majority_high", "vs_best", "vs_best_low", "vs_best_high",
)  # fmt: skip
"""Columns of ``leaderboard.csv``."""
EXTERNAL_COLUMNS = ("dataset", *COLUMNS[:13], *FITTED, "drop")
"""Columns of ``external.csv``; ``drop`` is the QWK on the own test photographs minus that on these."""


def evaluate(predictions: Sequence[Path], params: Evaluate, out: Path) -> None:
    """Evaluate all experiments on their common test photographs.

    Writes ``metrics.json`` (by experiment: means over seeds, intervals, per grade, per seed, fitted
    thresholds), ``leaderboard.csv`` (highest ``qwk`` first), ``external.csv`` (the same for each external
    dataset, in the leaderboard's order; only a header if there are none), ``confusion.csv`` (first seed:
    experiment, actual, predicted), ``figures/leaderboard.png`` and ``figures/confusion.png``.

    Args:
        predictions: one ``predictions.parquet`` for each training of each experiment.
        params: number of bootstrap resamples and their seed.
        out: folder to write to.

    Raises:
        UserError: a table is damaged, or the experiments were not tested on the same photographs.
    """
    tables = gather(predictions)
    experiments = [tested(name, table) for name, table in tables.items()]
    same_photographs(experiments)
    draws = {experiment.name: resampled(experiment, params) for experiment in experiments}
    metrics = {one.name: measure(one, draws[one.name], params) for one in experiments}
    table = leaderboard(metrics, draws)
    write_json(rounded(metrics), out / "metrics.json")
    write_csv(table, out / "leaderboard.csv")
    elsewhere = [one for name, table in tables.items() for one in tested_externally(name, table)]
    write_csv(external(elsewhere, table, params), out / "external.csv")
    ranked = sorted(experiments, key=lambda experiment: list(table["experiment"]).index(experiment.name))
    write_csv(pd.concat([first_seed(experiment) for experiment in ranked]), out / "confusion.csv")
    leaderboard_chart(table, {one.name: seed_values(one) for one in ranked}, out / "figures/leaderboard.png")
    matrices = {f"{one.name}, seed {one.seeds[0]}": confusion(one.grades, one.predicted[0]) for one in ranked}
    confusion_chart(matrices, out / "figures/confusion.png")
    for row in table.itertuples():
        log.info("%s: QWK %.3f (%.3f to %.3f)", row.experiment, row.qwk, row.qwk_low, row.qwk_high)


def final_results(predictions: Sequence[Path]) -> tuple[dict[str, float], str | None]:
    """Return the test QWK of each experiment and the best experiment, for the tracking server.

    Returns:
        Test QWK by experiment, mean over seeds; and the experiment with the highest mean *validation* QWK
        (models must not be selected on the test set), the first one on a tie, or None if there are no
        validation predictions.
    """
    results, held_out = {}, {}
    for name, table in gather(predictions).items():
        results[name] = float(np.mean(seed_values(tested(name, table))))
        val = table[(table["split"] == "val") & table["grade"].notna() & table["predicted"].notna()]
        if len(val):
            by_seed = [qwk(rows["grade"], rows["predicted"]) for _, rows in val.groupby("seed")]
            held_out[name] = np.mean(by_seed)
    return results, max(held_out, key=lambda name: held_out[name]) if held_out else None


def seed_values(experiment: Measured) -> list[float]:
    """Return the test QWK of each seed."""
    return [qwk(experiment.grades, predicted) for predicted in experiment.predicted]


def resampled(experiment: Measured, params: Evaluate) -> np.ndarray:
    """Return the QWK, mean over seeds, on each bootstrap resample of the patients; (R,)."""
    return bootstrap(
        experiment.grades, experiment.predicted, experiment.patients, params.bootstrap, params.seed
    )


def measure(experiment: Measured, draws: np.ndarray, params: Evaluate) -> dict[str, Any]:
    """Return the entry of one experiment in ``metrics.json``.

    All metrics but those in FITTED use the grades at the midpoints.

    Args:
        experiment: test predictions.
        draws: (R,) values from :func:`resampled`.
        params: number of bootstrap resamples and their seed, as for ``draws``.
    """
    seeds = [
        summary(experiment.grades, predicted, score)
        for predicted, score in zip(experiment.predicted, experiment.score, strict=True)
    ]
    low, high = map(float, interval(draws))
    matrices = np.stack([confusion(experiment.grades, predicted) for predicted in experiment.predicted])
    counts, recalls = matrices[0].sum(axis=1), recall(matrices).mean(axis=0)
    return {
        **{name: float(np.mean([values[name] for values in seeds])) for name in seeds[0]},
        "qwk_low": low,
        "qwk_high": high,
        "qwk_sd": float(np.std([values["qwk"] for values in seeds], ddof=1)) if len(seeds) > 1 else np.nan,
        **measure_fitted(experiment, draws, params),
        "n": len(experiment.photographs),
        "patients": int(experiment.photographs["patient_id"].nunique()),
        # lists, because `dvc metrics show` skips them and so shows one column per metric and experiment
        "grades": [
            {"grade": grade, "n": int(counts[grade]), "recall": float(recalls[grade])} for grade in GRADES
        ],
        "seeds": [
            {"seed": seed, **{name: values[name] for name in PER_SEED}}
            for seed, values in zip(experiment.seeds, seeds, strict=True)
        ],
        "thresholds": [
            {"seed": seed, "fold": fold, "thresholds": list(thresholds)}
            for (seed, fold), thresholds in experiment.thresholds.items()
        ],
    }


def measure_fitted(experiment: Measured, draws: np.ndarray, params: Evaluate) -> dict[str, float]:
    """Return the metrics in FITTED; NaN if there are no fitted thresholds.

    The interval of the gain is paired: both kinds of thresholds are evaluated on the same resamples.
    """
    if experiment.fitted is None:
        return dict.fromkeys(FITTED, np.nan)
    by_seed = [qwk(experiment.grades, predicted) for predicted in experiment.fitted]
    value, gain = np.mean(by_seed), np.mean(by_seed) - np.mean(seed_values(experiment))
    fitted = resampled(replace(experiment, predicted=experiment.fitted), params)
    values = value, *interval(fitted), gain, *interval(fitted - draws)
    return dict(zip(FITTED, map(float, values), strict=True))


def leaderboard(metrics: Mapping[str, dict[str, Any]], draws: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Return the leaderboard with the columns COLUMNS: one row per experiment, best QWK first.

    Intervals of differences are paired: both experiments are evaluated on the same resamples. The columns
    ``vs_majority`` are empty if there is no experiment ``majority``.
    """
    best = min(metrics, key=lambda name: (-metrics[name]["qwk"], name))
    rows = []
    for name, values in metrics.items():
        row = {"experiment": name, **values, "seeds": len(values["seeds"])}
        for column, other in (("vs_majority", BASELINE), ("vs_best", best)):
            if other in metrics and other != name:
                row[column] = values["qwk"] - metrics[other]["qwk"]
                ends = interval(draws[name] - draws[other])
                row[f"{column}_low"], row[f"{column}_high"] = map(float, ends)
        rows.append(row)
    table = pd.DataFrame(rows).reindex(columns=list(COLUMNS))
    return table.sort_values(["qwk", "experiment"], ascending=[False, True], ignore_index=True).round(DIGITS)


def external(measured: Sequence[Measured], table: pd.DataFrame, params: Evaluate) -> pd.DataFrame:
    """Return the results of each experiment on each external dataset, with the columns EXTERNAL_COLUMNS.

    Args:
        measured: test predictions, one for each experiment and dataset.
        table: the leaderboard.
        params: number of bootstrap resamples and their seed.

    Raises:
        UserError: experiments were tested on different photographs of a dataset.
    """
    own = table.set_index("experiment")["qwk"]
    place = {name: row for row, name in enumerate(table["experiment"])}
    rows = []
    for dataset in sorted({one.dataset for one in measured}):
        there = sorted((one for one in measured if one.dataset == dataset), key=lambda one: place[one.name])
        same_photographs(there)
        for one in there:
            values = measure(one, resampled(one, params), params)
            about = {"dataset": dataset, "experiment": one.name, "seeds": len(one.seeds)}
            rows.append({**values, **about, "drop": float(own[one.name]) - values["qwk"]})
    return pd.DataFrame(rows).reindex(columns=list(EXTERNAL_COLUMNS)).round(DIGITS)


def first_seed(experiment: Measured) -> pd.DataFrame:
    """Return the actual grade of each photograph and the one predicted with the first seed."""
    return pd.DataFrame(
        {"experiment": experiment.name, "actual": experiment.grades, "predicted": experiment.predicted[0]}
    )


def rounded(value: Any) -> Any:
    """Round nested numbers to 6 digits; NaN, which JSON cannot represent, becomes None."""
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    if isinstance(value, float):
        return None if np.isnan(value) else round(value, DIGITS)
    return value


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Write a table to a CSV file atomically."""
    with atomic_write(path) as partial:
        table.to_csv(partial, index=False, lineterminator="\n")
