"""Lesion-level metrics of a detector: FROC, precision and recall at a score, sensitivity by size, intervals.

Free-response ROC (Bunch et al., 1977): sensitivity against false positives per image, evaluated at 1/8 to 8
false positives per image as in the Retinopathy Online Challenge (Niemeijer et al., 2010). An image is a
whole photograph if detections were merged per photograph, otherwise a tile; the two cannot be compared.

Every metric takes ``weights`` (R, photographs), how often each photograph counts, and returns R values:
weights of one give the metric itself, those of :func:`drgrade.bootstrap.resample_weights` its bootstrap.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from drgrade.bootstrap import interval, resample_weights
from drgrade.errors import UserError
from drgrade.lesions.matching import Matches
from drgrade.schema import LESIONS

Floats = NDArray[np.float64]
Statistic = Callable[[Matches, Floats], Floats]
RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""False positives per image at which a FROC curve is evaluated."""
SIDES = (8.0, 16.0, 32.0)
"""Inclusive upper bounds of the box size classes, by longer side in pixels; a last class has no bound."""
RESAMPLES = 1000
FEWEST = 5
"""Minimum number of photographs for a confidence interval; a bootstrap over fewer is not meaningful."""
RECALLS = np.linspace(0, 1, 101)


def once(matches: Matches) -> Floats:
    """Return weights (1, photographs) of ones: each photograph counts once."""
    return np.ones((1, len(matches.names)))


def sensitivity(matches: Matches, weights: Floats, rates: tuple[float, ...] = RATES) -> Floats:
    """Return the sensitivity (share of lesions found) at each false-positive rate per image; (R, rates).

    It is taken at the lowest score threshold at which the rate is not exceeded. A curve that ends at a lower
    rate is extended at its last value. NaN if there are no lesions.
    """
    truth = matches.truth.sort_values("score", ascending=False, kind="stable")
    false = matches.found[~matches.found["hit"]]  # by falling score
    images = weights @ np.bincount(matches.photograph, minlength=len(matches.names))
    alarms = _weights(matches, false, weights).cumsum(axis=1)
    lesions = np.pad(_weights(matches, truth, weights).cumsum(axis=1), ((0, 0), (1, 0)))
    # the score of the first false positive beyond the rate: the threshold must lie above it
    limits = np.append(false["score"].to_numpy(np.float64), -np.inf)
    falling = -truth["score"].to_numpy(np.float64)
    rows, found = np.arange(len(weights)), []
    for rate in rates:
        within = (alarms <= rate * images[:, None]).sum(axis=1)
        found.append(lesions[rows, np.searchsorted(falling, -limits[within])])
    return _share(np.stack(found, axis=1), lesions[:, -1:])


def mean_sensitivity(matches: Matches, weights: Floats) -> Floats:
    """Return the mean of :func:`sensitivity` over ``RATES``, the score of a FROC curve; (R,)."""
    return sensitivity(matches, weights).mean(axis=1)


def ap50(matches: Matches, weights: Floats) -> Floats:
    """Return COCO's AP50 (101 recalls), mean over the kinds with lesions; (R,). NaN if there are no lesions.

    All detections count, whereas COCO itself takes only the best 100 for each kind and image.
    """
    kinds = [_ap(matches.of(lesion), weights) for lesion in sorted(matches.truth["lesion"].unique())]
    known = ~np.isnan(kinds)
    return (
        _share(np.where(known, kinds, 0).sum(axis=0), known.sum(axis=0)) if kinds else weights[:, 0] * np.nan
    )


def best_score(matches: Matches) -> float | None:
    """Return the score threshold with the highest F1 (ties: the highest threshold); None if nothing is found.

    Choose it on validation photographs: metrics on the photographs it was chosen on are optimistic. It is
    rounded down to six digits, so that the written value still includes the detection it was taken from.
    """
    scores = matches.found["score"].to_numpy(np.float64)
    hits = matches.found["hit"].to_numpy().cumsum()
    if not len(hits) or not hits[-1]:
        return None
    f1 = 2 * hits / (np.arange(1, len(hits) + 1) + len(matches.truth))
    f1[:-1][scores[:-1] == scores[1:]] = -1  # equal scores pass a threshold together
    return float(np.floor(scores[f1.argmax()] * 1e6) / 1e6)


def at_scores(
    matches: Matches, scores: Mapping[str, float | None], weights: Floats
) -> tuple[Floats, Floats, Floats]:
    """Return precision, recall and F1 of the detections at or above their lesion's threshold; (R,) each.

    Args:
        matches: matched lesions and detections.
        scores: threshold by lesion, from :func:`best_score`; with None, no detection of that kind counts.
        weights: (R, photographs), see the module.

    Returns:
        Values over all kinds of lesion together; NaN where the denominator is 0.
    """
    kept = matches.found[_reaches(matches.found, scores)]
    alarms = _weights(matches, kept[~kept["hit"]], weights).sum(axis=1)
    hits = _weights(matches, kept[kept["hit"]], weights).sum(axis=1)
    lesions = _weights(matches, matches.truth, weights).sum(axis=1)
    return (
        _share(hits, hits + alarms),
        _share(hits, lesions),
        np.where(lesions > 0, _share(2 * hits, hits + alarms + lesions), np.nan),
    )


def by_size(matches: Matches, scores: Mapping[str, float | None]) -> tuple[list[int], list[float]]:
    """Return the number of lesions and the share found at ``scores``, by size class (``SIDES``)."""
    # boxes on tiles are rounded to a thousandth, so 8.001 counts as 8
    kind = np.searchsorted(SIDES, matches.truth["side"].round(2))
    lesions = np.bincount(kind, minlength=len(SIDES) + 1)
    found = np.bincount(kind[_reaches(matches.truth, scores)], minlength=len(SIDES) + 1)
    return lesions.tolist(), _share(found, lesions).tolist()


def bootstrap(matches: Matches, statistic: Statistic, number: int = RESAMPLES, seed: int = 0) -> Floats:
    """Return the statistic on each bootstrap resample of the photographs; (number, ...)."""
    draws = resample_weights(len(matches.names), number, seed)
    return np.concatenate([statistic(matches, weights) for weights in draws])


def paired_difference(
    first: Matches, second: Matches, statistic: Statistic, number: int = RESAMPLES, seed: int = 0
) -> dict[str, float]:
    """Compare two detectors by a paired bootstrap over photographs, with a 95 % interval.

    Args:
        first: matches of one detector.
        second: matches of the other on the same photographs, whole or in tiles.
        statistic: for instance ``ap50``, or ``lambda m, w: sensitivity(m.of("MA"), w, (1.0,))[:, 0]``.
        number: number of resamples.
        seed: random seed of the resamples.

    Returns:
        ``first`` and ``second`` (the statistic of each), ``difference``, its interval ``low`` and ``high``,
        and ``better``: the share of resamples in which ``first`` has the higher value.

    Raises:
        UserError: the two were not matched on the same photographs.
    """
    apart = set(first.names) ^ set(second.names)
    if apart:
        raise UserError(f"{min(apart)}: searched by one detector only; compare them on the same photographs")
    one, other = (float(statistic(matches, once(matches))[0]) for matches in (first, second))
    gain = bootstrap(first, statistic, number, seed) - bootstrap(second, statistic, number, seed)
    low, high = interval(gain)
    better = float((gain > 0).sum() / max((~np.isnan(gain)).sum(), 1))
    values = {
        "first": one,
        "second": other,
        "difference": one - other,
        "low": float(low),
        "high": float(high),
    }
    return values | {"better": better}


def froc_metrics(
    matches: Matches, scores: Mapping[str, float | None] | None = None, seed: int = 0
) -> dict[str, Any]:
    """Compute all metrics of this module, for all kinds of lesion together (``all``) and for each, for JSON.

    Args:
        matches: matched lesions and detections of the detector.
        scores: thresholds by lesion; if None, they are chosen on these same matches.
        seed: random seed of the bootstrap.

    Returns:
        ``{"images", "photographs", "rates", "sides", "all": row, "MA": row, ...}``, a row being
        ``{"boxes", "AP50", "mean_sensitivity", "sensitivity", "low", "high", "score", "precision", "recall",
        "F1", "F1_low", "F1_high", "size_boxes", "size_sensitivity"}`` (``all`` has no ``score``: each kind
        has its own); fractions (0-1) rounded to six digits; None where undefined: no lesions, or an interval
        from fewer than 5 photographs.
    """
    own = {lesion: best_score(matches.of(lesion)) for lesion in LESIONS}
    chosen = own if scores is None else scores
    rows = {"all": _row(matches, chosen, seed)} | {
        lesion: {**_row(matches.of(lesion), chosen, seed), "score": chosen.get(lesion)} for lesion in LESIONS
    }
    head = {"images": len(matches.photograph), "photographs": len(matches.names)}
    return head | {"rates": list(RATES), "sides": list(SIDES)} | rows


def _row(matches: Matches, scores: Mapping[str, float | None], seed: int) -> dict[str, Any]:
    def f1(some: Matches, weights: Floats) -> Floats:
        return at_scores(some, scores, weights)[2]

    weights = once(matches)
    precision, recall, best = (float(values[0]) for values in at_scores(matches, scores, weights))
    size_boxes, size_sensitivity = by_size(matches, scores)
    low = high = np.full(len(RATES), np.nan)
    f1_low = f1_high = np.array(np.nan)
    if len(matches.names) >= FEWEST and len(matches.truth):
        low, high = interval(bootstrap(matches, sensitivity, seed=seed))
        f1_low, f1_high = interval(bootstrap(matches, f1, seed=seed))
    row = {
        "AP50": float(ap50(matches, weights)[0]),
        "mean_sensitivity": float(mean_sensitivity(matches, weights)[0]),
        "sensitivity": sensitivity(matches, weights)[0].tolist(),
        "low": low.tolist(),
        "high": high.tolist(),
        "precision": precision,
        "recall": recall,
        "F1": best,
        "F1_low": float(f1_low),
        "F1_high": float(f1_high),
        "size_sensitivity": size_sensitivity,
    }
    return {name: _written(value) for name, value in row.items()} | {
        "boxes": len(matches.truth),
        "size_boxes": size_boxes,
    }


def _ap(matches: Matches, weights: Floats) -> Floats:
    hit = matches.found["hit"].to_numpy()
    counted = _weights(matches, matches.found, weights)
    hits, all_found = (counted * hit).cumsum(axis=1), counted.cumsum(axis=1)
    lesions = _weights(matches, matches.truth, weights).sum(axis=1, keepdims=True)
    recall = _share(hits, lesions)
    precision = np.nan_to_num(_share(hits, all_found))
    # interpolated precision: the best at this recall or a higher one; 0 beyond the highest recall
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    best = np.pad(best, ((0, 0), (0, 1)))
    read = [row[np.searchsorted(known, RECALLS)].mean() for row, known in zip(best, recall, strict=True)]
    return np.where(lesions[:, 0] > 0, read, np.nan)


def _weights(matches: Matches, table: pd.DataFrame, weights: Floats) -> Floats:
    """Return the weight of each row's photograph; (R, rows)."""
    return weights[:, matches.photograph[table["image"].to_numpy()]]


def _reaches(table: pd.DataFrame, scores: Mapping[str, float | None]) -> NDArray[np.bool_]:
    """Return a mask of the rows whose score is at or above the threshold of their lesion."""
    limits = {lesion: np.inf if score is None else score for lesion, score in scores.items()}
    return (table["score"] >= table["lesion"].map(limits).astype(np.float64)).to_numpy()


def _share(part: Any, whole: Any) -> Floats:
    """Return ``part / whole``, NaN where ``whole`` is 0."""
    part, whole = np.broadcast_arrays(np.asarray(part, np.float64), np.asarray(whole, np.float64))
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)


def _written(value: Any) -> Any:
    if isinstance(value, list):
        return [_written(item) for item in value]
    return None if np.isnan(value) else round(value, 6)
