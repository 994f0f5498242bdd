"""Average precision of lesion boxes, by the COCO protocol."""

from typing import Any

import numpy as np

from drgrade.schema import LESIONS

MAX_DETECTIONS = 100
"""Best-scored boxes of a lesion that count on each tile, COCO's default."""


def average_precision(truth: dict[str, Any], detections: list[dict[str, Any]]) -> dict[str, Any]:
    """AP (mean over IoU 0.50:0.95) and AP50, over all lesions and for each.

    Args:
        truth: a COCO file's content: images, annotations, categories.
        detections: COCO results: image_id, category_id, bbox [x, y, width, height], score.

    Returns:
        ``{"AP", "AP50", "lesions": {"MA": {"AP", "AP50", "boxes"}, ...}}``, fractions of 1 rounded to six
        digits; None where the truth has no box, such lesions are left out of the means.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    counts = {category["name"]: 0 for category in truth["categories"]}
    names = {category["id"]: category["name"] for category in truth["categories"]}
    for annotation in truth["annotations"]:
        counts[names[annotation["category_id"]]] += 1
    if not detections:
        precision = np.where([[counts[name] > 0 for name in LESIONS]], 0.0, -1.0).reshape(1, 1, -1)
    else:
        reference = COCO(truth, use_deepcopy=True)
        evaluation = COCOeval_faster(
            reference, reference.loadRes(detections), "bbox", print_function=lambda *_: None
        )
        evaluation.params.maxDets = [1, 10, MAX_DETECTIONS]
        evaluation.evaluate()
        evaluation.accumulate()
        # (10 IoU thresholds, 101 recalls, lesions), all areas, most detections; -1 where there is no truth
        precision = evaluation.eval["precision"][:, :, :, 0, -1]
    lesions = {
        name: {"AP": _mean(precision[..., i]), "AP50": _mean(precision[0, :, i]), "boxes": counts[name]}
        for i, name in enumerate(LESIONS)
    }
    return {"AP": _mean(precision), "AP50": _mean(precision[0]), "lesions": lesions}


def _mean(precision: np.ndarray) -> float | None:
    known = precision[precision > -1]
    return round(float(known.mean()), 6) if known.size else None
