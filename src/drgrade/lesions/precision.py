"""Average precision and recall of lesion boxes, by the COCO protocol."""

from typing import Any

import numpy as np

from drgrade.schema import LESIONS

MAX_DETECTIONS = 100
"""Maximum number of detections per kind of lesion and tile, best scores first; COCO's default."""


def average_precision(truth: dict[str, Any], detections: list[dict[str, Any]]) -> dict[str, Any]:
    """Return AP and AR100 (means over IoU 0.50:0.95), AP50 and AP75, for all lesions and for each kind.

    Args:
        truth: a COCO file's content: images, annotations, categories.
        detections: COCO results: image_id, category_id, bbox [x, y, width, height], score.

    Returns:
        ``{"AP", "AP50", "AP75", "AR100", "lesions": {"MA": {the same, "boxes"}, ...}}``, fractions (0-1)
        rounded to six digits; None for a kind without a box in ``truth``, which is left out of the means.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    counts = {category["name"]: 0 for category in truth["categories"]}
    names = {category["id"]: category["name"] for category in truth["categories"]}
    for annotation in truth["annotations"]:
        counts[names[annotation["category_id"]]] += 1
    if not detections:
        recall = np.tile([0.0 if counts[name] else -1.0 for name in LESIONS], (10, 1))
        precision = recall[:, None]
    else:
        reference = COCO(truth, use_deepcopy=True)
        evaluation = COCOeval_faster(
            reference, reference.loadRes(detections), "bbox", print_function=lambda *_: None
        )
        evaluation.params.maxDets = [1, 10, MAX_DETECTIONS]
        evaluation.evaluate()
        evaluation.accumulate()
        # (10 IoU thresholds, 101 recalls, kinds) for all areas and 100 detections; -1 without ground truth
        precision = evaluation.eval["precision"][:, :, :, 0, -1]
        recall = evaluation.eval["recall"][:, :, 0, -1]
    lesions = {
        name: {**_means(precision[..., [i]], recall[:, [i]]), "boxes": counts[name]}
        for i, name in enumerate(LESIONS)
    }
    return {**_means(precision, recall), "lesions": lesions}


def _means(precision: np.ndarray, recall: np.ndarray) -> dict[str, float | None]:
    return {
        "AP": _mean(precision),
        "AP50": _mean(precision[0]),
        "AP75": _mean(precision[5]),
        "AR100": _mean(recall),
    }


def _mean(values: np.ndarray) -> float | None:
    known = values[values > -1]
    return round(float(known.mean()), 6) if known.size else None
