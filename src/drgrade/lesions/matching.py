"""Match detections to lesions; the lesion-level metrics (:mod:`.froc`) are counted from these matches.

A detection can only match a lesion of the same kind on the same image. Detections are matched greedily in
order of falling score, each to the best lesion that is still unmatched. A detection without a match is a
false positive; this includes a second box on a lesion that is already matched. Because of the order, raising
the score threshold only removes the last matches, so one matching serves all thresholds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from drgrade.errors import UserError

Rule = Literal["iou", "centre"]
CORNERS = ["x1", "y1", "x2", "y2"]
LEAST_IOU = 0.5


@dataclass(frozen=True)
class Matches:
    """Lesions and detections after matching.

    Attributes:
        truth: image (position in the list of images), lesion, x1, y1, x2, y2, side (the longer one), score
            (of the matched detection, ``-inf`` if there is none).
        found: image, lesion, x1, y1, x2, y2, score, hit (bool: matched); by falling score.
        photograph: (images,) position in ``names`` of each image's photograph; images of one photograph are
            resampled together in a bootstrap.
        names: names of the photographs, sorted.
    """

    truth: pd.DataFrame
    found: pd.DataFrame
    photograph: NDArray[np.intp]
    names: list[Any]

    def of(self, lesion: str) -> "Matches":
        """Return the matches of one kind of lesion, on all images."""
        return replace(
            self,
            truth=self.truth[self.truth["lesion"] == lesion],
            found=self.found[self.found["lesion"] == lesion],
        )


def match(
    truth: pd.DataFrame,
    found: pd.DataFrame,
    images: Sequence[Any],
    photographs: Sequence[Any] | None = None,
    rule: Rule = "iou",
    min_side: float = 0,
) -> Matches:
    """Match detections to lesions.

    Args:
        truth: the lesions: image_id, x1, y1, x2, y2, lesion.
        found: the detections: the same columns and score, for instance ``lesions.parquet``; in the same
            pixel coordinates as ``truth``.
        images: identifiers of all images that were searched, including those without a box.
        photographs: the photograph of each image, if images are tiles; by default each image is its own.
        rule: ``iou``: boxes have an IoU of 0.5 or more, highest IoU first (COCO's rule); ``centre``: the
            detection's centre lies in the lesion's box, nearest centre first, as in FROC studies of
            microaneurysms (Niemeijer et al., 2010): for a box of 6 px, a shift of two pixels already gives
            a low IoU although the detection still points at the lesion.
        min_side: lesion boxes with shorter sides are enlarged to this around their centres for matching, as
            in training (``lesion_boxes.min_side`` over ``scale``, in original pixels): a detector trained
            on boxes of 8 px cannot reach an IoU of 0.5 with one of 4 px. ``side`` is measured before that.

    Raises:
        UserError: a box is on an image that is not listed.
    """
    place = {image: number for number, image in enumerate(images)}
    for table, name in ((truth, "truth"), (found, "found")):
        unknown = set(table["image_id"]) - set(place)
        if unknown:
            raise UserError(f"{min(unknown)}: has boxes ({name}) but is not among the images; list it too")
    found = found.assign(image=found["image_id"].map(place).astype(np.intp))
    found = found.sort_values(["score", "image"], ascending=[False, True], kind="stable", ignore_index=True)
    truth = truth.assign(image=truth["image_id"].map(place).astype(np.intp)).reset_index(drop=True)
    hit, score = np.zeros(len(found), bool), np.full(len(truth), -np.inf)
    scores = found["score"].to_numpy(np.float64)
    free = np.ones(len(truth), bool)
    for detection, lesion in _candidates(_grown(truth, min_side), found, rule):
        if free[lesion] and not hit[detection]:
            free[lesion], hit[detection], score[lesion] = False, True, scores[detection]
    corners = truth[CORNERS].to_numpy(np.float64)
    side = (corners[:, 2:] - corners[:, :2]).max(axis=1, initial=0)
    shown = images if photographs is None else photographs
    names, photograph = np.unique(np.array(list(shown)), return_inverse=True)
    return Matches(
        truth[["image", "lesion", *CORNERS]].assign(side=side, score=score),
        found[["image", "lesion", *CORNERS]].assign(score=scores, hit=hit),
        photograph,
        names.tolist(),
    )


def iou(boxes: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the IoU (n,) of boxes (n, 4) with others (n, 4), row by row; 0 for two empty boxes."""
    sides = np.minimum(boxes[:, 2:], others[:, 2:]) - np.maximum(boxes[:, :2], others[:, :2])
    shared = np.prod(np.maximum(sides, 0), axis=1)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) + np.prod(others[:, 2:] - others[:, :2], axis=1)
    return shared / np.maximum(areas - shared, np.finfo(np.float64).tiny)


def _grown(truth: pd.DataFrame, min_side: float) -> pd.DataFrame:
    """Enlarge lesion boxes to sides of at least ``min_side`` around their centres."""
    corners = truth[CORNERS].to_numpy(np.float64)
    grow = np.maximum(min_side - (corners[:, 2:] - corners[:, :2]), 0) / 2
    grown = np.concatenate([corners[:, :2] - grow, corners[:, 2:] + grow], axis=1)
    return truth.assign(**dict(zip(CORNERS, grown.T, strict=True)))


def _candidates(truth: pd.DataFrame, found: pd.DataFrame, rule: Rule) -> list[tuple[int, int]]:
    """Return the pairs (detection, lesion) allowed by the rule: by detection, then best lesion first."""
    pairs = found.reset_index(names="detection").merge(
        truth.reset_index(names="target"), on=["image", "lesion"], suffixes=("", "_of")
    )
    boxes = pairs[CORNERS].to_numpy(np.float64)
    others = pairs[[f"{corner}_of" for corner in CORNERS]].to_numpy(np.float64)
    if rule == "iou":
        overlap = iou(boxes, others)
        allowed, worse = overlap >= LEAST_IOU, -overlap
    else:
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        allowed = ((centres >= others[:, :2]) & (centres < others[:, 2:])).all(axis=1)
        worse = np.linalg.norm(centres - (others[:, :2] + others[:, 2:]) / 2, axis=1)
    pairs = pairs.assign(worse=worse)[allowed].sort_values(["detection", "worse", "target"])
    return list(zip(pairs["detection"].tolist(), pairs["target"].tolist(), strict=True))
