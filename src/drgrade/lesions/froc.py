"""Lesion-level figures of a detector: FROC, precision and recall at a score, sensitivity by size, intervals.

Free-response ROC (Bunch et al., 1977): sensitivity against false alarms for each image, read at 1/8 to 8 of
them as in the Retinopathy Online Challenge (Niemeijer et al., 2010). An image is what the matches were made
on: a photograph where detections were merged to photographs, a tile where they were not; the two cannot be
compared.

Every figure takes ``weights`` (R, photographs), how often each photograph counts, and gives R values: ones
give the figure itself, those of :func:`drgrade.bootstrap.resample_weights` its bootstrap.
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
"""False alarms for each image at which a FROC curve is read."""
SIDES = (8.0, 16.0, 32.0)
"""Upper ends, inclusive, of the classes of box sides in pixels; the last class is open."""
RESAMPLES = 1000
FEWEST = 5
"""Photographs below which an interval would claim a precision that resampling so few cannot have."""
RECALLS = np.linspace(0, 1, 101)


def once(matches: Matches) -> Floats:
    """Weights (1, photographs) under which each photograph counts once."""
    return np.ones((1, len(matches.names)))


def sensitivity(matches: Matches, weights: Floats, rates: tuple[float, ...] = RATES) -> Floats:
    """Share of the lesions that is found at so many false alarms for each image; (R, rates).

    At the lowest threshold with no more than the rate; a curve that ends before goes on level. NaN without
    a lesion.
    """
    truth = matches.truth.sort_values("score", ascending=False, kind="stable")
    false = matches.found[~matches.found["hit"]]  # by falling score
    images = weights @ np.bincount(matches.photograph, minlength=len(matches.names))
    alarms = _weights(matches, false, weights).cumsum(axis=1)
    lesions = np.pad(_weights(matches, truth, weights).cumsum(axis=1), ((0, 0), (1, 0)))
    # the score at which one alarm too many comes in: thresholds lie above it
    limits = np.append(false["score"].to_numpy(np.float64), -np.inf)
    falling = -truth["score"].to_numpy(np.float64)
    rows, found = np.arange(len(weights)), []
    for rate in rates:
        within = (alarms <= rate * images[:, None]).sum(axis=1)
        found.append(lesions[rows, np.searchsorted(falling, -limits[within])])
    return _share(np.stack(found, axis=1), lesions[:, -1:])


def mean_sensitivity(matches: Matches, weights: Floats) -> Floats:
    """Mean of :func:`sensitivity` over ``RATES``: one number for a FROC curve; (R,)."""
    return sensitivity(matches, weights).mean(axis=1)


def ap50(matches: Matches, weights: Floats) -> Floats:
    """COCO's AP50 (101 recalls), mean over the kinds that have a lesion; (R,). NaN without a lesion.

    All detections count; COCO's own takes the best 100 of a kind and image.
    """
    kinds = [_ap(matches.of(lesion), weights) for lesion in sorted(matches.truth["lesion"].unique())]
    known = ~np.isnan(kinds)
    return (
        _share(np.where(known, kinds, 0).sum(axis=0), known.sum(axis=0)) if kinds else weights[:, 0] * np.nan
    )


def best_score(matches: Matches) -> float | None:
    """The score threshold of the highest F1, the highest such; None when no threshold finds a lesion.

    Choose on validation photographs: what is reported on those it was chosen on is a little too good.
    Rounded down to six digits, so that it can be written and still lets its own detection in.
    """
    scores = matches.found["score"].to_numpy(np.float64)
    hits = matches.found["hit"].to_numpy().cumsum()
    if not len(hits) or not hits[-1]:
        return None
    f1 = 2 * hits / (np.arange(1, len(hits) + 1) + len(matches.truth))
    f1[:-1][scores[:-1] == scores[1:]] = -1  # equal scores come in together
    return float(np.floor(scores[f1.argmax()] * 1e6) / 1e6)


def at_scores(
    matches: Matches, scores: Mapping[str, float | None], weights: Floats
) -> tuple[Floats, Floats, Floats]:
    """Precision, recall and F1 of the detections that reach the threshold of their lesion; (R,) each.

    Args:
        matches: of any photographs.
        scores: threshold by lesion, of :func:`best_score`; without one (None), no detection counts.
        weights: as of the module.

    Returns:
        Over all kinds together; NaN where there is nothing to divide by.
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
    """Lesions, and the share of them found at ``scores``, by the longer side of their box (``SIDES``)."""
    # tiles' boxes are rounded to a thousandth: 8.001 is a box of 8
    kind = np.searchsorted(SIDES, matches.truth["side"].round(2))
    lesions = np.bincount(kind, minlength=len(SIDES) + 1)
    found = np.bincount(kind[_reaches(matches.truth, scores)], minlength=len(SIDES) + 1)
    return lesions.tolist(), _share(found, lesions).tolist()


def bootstrap(matches: Matches, statistic: Statistic, number: int = RESAMPLES, seed: int = 0) -> Floats:
    """The statistic on each resample of the photographs; (number, ...)."""
    draws = resample_weights(len(matches.names), number, seed)
    return np.concatenate([statistic(matches, weights) for weights in draws])


def paired_difference(
    first: Matches, second: Matches, statistic: Statistic, number: int = RESAMPLES, seed: int = 0
) -> dict[str, float]:
    """How much better ``first`` is than ``second``, with its 95 % interval over photographs.

    Args:
        first: matches of one detector.
        second: of the other, on the same photographs; whole or in tiles.
        statistic: for instance ``ap50``, or ``lambda m, w: sensitivity(m.of("MA"), w, (1.0,))[:, 0]``.
        number: of resamples.
        seed: of the draws.

    Returns:
        ``first``, ``second``, ``difference``, ``low``, ``high``, and ``better``: the share of the resamples
        in which ``first`` is ahead.

    Raises:
        UserError: the two were not made on the same photographs.
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
    """Everything above for all kinds together (``all``) and for each, ready for JSON.

    Args:
        matches: of the detector.
        scores: thresholds by lesion; without them they are chosen here, on these very matches.
        seed: of the bootstrap.

    Returns:
        ``{"images", "photographs", "rates", "sides", "all": row, "MA": row, ...}``, a row being
        ``{"boxes", "AP50", "mean_sensitivity", "sensitivity", "low", "high", "score", "precision", "recall",
        "F1", "F1_low", "F1_high", "size_boxes", "size_sensitivity"}`` (no ``score`` for all together: each
        kind has its own); fractions of 1 rounded to six digits, None where there is none: no lesion, or
        intervals from fewer than 5 photographs.
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
    # the best precision at this recall or a higher one; 0 beyond the last
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    best = np.pad(best, ((0, 0), (0, 1)))
    read = [row[np.searchsorted(known, RECALLS)].mean() for row, known in zip(best, recall, strict=True)]
    return np.where(lesions[:, 0] > 0, read, np.nan)


def _weights(matches: Matches, table: pd.DataFrame, weights: Floats) -> Floats:
    """Weight of each row's photograph; (R, rows)."""
    return weights[:, matches.photograph[table["image"].to_numpy()]]


def _reaches(table: pd.DataFrame, scores: Mapping[str, float | None]) -> NDArray[np.bool_]:
    """Which rows have a score that their lesion's threshold lets in."""
    limits = {lesion: np.inf if score is None else score for lesion, score in scores.items()}
    return (table["score"] >= table["lesion"].map(limits).astype(np.float64)).to_numpy()


def _share(part: Any, whole: Any) -> Floats:
    """The part over the whole, NaN where the whole is 0."""
    part, whole = np.broadcast_arrays(np.asarray(part, np.float64), np.asarray(whole, np.float64))
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)


def _written(value: Any) -> Any:
    if isinstance(value, list):
        return [_written(item) for item in value]
    return None if np.isnan(value) else round(value, 6)
