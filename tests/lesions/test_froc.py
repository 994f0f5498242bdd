import itertools
import json
import math
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drgrade.bootstrap import resample_weights
from drgrade.errors import UserError
from drgrade.lesions import froc
from drgrade.lesions.froc import RATES, at_scores, best_score, froc_metrics, once, sensitivity
from drgrade.lesions.matching import Matches, match
from drgrade.lesions.precision import average_precision
from drgrade.schema import LESIONS

BOX = ["x1", "y1", "x2", "y2"]


def table(rows: list[tuple[Any, ...]], scored: bool) -> pd.DataFrame:
    """Rows (image, lesion, x1, y1, x2, y2[, score])."""
    names = ["image_id", "lesion", *BOX, *(["score"] if scored else [])]
    return pd.DataFrame(rows, columns=names).astype(dict.fromkeys(BOX, float))


def matches_of(images: list[tuple[int, list[float], list[float]]], lesion: str = "MA") -> Matches:
    """Matches with so many missed lesions, scores of hits and scores of false alarms on each image."""
    truth, found = [], []
    for image, (missed, hits, alarms) in enumerate(images):
        for place in range(missed + len(hits)):
            truth.append((image, lesion, 20 * place, 0, 20 * place + 10, 10))
        for place, score in enumerate(hits):
            found.append((image, lesion, 20 * place, 0, 20 * place + 10, 10, score))
        for place, score in enumerate(alarms):
            found.append((image, lesion, 20 * place, 500, 20 * place + 10, 510, score))
    return match(table(truth, False), table(found, True), range(len(images)))


scores_of = st.integers(1, 8).map(lambda value: value / 8)
small_box = st.tuples(*[st.integers(0, 6)] * 2, *[st.integers(1, 5)] * 2)
kind = st.sampled_from(["MA", "HE"])
boxes_of = st.lists(st.tuples(st.integers(0, 2), kind, small_box), max_size=9)
found_of = st.lists(st.tuples(st.integers(0, 2), kind, small_box, scores_of), max_size=12)
counts_of = st.lists(
    st.tuples(st.integers(0, 3), st.lists(scores_of, max_size=5), st.lists(scores_of, max_size=5)),
    min_size=1,
    max_size=4,
)


def corners(box: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    x, y, width, height = box
    return x, y, x + width, y + height


def pixels(box: tuple[int, int, int, int]) -> set[tuple[int, int]]:
    x1, y1, x2, y2 = box
    return set(itertools.product(range(x1, x2), range(y1, y2)))


def closeness(rule: str, box: tuple[int, ...], lesion: tuple[int, ...]) -> float | None:
    """How well a box hits a lesion, counted pixel by pixel; None where the rule forbids the pair."""
    if rule == "iou":
        overlap = len(pixels(box) & pixels(lesion)) / len(pixels(box) | pixels(lesion))
        return overlap if overlap >= 0.5 else None
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    if not (lesion[0] <= x < lesion[2] and lesion[1] <= y < lesion[3]):
        return None
    return -math.hypot(x - (lesion[0] + lesion[2]) / 2, y - (lesion[1] + lesion[3]) / 2)


@given(boxes_of, found_of, st.sampled_from(["iou", "centre"]))
def test_pairs_are_those_of_a_walk_down_the_scores(truth, found, rule):
    rows = [(image, lesion, *corners(box)) for image, lesion, box in truth]
    dets = [(image, lesion, *corners(box), score) for image, lesion, box, score in found]
    ours = match(table(rows, False), table(dets, True), [0, 1, 2], rule=rule)
    taken: dict[int, float] = {}
    hits = []
    for det in sorted(dets, key=lambda row: (-row[6], row[0])):
        free = [
            (value, -number)
            for number, row in enumerate(rows)
            if number not in taken
            and row[:2] == det[:2]
            and (value := closeness(rule, det[2:6], row[2:6])) is not None
        ]
        if free:
            taken[-max(free)[1]] = det[6]
        hits.append(bool(free))
    assert ours.found["hit"].tolist() == hits
    assert ours.truth["score"].tolist() == [taken.get(number, -math.inf) for number in range(len(rows))]


def test_a_small_shift_misses_by_overlap_and_hits_by_centre():
    truth = table([("a", "MA", 10, 10, 16, 16)], False)
    found = table([("a", "MA", 12, 12, 18, 18, 0.9), ("a", "HE", 10, 10, 16, 16, 0.8)], True)
    assert match(truth, found, ["a"]).found["hit"].tolist() == [False, False]  # 16 of 56 px shared
    assert match(truth, found, ["a"], rule="centre").found["hit"].tolist() == [True, False]
    # grown to 8 px it is (9, 9, 17, 17): 25 of 75 px; a box that was taught to be 8 px wide fits
    assert match(truth, found, ["a"], min_side=8).found["hit"].tolist() == [False, False]
    taught = table([("a", "MA", 9, 10, 17, 18, 0.9)], True)
    tiny = table([("a", "MA", 11, 11, 16, 16)], False)  # 25 of 64
    assert match(tiny, taught, ["a"]).truth["score"].tolist() == [-math.inf]
    grown = match(tiny, taught, ["a"], min_side=8).truth
    assert grown[["x1", "side", "score"]].to_numpy().tolist() == [[11, 5, 0.9]]
    with pytest.raises(UserError, match=r"^a: has boxes \(truth\) but is not among the images"):
        match(truth, found, ["b"])


def test_the_edges_of_both_rules():
    truth = table([("a", "MA", 0, 0, 10, 10)], False)
    half = table([("a", "MA", 0, 0, 10, 5, 0.9)], True)
    less = table([("a", "MA", 0, 0, 10, 4.9, 0.9)], True)
    assert [match(truth, found, ["a"]).found["hit"].item() for found in (half, less)] == [True, False]
    for left, inside in ((-2, True), (-2.5, False), (7.5, True), (8, False)):  # 4 px wide: centre 2 px on
        found = table([("a", "MA", left, 3, left + 4, 7, 0.9)], True)
        assert match(truth, found, ["a"], rule="centre").found["hit"].item() == inside


def replicated(images: list[Any], weights: tuple[int, ...]) -> list[Any]:
    return [image for image, weight in zip(images, weights, strict=True) for _ in range(weight)]


def thresholds(images: list[Any]) -> list[float]:
    scores = {score for _, hits, alarms in images for score in (*hits, *alarms)}
    return [*sorted(scores, reverse=True), math.inf]


def count(images: list[Any], threshold: float) -> tuple[int, int, int]:
    """Hits, false alarms and lesions at a threshold."""
    hits = sum(score >= threshold for _, scores, _ in images for score in scores)
    alarms = sum(score >= threshold for _, _, scores in images for score in scores)
    return hits, alarms, sum(missed + len(scores) for missed, scores, _ in images)


@given(counts_of, st.data())
def test_froc_is_the_best_threshold_within_the_rate(images, data):
    weights = data.draw(st.tuples(*[st.integers(0, 3)] * len(images)))
    drawn = replicated(images, weights)
    values = sensitivity(matches_of(images), np.array([weights], float))[0]
    for rate, value in zip(RATES, values, strict=True):
        points = [count(drawn, threshold) for threshold in thresholds(drawn)]
        if not points[0][2]:
            assert np.isnan(value)
            continue
        allowed = [hits / lesions for hits, alarms, lesions in points if alarms <= rate * len(drawn)]
        assert value == pytest.approx(max(allowed))


@given(counts_of)
def test_chosen_score_has_the_highest_f1(images):
    matches = matches_of(images)

    def f1(threshold: float) -> float:
        hits, alarms, lesions = count(images, threshold)
        return 2 * hits / max(hits + alarms + lesions, 1)

    chosen = best_score(matches)
    if chosen is None:
        assert max(map(f1, thresholds(images))) == 0
        return
    best = max(thresholds(images), key=lambda threshold: (f1(threshold), threshold))
    assert chosen == best
    hits, alarms, lesions = count(images, best)
    precision, recall, value = at_scores(matches, {"MA": chosen}, once(matches))
    assert precision == pytest.approx(hits / (hits + alarms))
    assert recall == pytest.approx(hits / lesions)
    assert value == pytest.approx(f1(best))


def test_froc_by_hand():
    """4 lesions on 2 images; alarms at 0.8, 0.6 and 0.5, hits at 0.9, 0.7 and 0.1."""
    matches = matches_of([(1, [0.9, 0.1], [0.8]), (0, [0.7], [0.6, 0.5])])
    # 1/4 of an alarm an image: none, down to 0.9; 1/2: one; 1: two; 1.5 and more: all
    assert sensitivity(matches, once(matches))[0].tolist() == [0.25, 0.25, 0.5, 0.5, 0.75, 0.75, 0.75]
    # F1 2/5 at 0.9, 4/7 at 0.7, 6/10 at 0.1: 3 of 6 boxes are right and 3 of 4 lesions found
    assert best_score(matches) == 0.1
    assert [float(v[0]) for v in at_scores(matches, {"MA": 0.1}, once(matches))] == [0.5, 0.75, 0.6]
    assert froc.mean_sensitivity(matches, once(matches)) == pytest.approx(3.75 / 7)


def coco(images: int, rng: np.random.Generator) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Random lesions, and detections near half of them and anywhere."""
    truth, found = [], []
    for image in range(1, images + 1):
        for _ in range(rng.integers(4, 14)):
            lesion = int(rng.integers(1, 4))  # no SE
            box = [*rng.uniform(0, 300, 2), *rng.uniform(5, 40, 2)]
            truth.append({"image_id": image, "category_id": lesion, "bbox": box})
            for _ in range(rng.integers(0, 3)):
                near = (np.array(box) + rng.normal(0, 2, 4)).tolist()
                found.append({"image_id": image, "category_id": lesion, "bbox": near})
        for _ in range(4):
            lesion = int(rng.integers(1, 5))
            found.append(
                {"image_id": image, "category_id": lesion, "bbox": [*rng.uniform(0, 300, 2), 20, 20]}
            )
    for number, row in enumerate(truth, start=1):
        row |= {"id": number, "area": row["bbox"][2] * row["bbox"][3], "iscrowd": 0}
    for row in found:
        row["score"] = float(rng.uniform())
    pictures = [
        {"id": image, "width": 400, "height": 400, "file_name": f"p{image}__x0_y0.jpg"}
        for image in range(1, images + 1)
    ]
    categories = [{"id": number, "name": lesion} for number, lesion in enumerate(LESIONS, start=1)]
    return {"images": pictures, "annotations": truth, "categories": categories}, found


def match_coco(coco: dict[str, Any], detections: list[dict[str, Any]]) -> Matches:
    """Matches on COCO's images; the photograph of one is its file's name up to ``__x``."""
    names = {category["id"]: category["name"] for category in coco["categories"]}

    def rows(boxes: list[dict[str, Any]]) -> pd.DataFrame:
        corners = np.array([row["bbox"] for row in boxes], float).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        frame = pd.DataFrame(corners, columns=BOX)
        kinds = [names[row["category_id"]] for row in boxes]
        return frame.assign(image_id=[row["image_id"] for row in boxes], lesion=kinds)

    found = rows(detections).assign(score=[row["score"] for row in detections])
    images = [image["id"] for image in coco["images"]]
    photographs = [image["file_name"].rsplit("__x", 1)[0] for image in coco["images"]]
    return match(rows(coco["annotations"]), found, images, photographs)


@pytest.mark.parametrize("seed", range(3))
def test_average_precision_agrees_with_coco(seed):
    truth, found = coco(6, np.random.default_rng(seed))
    theirs = average_precision(truth, found)
    matches = match_coco(truth, found)
    assert froc.ap50(matches, once(matches))[0] == pytest.approx(theirs["AP50"], abs=1e-6)
    for lesion in ("MA", "HE", "EX"):
        ours = froc.ap50(matches.of(lesion), once(matches))[0]
        assert ours == pytest.approx(theirs["lesions"][lesion]["AP50"], abs=1e-6)
    assert theirs["lesions"]["SE"]["AP50"] is None
    assert np.isnan(froc.ap50(matches.of("SE"), once(matches))).all()


def test_a_weighted_photograph_is_one_that_is_there_so_often():
    truth, found = coco(4, np.random.default_rng(7))
    weights = (2, 0, 1, 3)
    again: dict[str, Any] = {"images": [], "annotations": [], "categories": truth["categories"]}
    found_again = []
    for image in replicated(truth["images"], weights):
        copy = len(again["images"]) + 1
        again["images"].append(image | {"id": copy})
        for rows, target in ((truth["annotations"], again["annotations"]), (found, found_again)):
            target += [row | {"image_id": copy} for row in rows if row["image_id"] == image["id"]]
    for number, row in enumerate(again["annotations"], start=1):
        row["id"] = number
    matches = match_coco(truth, found)
    value = froc.ap50(matches, np.array([weights], float))[0]
    assert value == pytest.approx(average_precision(again, found_again)["AP50"], abs=1e-6)


def test_tiles_of_a_photograph_are_drawn_together():
    truth, found = coco(6, np.random.default_rng(1))
    for place, image in enumerate(truth["images"]):
        image["file_name"] = f"p{place // 2}__x{place % 2}_y0.jpg"
    matches = match_coco(truth, found)
    assert matches.names == ["p0", "p1", "p2"]
    assert matches.photograph.tolist() == [0, 0, 1, 1, 2, 2]
    halves = matches_of([(1, [0.9], []), (0, [0.8], [0.95])])
    both = Matches(halves.truth, halves.found, np.array([0, 0]), ["p"])
    values = sensitivity(both, np.array([[1.0], [5.0]]), (0.25, 0.5))
    assert values.tolist() == [[0, 2 / 3]] * 2, "a photograph drawn again changes nothing when it is alone"


def recall(matches: Matches, weights: np.ndarray, score: float = 0.5) -> np.ndarray:
    return at_scores(matches, {"MA": score}, weights)[1]


def test_paired_difference_resamples_both_alike():
    rng = np.random.default_rng(3)
    found = rng.integers(0, 6, (2, 8))  # of 6 lesions on each of 8 photographs
    first, second = (matches_of([(6 - n, [0.9] * n, []) for n in row]) for row in found)
    result = froc.paired_difference(first, second, recall, number=400, seed=2)
    gains = (found[0] - found[1]) / 6
    draws = np.concatenate(list(resample_weights(8, 400, 2)))
    assert (draws.sum(axis=1) == 8).all()
    means = [np.repeat(gains, row.astype(int)).mean() for row in draws]
    assert result["difference"] == pytest.approx(gains.mean())
    assert result["difference"] == pytest.approx(result["first"] - result["second"])
    assert [result["low"], result["high"]] == pytest.approx(np.percentile(means, [2.5, 97.5]))
    assert result["better"] == pytest.approx(np.mean(np.array(means) > 1e-9))
    same = froc.paired_difference(first, first, froc.ap50, number=50)
    assert same["difference"] == same["low"] == same["high"] == same["better"] == 0
    fewer = matches_of([(1, [0.9], [])] * 7)
    with pytest.raises(UserError, match=r"^7: searched by one detector only"):
        froc.paired_difference(first, fewer, recall)


def test_sizes_count_by_the_longer_side():
    rows = [("a", "EX", 0, 50 * i, side, 50 * i + 4) for i, side in enumerate((5, 8, 8.001, 9, 32, 33, 90))]
    found = [(*rows[1], 0.9), (*rows[3], 0.9), (*rows[4], 0.9), (*rows[6], 0.2)]
    matches = match(table(rows, False), table(found, True), ["a"])
    lesions, shares = froc.by_size(matches, {"EX": 0.5})
    assert lesions == [3, 1, 1, 2]
    assert shares == pytest.approx([1 / 3, 1, 1, 0])


@pytest.mark.parametrize("photographs", [4, 6])
def test_metrics_are_plain_json_with_intervals_where_photographs_are_enough(photographs):
    truth, found = coco(photographs, np.random.default_rng(5))
    metrics = froc_metrics(match_coco(truth, found))
    assert metrics == json.loads(json.dumps(metrics, allow_nan=False))
    assert metrics == froc_metrics(match_coco(truth, found))
    assert metrics["images"] == metrics["photographs"] == photographs
    lesion, every, none = metrics["EX"], metrics["all"], metrics["SE"]
    assert none["score"] is none["recall"] is none["F1"] is None
    assert none["sensitivity"] == [None] * 7
    assert sum(metrics[name]["boxes"] for name in LESIONS) == every["boxes"] == len(truth["annotations"])
    assert sum(lesion["size_boxes"]) == lesion["boxes"]
    ends = np.array([lesion["low"], lesion["sensitivity"], lesion["high"]], float)
    if photographs < froc.FEWEST:
        assert np.isnan(ends[[0, 2]]).all()
        assert lesion["F1_low"] is None
    else:
        assert (np.diff(ends, axis=0) >= 0).all()
        assert (ends[2] > ends[0]).any()
        assert lesion["F1_low"] < lesion["F1"] < lesion["F1_high"]
    given = froc_metrics(match_coco(truth, found), {"EX": 0.99})
    assert given["EX"]["score"] == 0.99
    assert given["EX"]["recall"] < lesion["recall"]
    assert given["MA"]["recall"] == 0


def test_nothing_found_and_nothing_there():
    nothing = matches_of([(0, [], [])])
    assert np.isnan(sensitivity(nothing, once(nothing))).all()
    assert np.isnan(froc.ap50(nothing, once(nothing))).all()
    missed = matches_of([(3, [], [])] * 5)
    row = froc_metrics(missed)["MA"]
    assert row["sensitivity"] == row["low"] == row["high"] == [0] * 7
    assert row["score"] is row["precision"] is None
    assert row["F1"] == row["recall"] == 0
    assert froc.ap50(missed, once(missed)) == 0
    assert np.isnan(np.array(froc.interval(np.full((4, 2), np.nan)))).all()
    assert partial(sensitivity, rates=(1.0,))(missed, once(missed)).shape == (1, 1)
