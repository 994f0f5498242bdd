"""Prediction tables and probabilities to measure."""

import numpy as np
import pandas as pd
from scipy.special import softmax

from drgrade.evaluate import leaderboard
from drgrade.evaluate.calibrate import FILE, calibrate
from drgrade.params import Calibrate
from drgrade.schema import PREDICTIONS, write_table

PATIENTS = 30
TRAINING = [0, 0, 0, 0, 1, 2, 2, 2, 3, 4]
"""Training grades: the most common is 0."""


def drawn(photographs, confidence=1.0, seed=0):
    """Grades drawn from softmax(logits), and softmax(confidence * logits): calibrated if confidence is 1."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=2, size=(photographs, 5))
    chosen = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)  # a draw from softmax(logits)
    return chosen, softmax(confidence * logits, axis=1)


def predictions(name, noise, seeds=(0,), split="test", rng_seed=0):
    """Both eyes of the same patients in every experiment; the more noise, the worse the grades."""
    truth = np.repeat(np.random.default_rng(11).integers(0, 5, PATIENTS), 2)
    tables = []
    for seed in seeds:
        rng = np.random.default_rng([rng_seed, seed])
        score = np.clip(truth + noise * rng.normal(size=len(truth)), 0, 4)
        grades = np.clip(np.floor(score + 0.5), 0, 4)
        table = pd.DataFrame(
            {
                "dataset": "own",
                "image_id": [f"{patient}_{eye}" for patient in range(PATIENTS) for eye in ("left", "right")],
                "patient_id": np.repeat(np.arange(PATIENTS), 2).astype(str),
                "eye": ["left", "right"] * PATIENTS,
                "split": split,
                "grade": truth,
                "score": score,
                "predicted": grades,
                "experiment": name,
                "seed": seed,
                "fold": pd.NA,
            }
        )
        for grade in range(5):
            table[f"p{grade}"] = (grades == grade).astype(float)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def written(folder, *tables):
    """A table a training, as the stage grade writes them."""
    paths = []
    for table in tables:
        for seed, rows in table.groupby("seed"):
            experiment = str(rows["experiment"].iloc[0])
            paths.append(folder / experiment / f"seed{seed}" / "predictions.parquet")
            write_table(rows, paths[-1], PREDICTIONS)
    return paths


def scored(name, factors, split="test"):
    """Exact predictions whose score is the truth times a factor, one for each seed."""
    tables = [predictions(name, 0, seeds=(seed,), split=split) for seed in range(len(factors))]
    scores = [table["score"] * factor for table, factor in zip(tables, factors, strict=True)]
    return pd.concat(
        [
            table.assign(score=score, predicted=np.floor(score + 0.5))
            for table, score in zip(tables, scores, strict=True)
        ]
    )


def in_folds(folder, factors):
    """Tables of two folds, validated on each other, as ``select: best`` makes them.

    The score is the truth times the factor of the model (by seed and fold), also on an external dataset.
    """
    paths = []
    for (seed, fold), factor in factors.items():
        test = scored("one", [factor]).iloc[fold::2]
        val = scored("one", [factor], split="val").iloc[1 - fold :: 2]
        there = scored("one", [factor], split="external").assign(dataset="site")
        for grade in range(5):  # the score is shared between the two neighbouring grades
            there[f"p{grade}"] = (1 - (there["score"] - grade).abs()).clip(lower=0)
        paths.append(folder / f"seed{seed}_fold{fold}/predictions.parquet")
        table = pd.concat([test, val, there]).assign(seed=seed, fold=fold)
        write_table(table, paths[-1], PREDICTIONS)
    return paths


def graded(folds=None):
    """The graded photographs of the dataset: TRAINING and the tested ones; with the fold of each patient."""
    tested = predictions("any", 0)[["image_id", "patient_id", "grade"]].assign(split="test")
    train = pd.DataFrame({"grade": TRAINING, "split": "train"})
    train["image_id"] = train["patient_id"] = [f"train_{place}" for place in range(len(train))]
    table = pd.concat([tested, train], ignore_index=True).assign(fold=pd.NA)
    if folds is not None:
        table = table.assign(split="train", fold=[place % folds for place in range(len(table))])
    return table.astype({"grade": "Int8", "fold": "Int8"})


def evaluate(paths, graded, params, out):
    """The stages calibrate and evaluate, one after the other."""
    calibrate(paths, Calibrate(), out / "calibrate")
    leaderboard.evaluate(paths, graded, out / "calibrate" / FILE, params, out)
