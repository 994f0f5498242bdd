"""Bootstrap intervals of QWK at the size of the EyePACS test, against the plain loop, in one run.

    uv run python benchmarks/bootstrap.py [--resamples 1000] [--seeds 3]

42,670 photographs of 21,335 patients. The loop resamples rows by patient and calls scikit-learn's kappa; it
is timed on its first resamples and must find the same values. The last line is one JSON object.
"""

import argparse
import json
import time

import numpy as np
from sklearn.metrics import cohen_kappa_score

from drgrade.bootstrap import resample_weights
from drgrade.evaluate.intervals import bootstrap

PATIENTS, LOOPED, FASTER = 21_335, 10, 20.0


def loop(y: np.ndarray, predicted: np.ndarray, resamples: int) -> np.ndarray:
    """Mean-over-seeds QWK of the first resamples (R,); both eyes of patient i are rows 2i and 2i + 1."""
    values = []
    for weights in next(resample_weights(PATIENTS, resamples, 1)):
        patients = np.repeat(np.arange(PATIENTS), weights.astype(int))
        rows = np.concatenate([2 * patients, 2 * patients + 1])
        kappas = [
            cohen_kappa_score(y[rows], one[rows], labels=range(5), weights="quadratic") for one in predicted
        ]
        values.append(np.mean(kappas))
    return np.array(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    # grade shares of EyePACS: 73, 7, 15, 2 and 2 per cent
    y = rng.choice(5, size=2 * PATIENTS, p=[0.735, 0.07, 0.151, 0.023, 0.021])
    noise = rng.normal(size=(arguments.seeds, len(y)))
    predicted = np.clip(np.round(y + 0.7 * noise), 0, 4).astype(int)
    names = np.array([f"{row // 2}" for row in range(len(y))])
    start = time.perf_counter()
    values = bootstrap(y, predicted, names, arguments.resamples, 1)
    ours = (time.perf_counter() - start) / arguments.resamples
    same = bootstrap(y, predicted, np.repeat(np.arange(PATIENTS), 2), LOOPED, 1)
    start = time.perf_counter()
    expected = loop(y, predicted, LOOPED)
    theirs = (time.perf_counter() - start) / LOOPED
    error = float(np.abs(same - expected).max())
    print(f"{1000 * ours:.2f} ms a resample, the loop {1000 * theirs:.1f} ms; largest difference {error:.1e}")
    result = {
        "name": "bootstrap_eyepacs",
        "value": round(ours * arguments.resamples, 2),
        "unit": f"s for {arguments.resamples} resamples of {len(y)} photographs, {arguments.seeds} seeds",
        "baseline": round(theirs * arguments.resamples, 1),
        "ratio": round(theirs / ours, 1),
        "target": FASTER,
        "holds": theirs / ours >= FASTER and error < 1e-9 and bool(np.isfinite(values).all()),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
