"""The stage ``evaluate``: compare all experiments, using their prediction tables and the training grades.

The leaderboard shows the split ``test``; with cross-validation these are the out-of-fold predictions.
Scores are converted to grades at the midpoints and, for comparison, at thresholds fitted on validation
photographs. Two baselines are always in it. The results of the same models on external datasets are written
to a separate table.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from drgrade.evaluate.baselines import MAJORITY, baselines
from drgrade.evaluate.calibrate import read_calibration
from drgrade.evaluate.comparisons import holm, paired_p_value
from drgrade.evaluate.costs import PARAMETERS, training_costs, weights_of
from drgrade.evaluate.curves import learning_curves, reliability_bins, roc
from drgrade.evaluate.decisions import Decided, decide, decision_tables
from drgrade.evaluate.errors import worst_errors
from drgrade.evaluate.fits import by_whose, fit_experiment
from drgrade.evaluate.fitted import tested, tested_externally
from drgrade.evaluate.measures import FITTED, ends, measure, seed_values
from drgrade.evaluate.metrics import confusion
from drgrade.evaluate.pages import LEVEL, write_pages
from drgrade.evaluate.predictions import Measured, gather, same_photographs
from drgrade.evaluate.selection import VAL_QWK, best_validated, validation_qwk
from drgrade.files import atomic_write, write_json
from drgrade.params import Calibrate, Evaluate
from drgrade.report.curve_plots import learning_chart, reliability_chart, risk_chart, roc_chart
from drgrade.report.plots import confusion_chart, leaderboard_chart

log = logging.getLogger(__name__)

DIGITS = 6
DETECTION = (
    "macro_auroc", "referable_auprc", "sight_threatening_auc", "sight_threatening_auprc",
    "referable_sensitivity_at_specificity_87", "ece", "ece_calibrated", "brier", "brier_calibrated",
)  # fmt: skip
"""Columns on detection and calibration, of both tables."""
COLUMNS = (
    "experiment", "qwk", "qwk_low", "qwk_high", "qwk_sd", "seeds", "n", "patients", "accuracy",
    "balanced_accuracy", "macro_f1", "mae", "referable_auc", "referable_sensitivity", "referable_specificity",
    *FITTED, "vs_majority", "vs_majority_low", "vs_majority_high", "vs_best", "vs_best_low", "vs_best_high",
    *DETECTION, "p_vs_best", "p_vs_best_holm", PARAMETERS,
)  # fmt: skip
"""Columns of ``leaderboard.csv``."""
EXTERNAL_COLUMNS = ("dataset", *COLUMNS[:13], *FITTED, "drop", *DETECTION)
"""Columns of ``external.csv``; ``drop`` is the QWK on the own test photographs minus that on these."""


def evaluate(
    predictions: Sequence[Path], graded: pd.DataFrame, calibration: Path, params: Evaluate, out: Path
) -> None:
    """Evaluate all experiments on their common test photographs.

    Writes ``metrics.json`` (by experiment: means over seeds, intervals, calibration, per grade, per seed,
    fitted thresholds, QWK on validation photographs), ``leaderboard.csv`` (highest ``qwk`` first),
    ``external.csv`` (the same for each external dataset, in the leaderboard's order; only a header if there
    are none), ``confusion.csv`` (first seed: experiment, actual, predicted), the tables of
    :func:`write_decisions` and :func:`write_errors_and_learning`, ``figures/``, and with times ``costs.csv``
    and the pages of :mod:`.pages`.

    Args:
        predictions: one ``predictions.parquet`` for each training of each experiment; ``training.json`` and
            ``cost.json`` beside it, if they are there, say what the training cost, and ``history.csv`` how
            it went.
        graded: graded photographs of the dataset with their split, for the baselines; see
            :meth:`drgrade.images.dataset.CroppedDataset.graded`.
        calibration: ``calibration.json`` of the stage calibrate.
        params: number of bootstrap resamples and their seed.
        out: folder to write to.

    Raises:
        UserError: a table is damaged, or the experiments were not tested on the same photographs.
    """
    tables = gather(predictions)
    fitted = read_calibration(calibration)
    same_photographs([tested(name, table, {}) for name, table in tables.items()])
    fits = {name: fitted.of(name) for name in tables}
    calibrated = set(tables)
    for name, predicted in baselines(next(iter(tables.values())), graded).items():
        if name not in tables:
            tables[name], fits[name] = predicted, by_whose(fit_experiment(name, predicted, fitted.params))
    experiments = [tested(name, table, fits[name]) for name, table in tables.items()]
    results = {one.name: measure(one, params) for one in experiments}
    costs = training_costs([path.with_name("training.json") for path in predictions])
    weights = weights_of(costs)
    metrics = {
        name: result.entry | {PARAMETERS: weights.get(name), VAL_QWK: validation_qwk(tables[name])}
        for name, result in results.items()
    }
    table = leaderboard(metrics, {name: result.draws for name, result in results.items()})
    write_json(rounded(metrics), out / "metrics.json")
    write_csv(table, out / "leaderboard.csv")
    write_csv(costs.round(DIGITS), out / "costs.csv")
    write_pages(table, costs, experiments[0].dataset, params.bootstrap, out)
    elsewhere = [one for name, table in tables.items() for one in tested_externally(name, table, fits[name])]
    write_csv(external(elsewhere, table, params), out / "external.csv")
    place = {name: row for row, name in enumerate(table["experiment"])}
    draw(sorted(experiments, key=lambda experiment: place[experiment.name]), table, out)
    decided = [decide(name, tables[name], fits[name]) for name in table["experiment"] if name in calibrated]
    write_decisions([one for one in decided if one is not None], fitted.params, params, out)
    trained = {name: tables[name] for name in table["experiment"] if name in calibrated}
    write_errors_and_learning(trained, predictions, out)
    for row in table.itertuples():
        log.info("%s: QWK %.3f (%.3f to %.3f)", row.experiment, row.qwk, row.qwk_low, row.qwk_high)


def write_decisions(decided: Sequence[Decided], calibrate: Calibrate, params: Evaluate, out: Path) -> None:
    """Write ``operating.csv``, ``sets.csv`` and ``risk_coverage.csv``; see :mod:`.decisions`.

    Also ``roc.csv`` and ``reliability.csv``, see :mod:`.curves`, and the figures ``roc.png``,
    ``reliability.png`` and ``risk_coverage.png``.
    """
    tables = decision_tables(decided, calibrate, params)
    tables |= {"roc": roc(decided), "reliability": reliability_bins(decided)}
    for name, table in tables.items():
        write_csv(table.round(DIGITS), out / f"{name}.csv")
    figures = out / "figures"
    roc_chart(tables["roc"], tables["operating"], calibrate.point, figures / "roc.png")
    reliability_chart(tables["reliability"], figures / "reliability.png")
    risk_chart(tables["risk_coverage"], figures / "risk_coverage.png")


def write_errors_and_learning(
    tables: Mapping[str, pd.DataFrame], predictions: Sequence[Path], out: Path
) -> None:
    """Write ``errors.csv`` (:func:`.worst_errors`) and ``learning_curves.csv``, with a figure of the latter.

    Args:
        tables: predictions by experiment, in the order of the rows of ``errors.csv``.
        predictions: paths of the trainings' tables, beside each its ``history.csv``.
        out: folder to write to.
    """
    errors = pd.concat([worst_errors(name, table) for name, table in tables.items()])
    write_csv(errors.round(DIGITS), out / "errors.csv")
    learned = learning_curves(predictions)
    write_csv(learned, out / "learning_curves.csv")
    learning_chart(learned, out / "figures/learning_curves.png")


def draw(ranked: Sequence[Measured], table: pd.DataFrame, out: Path) -> None:
    """Write ``confusion.csv`` and the figures.

    Args:
        ranked: the experiments in the leaderboard's order.
        table: the leaderboard.
        out: folder to write to.
    """
    write_csv(pd.concat([first_seed(one) for one in ranked]), out / "confusion.csv")
    leaderboard_chart(table, {one.name: seed_values(one) for one in ranked}, out / "figures/leaderboard.png")
    matrices = {f"{one.name}, seed {one.seeds[0]}": confusion(one.grades, one.predicted[0]) for one in ranked}
    confusion_chart(matrices, out / "figures/confusion.png")


def final_results(predictions: Sequence[Path]) -> tuple[dict[str, float], str | None]:
    """Return the test QWK of each experiment and the best experiment, for the tracking server.

    Returns:
        Test QWK by experiment, mean over seeds; and the experiment with the highest mean *validation* QWK
        (models must not be selected on the test set), the first one on a tie, or None if there are no
        validation predictions.
    """
    results, held_out = {}, {}
    for name, table in gather(predictions).items():
        results[name] = float(np.mean(seed_values(tested(name, table, {}))))
        held_out[name] = validation_qwk(table)
    return results, best_validated(held_out)


def leaderboard(metrics: Mapping[str, dict[str, Any]], draws: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Return the leaderboard with the columns COLUMNS: one row per experiment, best QWK first.

    Intervals and p-values of differences are paired: both experiments are evaluated on the same resamples.
    ``p_vs_best_holm`` is corrected for the number of comparisons with the best.

    Args:
        metrics: entries of ``metrics.json``, with that of the baseline MAJORITY.
        draws: QWK on each resample (R,), by experiment.
    """
    best = min(metrics, key=lambda name: (-metrics[name]["qwk"], name))
    rows = []
    for name, values in metrics.items():
        row = {"experiment": name, **values, "seeds": len(values["seeds"])}
        for column, other in (("vs_majority", MAJORITY), ("vs_best", best)):
            if other != name:
                row[column] = values["qwk"] - metrics[other]["qwk"]
                row[f"{column}_low"], row[f"{column}_high"] = ends(draws[name] - draws[other])
        row["p_vs_best"] = paired_p_value(draws[name], draws[best]) if name != best else np.nan
        rows.append(row)
    table = pd.DataFrame(rows).assign(p_vs_best_holm=lambda table: holm(table["p_vs_best"]))
    warn_of_few_resamples(comparisons=len(rows) - 1, resamples=len(draws[best]))
    table = table.reindex(columns=list(COLUMNS))
    table = table.sort_values(["qwk", "experiment"], ascending=[False, True], ignore_index=True).round(DIGITS)
    return table.astype({PARAMETERS: "Int64"})


def warn_of_few_resamples(comparisons: int, resamples: int) -> None:
    """Log a warning if no corrected p-value can reach LEVEL: the smallest is 2 M / (R + 1)."""
    smallest = 2 * comparisons / (resamples + 1)
    if smallest > LEVEL:
        log.warning(
            "p_vs_best_holm: with %d comparisons and %d resamples it is at least %.2g, never below %g; "
            "raise evaluate.bootstrap to %d",
            comparisons, resamples, smallest, LEVEL, np.ceil(2 * comparisons / LEVEL),
        )  # fmt: skip


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
            values = measure(one, params).entry
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
