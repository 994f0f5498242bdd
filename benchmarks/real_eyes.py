"""How well the graders of params/idrid-official.yaml grade unseen eyes, and what each part adds.

    DRGRADE_IDRID_ROOT=/path/to/IDRiD uv run python benchmarks/real_eyes.py

IDRiD's official training photographs are divided into 5 folds, three times (``index.seed`` 1, 2 and 3).
Blocks of 8 consecutive numbers stay together, and so do copies. Features of frozen networks do not depend on
the folds, so they are computed once, in .cache/drgrade/benchmarks/real_eyes; a run that was killed goes on
there. The network that marks lesions is the one that a run of the params file trains, on all masks; the
figures without photographs that have masks are printed too. Each regression is fitted anew on the four other
folds, with its penalty and its spread. Intervals are over blocks; differences are paired, on the same
resamples of blocks. The last line is one JSON object: the QWK of the experiment ``best``, beside that of the
experiment ``lite0`` at 224 px.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import yaml
from checkout import ROOT, checkout
from matplotlib.figure import Figure

from drgrade.bootstrap import interval
from drgrade.encoders import create_encoder
from drgrade.evaluate.intervals import bootstrap
from drgrade.evaluate.metrics import accuracy, confusion, qwk, recall, to_grades
from drgrade.evaluate.reliability import brier_score, expected_calibration_error, top_label
from drgrade.evaluate.thresholds import fit_thresholds
from drgrade.files import atomic_write
from drgrade.grading.base import interpolated
from drgrade.grading.features import Frozen, features
from drgrade.grading.lesion_statistics import statistics_of
from drgrade.grading.models import load_model
from drgrade.grading.pooled import PooledLayers
from drgrade.grading.ridge import Regression, around, fit_ridge
from drgrade.images.contrast import without_local_mean
from drgrade.images.dataset import CroppedDataset
from drgrade.images.quasi import quasi_random
from drgrade.images.scaled import at_size
from drgrade.images.store import Images
from drgrade.params import Index, check
from drgrade.params.block import Augment, TestTime
from drgrade.report.sheets import error_sheet
from drgrade.splits.assign import assign_splits, label_subset
from drgrade.splits.duplicates import near_duplicates
from drgrade.weights.make import make

WORK = Path(".cache/drgrade/benchmarks/real_eyes")
PARAMS = ROOT / "params/idrid-official.yaml"
SEEDS, FOLDS, RESAMPLES = (1, 2, 3), 5, 2000
TARGET = 0.78
"""QWK to reach on the official test photographs."""
ALPHAS = [10.0 ** (power / 2) for power in range(13)]
LESIONS = "lesions"
"""Name of the view that is no encoder: the statistics of marked lesions."""
LITE0, LITE2, VIT = "tf_efficientnet_lite0", "tf_efficientnet_lite2", "vit_small_patch14_dinov2"
LAYERS, POOLINGS = (-3, -2, -1), ("mean", "std", "max", "gem")
VIT_LAYERS, VIT_POOLINGS = (3, 5, 7, 9, 11), ("token", "mean", "std", "max", "top", "bottom")
VIT_ROW = "ViT-S at 448 px, blocks 5 and 7, six poolings"
FLIPS = TestTime(transforms=4, sequence="flips")
SHARES = (0.05, 0.1, 0.25, 0.5, 1.0)


class View(NamedTuple):
    """Input of a regression.

    Attributes:
        encoder: timm name, or LESIONS.
        size: side of its images.
        layers: stages or blocks.
        pooling: how they are pooled.
        contrast: change of the images.
        flips: mean over the mirror images too.
    """

    encoder: str
    size: int
    layers: tuple[int, ...] = (-2, -1)
    pooling: tuple[str, ...] = ("mean",)
    contrast: str = ""
    flips: bool = False


Scores = np.ndarray
"""Scores (repeats, n) of left-out photographs."""


class Eyes:
    """The graded photographs, their folds and their features.

    Args:
        folder: of the Snakemake run that has indexed and cropped them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.data = folder, CroppedDataset("idrid", folder / "results/idrid")
        self.table = self.data.graded()
        self.grades = self.table["grade"].to_numpy(np.int64)
        self.rows = self.table["row"].to_numpy(np.int64)
        self.patients = self.table["patient_id"].to_numpy()
        self.folds = [self.divided(self.data.index, seed) for seed in SEEDS]
        self.known: dict[str, dict[str, np.ndarray]] = {}

    def divided(self, index: pd.DataFrame, seed: int) -> np.ndarray:
        """Fold of each photograph."""
        graded = index[index["subset"] == "grading"].drop(columns=["split", "fold"])
        params = Index(scheme="kfold", folds=FOLDS, seed=seed)
        divided = assign_splits(graded.assign(official_split="train"), params).set_index("image_id")
        return divided.loc[self.table["image_id"], "fold"].to_numpy(np.int64)

    def features(self, view: View) -> np.ndarray:
        """Features (n, D) of all photographs, computed once for all layers and poolings that are compared."""
        known = self.computed(view)
        return np.concatenate(
            [known[f"{layer} {way}"] for layer in view.layers for way in view.pooling], axis=1
        )

    def computed(self, view: View) -> dict[str, np.ndarray]:
        """Features by layer and pooling, from memory, from a file, or by the encoder."""
        changes = [view.contrast.replace(" ", "_"), "flips" * view.flips]
        name = "_".join([view.encoder, str(view.size), *filter(None, changes)])
        if name not in self.known:
            file = self.folder / "features" / f"{name}.npz"
            if not file.is_file():
                print(f"features: {name}", file=sys.stderr, flush=True)
                file.parent.mkdir(exist_ok=True)
                with atomic_write(file) as partial, partial.open("wb") as opened:
                    np.savez(opened, **self.by_encoder(view))
            with np.load(file) as saved:
                self.known[name] = dict(saved)
        return self.known[name]

    def by_encoder(self, view: View) -> dict[str, np.ndarray]:
        """The same by the encoder."""
        encoder, size = view.encoder, view.size
        if encoder == LESIONS:
            grader: Any = load_model(self.folder / f"results/idrid/grade/{LESIONS}/seed0/model")
            network = grader.network.segmentation
            return {"-1 mean": statistics_of(network, at_size(self.data.images, size), self.rows)}
        layers, ways = (VIT_LAYERS, VIT_POOLINGS) if encoder == VIT else (LAYERS, POOLINGS)
        backbone = create_encoder(encoder, "imagenet")
        frozen = Frozen(encoder, PooledLayers(backbone, layers, ways), size)
        frozen.changes = quasi_random(FLIPS, Augment()) if view.flips else None
        found = features(frozen, self.images(view.contrast), self.rows)
        info: Any = backbone.feature_info
        channels = [one["num_chs"] for one in info]
        widths = [channels[layer] for layer in layers for _ in ways]
        parts = np.split(found, np.cumsum(widths)[:-1], axis=1)
        return dict(zip([f"{layer} {way}" for layer in layers for way in ways], parts, strict=True))

    def images(self, contrast: str) -> Images:
        """The crops, as they are, or only their green channel, or without the local mean."""
        if not contrast:
            return self.data.images
        change: Callable[[np.ndarray], np.ndarray] = {
            "green": lambda crop: np.repeat(crop[..., 1:2], 3, axis=2), "local mean": without_local_mean,
        }[contrast]  # fmt: skip
        images = self.data.images
        return np.stack([change(np.asarray(images[row])) for row in range(len(images))])


def fits(
    eyes: Eyes, x: np.ndarray, *, folds: Sequence[np.ndarray] | None = None, share: float = 1.0
) -> Iterator[tuple[int, np.ndarray, np.ndarray, Regression]]:
    """Yield each division's number, training and test photographs of each fold, and the regression on x."""
    for number, fold in enumerate(folds or eyes.folds):
        for part in range(FOLDS):
            train, test = np.flatnonzero(fold != part), np.flatnonzero(fold == part)
            if share < 1:
                kept = label_subset(eyes.table.iloc[train], share, number)
                train = np.flatnonzero(eyes.table["image_id"].isin(kept))
            yield number, train, test, fit_ridge(x[train], eyes.grades[train], eyes.patients[train], ALPHAS)


def out_of_fold(eyes: Eyes, view: View, **options: Any) -> Scores:
    """Score of each photograph by a regression that has not seen its fold, once for each division."""
    return by_ridge(eyes, eyes.features(view), **options)


def by_ridge(eyes: Eyes, x: np.ndarray, *, stretch: bool = True, **options: Any) -> Scores:
    """The same for any features (n, D)."""
    found = np.empty((len(SEEDS), len(eyes.grades)))
    for number, train, test, fitted in fits(eyes, x, **options):
        used = fitted.stretched(eyes.grades[train].astype(float)) if stretch else fitted
        found[number, test] = x[test] @ used.weights + used.constant
    return np.clip(found, 0, 4)


def chances(eyes: Eyes, view: View) -> np.ndarray:
    """Probabilities (divisions, n, 5) in place of scores."""
    x, found = eyes.features(view), np.empty((len(SEEDS), len(eyes.grades), 5))
    for number, train, test, fitted in fits(eyes, x):
        grades = eyes.grades[train].astype(float)
        used = fitted.stretched(grades)
        found[number, test] = around(x[test] @ used.weights + used.constant, used.spread(grades))
    return found


def with_thresholds(eyes: Eyes, own: Mapping[str, View]) -> Scores:
    """Grades by thresholds that are fitted on the mean of the left-out scores of the training photographs."""
    found = np.empty((len(SEEDS), len(eyes.grades)))
    features = [eyes.features(view) for view in own.values()]
    for together in zip(*(fits(eyes, x) for x in features), strict=True):
        number, train, test, _ = together[0]
        grades = eyes.grades[train]
        used = [one[3].stretched(grades.astype(float)) for one in together]
        thresholds = fit_thresholds(np.mean([one.left_out for one in used], axis=0), grades)
        scores = [x[test] @ one.weights + one.constant for x, one in zip(features, used, strict=True)]
        found[number, test] = np.searchsorted(thresholds, np.mean(scores, axis=0), side="right")
    return found


def classified(eyes: Eyes, view: View) -> Scores:
    """The same by five-class logistic regression: the expected grade."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    found, x = [], eyes.features(view)
    for fold in eyes.folds:
        scores = np.empty(len(x))
        for part in range(FOLDS):
            train, test = fold != part, fold == part
            model = make_pipeline(StandardScaler(), LogisticRegression(C=0.001, max_iter=2000))
            scores[test] = model.fit(x[train], eyes.grades[train]).predict_proba(x[test]) @ np.arange(5)
        found.append(scores)
    return np.stack(found)


class Measured(NamedTuple):
    """QWK of out-of-fold scores: mean over the divisions, its resamples, and the accuracy."""

    qwk: float
    draws: np.ndarray
    accuracy: float


def measured(eyes: Eyes, scores: Scores) -> Measured:
    """Measure out-of-fold scores; all are resampled alike."""
    predicted = np.stack([to_grades(one) for one in scores])
    draws = bootstrap(eyes.grades, predicted, eyes.patients, RESAMPLES, 0)
    value = float(np.mean([qwk(eyes.grades, one) for one in predicted]))
    right = float(np.mean([accuracy(confusion(eyes.grades, one)) for one in predicted]))
    return Measured(value, draws, right)


def shipped() -> dict[str, View]:
    """The members of the experiment ``best`` in the params file, by name."""
    params = check(yaml.safe_load(PARAMS.read_text()), str(PARAMS))
    found = {}
    for name in params.experiments:
        one: Any = params.experiment(name)
        if one.grader == "ridge":
            found[name] = View(one.encoder, one.input_size, tuple(one.layers), tuple(one.pooling))
        if one.grader == "lesion_counts":
            found[name] = View(LESIONS, one.input_size, (-1,))
    return found


def singles(own: Mapping[str, View]) -> Iterator[tuple[str, View]]:
    """Single regressions to compare, the first with each of the others."""
    lite0 = own["lite0"]
    yield "lite0 at 640 px, last two stages, mean", lite0
    yield "mean over the photograph and three mirror images", lite0._replace(flips=True)
    for size in (224, 448):
        yield f"at {size} px", lite0._replace(size=size)
    yield "last stage only", lite0._replace(layers=(-1,))
    yield "last three stages", lite0._replace(layers=(-3, -2, -1))
    for pooling in (("max",), ("gem",), ("mean", "std")):
        yield f"pooled by {' and '.join(pooling)}", lite0._replace(pooling=pooling)
    yield "green channel", lite0._replace(contrast="green")
    yield "without the local mean (Graham)", lite0._replace(contrast="local mean")
    yield "lite2 at 640 px", own["lite2"]
    yield VIT_ROW, View(VIT, 448, (5, 7), VIT_POOLINGS)


def line(name: str, one: Measured, reference: Measured | None) -> str:
    """A row of a table in Markdown."""
    low, high = interval(one.draws)
    row = f"| {name} | {one.qwk:.3f} ({low:.3f} to {high:.3f}) | {one.accuracy:.3f} |"
    if reference is None or reference is one:
        return row + "  |"
    low, high = interval(one.draws - reference.draws)
    return row + f" {one.qwk - reference.qwk:+.3f} ({low:+.3f} to {high:+.3f}) |"


def compare(eyes: Eyes, title: str, rows: Mapping[str, Scores]) -> dict[str, Measured]:
    """Print a table: every row against the first."""
    print(f"\n| {title} | QWK (95 % interval) | accuracy | against the first row |\n|---|---|---|---|")
    found = {name: measured(eyes, scores) for name, scores in rows.items()}
    first = next(iter(found.values()))
    for name, one in found.items():
        print(line(name, one, first), flush=True)
    return found


def neighbours(eyes: Eyes, view: View) -> None:
    """Print how often the most similar photograph has a neighbouring number."""
    x = eyes.features(view)
    x = (x - x.mean(axis=0)) / x.std(axis=0).clip(1e-9)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    alike = x @ x.T
    np.fill_diagonal(alike, -1)
    number = eyes.table["image_id"].str.extract(r"(\d+)$")[0].astype(int).to_numpy()
    apart = np.abs(number[alike.argmax(axis=1)] - number)
    expected = 2 / len(x)
    print(
        f"\nmost similar photograph has the next or previous number: {np.mean(apart == 1):.1%} (by chance "
        f"{expected:.1%}); 2 or 3 numbers away: {np.mean((apart > 1) & (apart < 4)):.1%}"
    )


def without_drawn(eyes: Eyes, rows: Mapping[str, Scores]) -> None:
    """Print the same without photographs whose masks have trained the segmentation, as copies in part A."""
    index = eyes.data.index
    pairs = near_duplicates(index["phash"].tolist(), Index().duplicate_bits or 0)
    subset, names = index["subset"].to_numpy(), index["image_id"].to_numpy()
    drawn = {names[one] for a, b, _ in pairs if subset[a] != subset[b] for one in (a, b)}
    kept = ~eyes.table["image_id"].isin(drawn).to_numpy()
    found = {}
    for name, scores in rows.items():
        predicted = np.stack([to_grades(one) for one in scores[:, kept]])
        draws = bootstrap(eyes.grades[kept], predicted, eyes.patients[kept], RESAMPLES, 0)
        found[name] = float(np.mean([qwk(eyes.grades[kept], one) for one in predicted])), draws
    (one, draws), (other, others) = found.values()
    low, high = interval(draws - others)
    print(
        f"\nthe {kept.sum()} photographs without masks: {' and '.join(found)} {one:.3f} and {other:.3f}, "
        f"difference {one - other:+.3f} ({low:+.3f} to {high:+.3f})"
    )


def by_grade(eyes: Eyes, scores: Scores, own: Mapping[str, View]) -> None:
    """Print recall and mean score by grade, the confusion matrix, calibration, and the worst errors."""
    matrices = np.stack([confusion(eyes.grades, to_grades(one)) for one in scores])
    print("\n| grade | photographs | recall | predicted 0, 1, 2, 3, 4 (mean of 3 divisions) |")
    print("|---|---|---|---|")
    for grade, (share, row) in enumerate(zip(recall(matrices).mean(0), matrices.mean(0), strict=True)):
        print(f"| {grade} | {round(row.sum())} | {share:.2f} | {', '.join(f'{one:.1f}' for one in row)} |")
    found = [chances(eyes, view) for view in own.values()]
    for name, used in (("mixture of the regressions' probabilities", np.mean(found, axis=0)),
                       ("interpolated from the score", [interpolated(one) for one in scores])):  # fmt: skip
        error = np.mean([expected_calibration_error(*top_label(eyes.grades, one)) for one in used])
        brier = np.mean([brier_score(eyes.grades, one) for one in used])
        print(f"{name}: calibration error (15 bins) {error:.3f}, Brier score {brier:.3f}")
    off = np.abs(scores.mean(axis=0) - eyes.grades)
    worst = np.argsort(-off)[:12]
    named = [
        f"{eyes.table['image_id'].iloc[row]} (grade {eyes.grades[row]}, score {scores[:, row].mean():.1f})"
        for row in worst
    ]
    print("worst:", "; ".join(named))


def chart(tables: Mapping[str, Mapping[str, Measured]], path: Path) -> None:
    """Draw the QWK of each row of each table with its 95 % interval."""
    figure = Figure(figsize=(8, 0.3 * sum(map(len, tables.values())) + 1.5), layout="constrained")
    heights = [len(rows) for rows in tables.values()]
    panels = figure.subplots(len(tables), 1, sharex=True, height_ratios=heights, squeeze=False)[:, 0]
    for panel, (title, rows) in zip(panels, tables.items(), strict=True):
        places = np.arange(len(rows))
        values = np.array([one.qwk for one in rows.values()])
        low, high = np.array([interval(one.draws) for one in rows.values()]).T
        panel.errorbar(values, places, xerr=[values - low, high - values], fmt="o", markersize=4)
        panel.set_yticks(places, list(rows), fontsize=8)
        panel.set_title(title, fontsize=9, loc="left")
        panel.invert_yaxis()
        panel.grid(axis="x", alpha=0.3)
    panels[-1].set_xlabel("quadratic weighted kappa, out of fold")
    figure.savefig(path, dpi=110)


def error_pictures(eyes: Eyes, scores: Scores, path: Path) -> None:
    """Draw the photographs whose mean score is furthest from their grade."""
    score = scores.mean(axis=0)
    predicted = to_grades(score).astype(int)
    table = eyes.table.assign(
        predicted=predicted, probability=interpolated(score)[np.arange(len(score)), predicted],
        distance=np.abs(score - eyes.grades),
    )  # fmt: skip
    error_sheet(table.sort_values("distance", ascending=False).head(12), eyes.data.crops, path)


def report(best: Measured, baseline: Measured) -> None:
    """Print the last line."""
    low, high = interval(best.draws)
    print(json.dumps({
        "name": "real_eyes", "value": round(best.qwk, 3), "unit": "QWK out of fold",
        "baseline": round(baseline.qwk, 3), "ratio": round(best.qwk / baseline.qwk, 3), "target": TARGET,
        "holds": bool(best.qwk >= TARGET), "interval": [round(float(low), 3), round(float(high), 3)],
    }))  # fmt: skip


def report_gain(name: str, one: Measured, other: Measured) -> None:
    """Print the last line of a benchmark that asks whether the first is better than the second."""
    low, high = interval(one.draws - other.draws)
    print(json.dumps({
        "name": name, "value": round(one.qwk, 3), "unit": "QWK out of fold",
        "baseline": round(other.qwk, 3), "ratio": round(one.qwk / other.qwk, 3),
        "target": "the difference above 0 with its 95 % interval", "holds": bool(low > 0),
        "interval": [round(float(low), 3), round(float(high), 3)],
    }))  # fmt: skip


def main() -> None:
    values = yaml.safe_load(PARAMS.read_text())
    folder = WORK / "idrid"
    checkout(folder, values)
    targets = ["grade_best"]
    began = time.perf_counter()
    subprocess.run(["snakemake", "--cores", "2", "--", *targets], cwd=folder, check=True, stdout=sys.stderr)
    print(f"training on all photographs took {(time.perf_counter() - began) / 60:.0f} minutes")
    os.chdir(folder)
    own = shipped()
    for encoder in (LITE2, VIT):
        print(make(encoder), file=sys.stderr)
    eyes = Eyes(Path())
    neighbours(eyes, View(LITE0, 448, (-3,), ("mean", "max", "gem")))
    rows = {name: out_of_fold(eyes, view) for name, view in singles(own)}
    rows["not stretched"] = out_of_fold(eyes, own["lite0"], stretch=False)
    rows["logistic regression in place of ridge"] = classified(eyes, own["lite0"])
    alone = eyes.data.index.assign(patient_id=eyes.data.index["image_id"])
    random = [eyes.divided(alone, seed) for seed in SEEDS]
    rows["folds of single photographs (not to be trusted)"] = out_of_fold(eyes, own["lite0"], folds=random)
    tables = {"one regression": compare(eyes, "one regression", rows)}
    members = {name: out_of_fold(eyes, view) for name, view in own.items()}
    mean = np.mean(list(members.values()), axis=0)
    mirrored = [view._replace(flips=view.encoder != LESIONS) for view in own.values()]
    ensembles = {
        "best: lite0, lite2 and lesions": mean,
        "with fitted thresholds": with_thresholds(eyes, own),
        **{f"{name} alone": scores for name, scores in members.items()},
        "lite0 and lite2": (members["lite0"] + members["lite2"]) / 2,
        "with mirror images": np.mean([out_of_fold(eyes, view) for view in mirrored], axis=0),
        "with ViT-S": (3 * mean + rows[VIT_ROW]) / 4,
        "with lite0 at 448 px": (3 * mean + rows["at 448 px"]) / 4,
    }
    tables["mean of regressions"] = compare(eyes, "mean of regressions", ensembles)
    without_drawn(eyes, {"best": mean, "lite0 and lite2": ensembles["lite0 and lite2"]})
    curve = {
        f"{share:.0%} of the labels": np.mean(
            [out_of_fold(eyes, view, share=share) for view in own.values()], axis=0
        )
        for share in reversed(SHARES)
    }
    tables["best with fewer labels"] = compare(eyes, "best with fewer labels", curve)
    by_grade(eyes, mean, own)
    chart(tables, Path("idrid_official.png"))
    error_pictures(eyes, mean, Path("idrid_errors.png"))
    report(next(iter(tables["mean of regressions"].values())), tables["one regression"]["at 224 px"])


if __name__ == "__main__":
    main()
