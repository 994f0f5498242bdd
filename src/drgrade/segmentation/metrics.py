"""Pixel-level metrics of a lesion segmentation, with 95 % intervals by a bootstrap over patients.

All metrics are computed from histograms: for each photograph and kind of lesion, the numbers of lesion pixels
and of other pixels at each level of probability. So memory does not grow with the number of pixels, and a
resample of the patients is a weighted sum of histograms.

Levels: a probability is first rounded down to a multiple of 1/65535, then to one of :data:`EDGES`. These are
finer than 1/1024 near 0 and 1, where networks trained with a Dice loss have most of their probabilities.
Pixels of one level are tied. This lowers the AUPR of continuous probabilities by less than 0.001.

Every metric takes ``weights`` (R, n), how often each of the n photographs counts, and returns R values;
undefined ones, for instance without any lesion pixel, are NaN.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from drgrade.bootstrap import interval, resample_weights

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

TOP = 65535
"""Code of probability 1."""
EDGES: Ints = np.union1d(
    [*range(0, TOP, 64), TOP],
    np.rint(TOP / (1 + np.exp(-np.linspace(-11, 11, 1024)))).astype(np.int64),
)
"""Lowest code of each level, ascending from 0: evenly spaced in probability and, in between, in its logit."""
LEVELS = len(EDGES)
NO_LEVEL = -1
"""In place of a threshold's level, where none could be chosen."""
METRICS = ("aupr", "auc", "photograph_aupr", "dice", "iou", "precision", "recall")
FEWEST = 5
"""Minimum number of patients for an interval; a bootstrap over fewer is not meaningful."""


@dataclass(frozen=True)
class Pixels:
    """Pixels of one kind of lesion in n photographs, by level of probability.

    A photograph in which the kind was not annotated has only zeros, so it does not count in any metric. One
    that was annotated but has no such lesion has ``other`` pixels, which count in the pooled metrics.

    Attributes:
        lesion: number of pixels on lesions, (n, LEVELS).
        other: number of all other pixels, (n, LEVELS).
    """

    lesion: Ints
    other: Ints

    @property
    def annotated(self) -> npt.NDArray[np.bool_]:
        """Whether the kind was annotated in each photograph, (n,)."""
        return (self.lesion.any(axis=1) | self.other.any(axis=1)).astype(bool)


def count(probability: npt.NDArray[np.float32], lesion: npt.NDArray[np.bool_]) -> tuple[Ints, Ints]:
    """Count the pixels of one photograph and kind by level of probability.

    Args:
        probability: 0-1, any shape.
        lesion: true on lesions, of the same shape.

    Returns:
        Numbers of lesion pixels and of other pixels, (LEVELS,) each.
    """
    codes = (probability * np.float32(TOP)).astype(np.uint16)
    every, on = (np.bincount(part, minlength=TOP + 1) for part in (codes.ravel(), codes[lesion]))
    return np.add.reduceat(on, EDGES), np.add.reduceat(every - on, EDGES)


def threshold_of(level: int) -> float | None:
    """Return the lowest probability of a level; None for :data:`NO_LEVEL`."""
    return None if level == NO_LEVEL else float(EDGES[level] / TOP)


def aupr(pixels: Pixels, weights: Floats) -> Floats:
    """Return the pooled area under the precision-recall curve (average precision); (R,).

    The sum of precision times the increase in recall over all thresholds, without interpolation, over the
    pixels of all photographs together, as in the segmentation challenge of IDRiD (Porwal et al., Medical
    Image Analysis 59, 2020). Ties share a threshold.
    """
    lesion, other = _falling(pixels, weights)
    found = lesion.cumsum(axis=1)
    precision = np.nan_to_num(_share(found, found + other.cumsum(axis=1)))
    return _share((precision * lesion).sum(axis=1), lesion.sum(axis=1))


def auc(pixels: Pixels, weights: Floats) -> Floats:
    """Return the pooled area under the ROC curve; ties count half; (R,)."""
    lesion, other = _falling(pixels, weights)
    higher = other.cumsum(axis=1) - other / 2
    alarms, every = (lesion * higher).sum(axis=1), other.sum(axis=1)
    return 1 - _share(alarms, lesion.sum(axis=1) * every)


def photograph_aupr(pixels: Pixels, weights: Floats) -> Floats:
    """Return the mean AUPR of the photographs that have a lesion of the kind, each on its own; (R,)."""
    each = aupr(pixels, np.eye(len(pixels.lesion)))
    known = ~np.isnan(each)
    return _share(weights[:, known] @ each[known], weights[:, known].sum(axis=1))


def best_level(pixels: Pixels) -> int:
    """Return the level from which on pixels are taken for lesions with the best pooled Dice coefficient.

    Choose it on validation photographs: figures on the photographs it was chosen on are optimistic. Of
    equally good levels the highest; never level 0, at which every pixel would be a lesion; :data:`NO_LEVEL`
    if there are no lesion pixels.
    """
    lesion, other = _falling(pixels, np.ones((1, len(pixels.lesion))))
    if not lesion.any():
        return NO_LEVEL
    found, alarms = lesion[0].cumsum()[:-1], other[0].cumsum()[:-1]
    dice = 2 * found / (found + alarms + lesion.sum()).clip(1)
    return LEVELS - 1 - int(dice.argmax())


def at_levels(pixels: Pixels, levels: Ints, weights: Floats) -> dict[str, Floats]:
    """Return Dice coefficient, IoU, precision and recall, pooled over the photographs; (R,) each.

    Args:
        pixels: of n photographs.
        levels: (n,), the level from which on the pixels of each photograph are taken for lesions; photographs
            with :data:`NO_LEVEL` do not count.
        weights: (R, n), see the module.

    Returns:
        By name: dice, iou, precision, recall. Precision is NaN if nothing is found, the others are NaN if
        there is no lesion.
    """
    kept = (np.arange(LEVELS) >= levels[:, None]) & (levels != NO_LEVEL)[:, None]
    used = weights * (levels != NO_LEVEL)
    hits, alarms = (used @ (part * kept).sum(axis=1) for part in (pixels.lesion, pixels.other))
    lesions = used @ pixels.lesion.sum(axis=1)
    some = np.where(lesions > 0, 1.0, np.nan)
    return {
        "dice": some * _share(2 * hits, hits + alarms + lesions),
        "iou": some * _share(hits, alarms + lesions),
        "precision": _share(hits, hits + alarms),
        "recall": _share(hits, lesions),
    }


def chance(pixels: Pixels) -> float:
    """Return the share of lesion pixels: the expected pooled AUPR of random probabilities."""
    lesion = pixels.lesion.sum()
    return float(_share(lesion, lesion + pixels.other.sum()))


def statistics(pixels: Pixels, levels: Ints, weights: Floats) -> dict[str, Floats]:
    """Return all of :data:`METRICS`, (R,) each; see the functions of these names and :func:`at_levels`."""
    areas = {"aupr": aupr, "auc": auc, "photograph_aupr": photograph_aupr}
    found = {name: metric(pixels, weights) for name, metric in areas.items()}
    return found | at_levels(pixels, levels, weights)


def segmentation_metrics(
    pixels: Mapping[str, Pixels],
    levels: Mapping[str, Ints],
    patients: Sequence[str],
    resamples: int,
    seed: int = 0,
) -> dict[str, Any]:
    """Compute the metrics of each kind of lesion and their means over the kinds, with intervals, for JSON.

    Args:
        pixels: by kind, of the same n photographs.
        levels: by kind, levels of the thresholds, see :func:`at_levels`.
        patients: (n,) patient of each photograph; the unit that is resampled.
        resamples: number of resamples.
        seed: random seed of the bootstrap.

    Returns:
        ``{"images", "patients", kind: row, ..., "mean": row}``. A row has each of :data:`METRICS` with its
        interval ``<name>_low`` and ``<name>_high``, and ``chance``; the rows of the kinds also have
        ``photographs`` (annotated) and ``with_lesion``. ``mean`` is over the kinds for which a metric is
        defined, ``chance`` over those with an AUPR. Fractions (0-1) rounded to six digits; None where
        undefined, and for intervals from fewer than 5 patients.
    """
    names, patient = np.unique(np.asarray(patients, str), return_inverse=True)
    once = np.ones((1, len(patient)))
    drawn = np.concatenate(list(resample_weights(len(names), resamples, seed)))[:, patient]
    rows: dict[str, dict[str, Any]] = {}
    values, draws, shares = [], [], []
    for kind, found in pixels.items():
        enough = len(set(patient[found.annotated])) >= FEWEST
        values.append(_stacked(statistics(found, levels[kind], once))[0])
        draws.append(_stacked(statistics(found, levels[kind], drawn)) * (1 if enough else np.nan))
        shares.append(chance(found))
        rows[kind] = _row(values[-1], draws[-1], shares[-1])
        rows[kind]["photographs"] = int(found.annotated.sum())
        rows[kind]["with_lesion"] = int(found.lesion.any(axis=1).sum())
    known = ~np.isnan(values)
    # NaN in a resample that lacks a kind that the sample itself has
    mean, means = (
        _share(np.where(known, np.stack(part, axis=-2), 0).sum(axis=-2), known.sum(axis=0))
        for part in (values, draws)
    )
    has_aupr = known[:, METRICS.index("aupr")]
    rows["mean"] = _row(mean, means, float(_share(np.where(has_aupr, shares, 0).sum(), has_aupr.sum())))
    return {"images": len(patient), "patients": len(names), **rows}


def _stacked(values: Mapping[str, Floats]) -> Floats:
    """Values of all :data:`METRICS`, (R, metrics)."""
    return np.stack([values[metric] for metric in METRICS], axis=1)


def _row(values: Floats, draws: Floats, share: float) -> dict[str, Any]:
    """A row for JSON from values (metrics,), resampled values (R, metrics) and the chance level."""
    row = {"chance": written(share)}
    for metric, value, low, high in zip(METRICS, values, *interval(draws), strict=True):
        defined = not np.isnan(value)
        row[metric] = written(value)
        row[f"{metric}_low"] = written(low) if defined else None
        row[f"{metric}_high"] = written(high) if defined else None
    return row


def written(value: float) -> float | None:
    """Return a fraction as it is written to JSON: six digits, None for NaN."""
    return None if np.isnan(value) else round(float(value), 6)


def _falling(pixels: Pixels, weights: Floats) -> tuple[Floats, Floats]:
    """Weighted sums of the histograms, highest level first: lesion and other pixels, (R, LEVELS) each."""
    lesion, other = (weights @ part.astype(np.float64) for part in (pixels.lesion, pixels.other))
    return lesion[:, ::-1], other[:, ::-1]


def _share(part: Any, whole: Any) -> Floats:
    """Return ``part / whole``, NaN where ``whole`` is 0."""
    part, whole = np.broadcast_arrays(np.asarray(part, np.float64), np.asarray(whole, np.float64))
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
