import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import (
    average_precision_score,
    f1_score,
    jaccard_score,
    precision_score,
    recall_score,
    roc_auc_score,
)

from drgrade.segmentation.metrics import (
    EDGES,
    LEVELS,
    METRICS,
    NO_LEVEL,
    TOP,
    Pixels,
    at_levels,
    auc,
    aupr,
    best_level,
    chance,
    count,
    photograph_aupr,
    segmentation_metrics,
    statistics,
    threshold_of,
)


def drawn(photographs=4, pixels=500, share=0.1, seed=0, digits=7):
    """Probabilities and lesions of some photographs; the probabilities lie halfway between two codes."""
    rng = np.random.default_rng(seed)
    lesion = rng.random((photographs, pixels)) < share
    logit = rng.normal(np.where(lesion, 1, -2), 2)
    codes = np.floor((1 / (1 + np.exp(-logit))).round(digits) * TOP).clip(0, TOP - 1)
    return ((codes + 0.5) / TOP).astype(np.float32), lesion


def counted(probability, lesion):
    counts = [count(*pair) for pair in zip(probability, lesion, strict=True)]
    return Pixels(*(np.stack(part) for part in zip(*counts, strict=True)))


def quantised(probability):
    codes = np.floor(probability.astype(np.float64) * TOP)
    return np.searchsorted(EDGES, codes, side="right") - 1


def once(pixels):
    return np.ones((1, len(pixels.lesion)))


def test_levels_cover_all_codes_and_are_finest_at_the_ends():
    assert (EDGES[0], EDGES[-1]) == (0, TOP)
    steps = np.diff(EDGES)
    assert steps.min() >= 1
    assert steps.max() <= 64
    assert steps[:50].max() == steps[-50:].max() == 1


@given(seed=st.integers(0, 999), share=st.floats(0.02, 0.9), digits=st.sampled_from([1, 7]))
def test_areas_are_those_of_sklearn(seed, share, digits):
    probability, lesion = drawn(seed=seed, share=share, digits=digits)  # few digits: many ties
    pixels, level = counted(probability, lesion), quantised(probability)
    y, score = lesion.ravel(), level.ravel()
    assert aupr(pixels, once(pixels))[0] == pytest.approx(average_precision_score(y, score), abs=1e-12)
    assert auc(pixels, once(pixels))[0] == pytest.approx(roc_auc_score(y, score), abs=1e-12)
    each = [average_precision_score(*pair) for pair in zip(lesion, level, strict=True) if pair[0].any()]
    assert photograph_aupr(pixels, once(pixels))[0] == pytest.approx(np.mean(each), abs=1e-12)
    assert chance(pixels) == pytest.approx(y.mean())


@pytest.mark.parametrize("spread", [0.5, 1, 3])
def test_the_levels_cost_little(spread):
    rng = np.random.default_rng(0)
    lesion = rng.random((1, 200_000)) < 0.02
    logit = spread * rng.normal(np.where(lesion, 0.5, -2.5), 1)
    pixels = counted((1 / (1 + np.exp(-logit))).astype(np.float32), lesion)
    exact = average_precision_score(lesion[0], logit[0])
    assert aupr(pixels, once(pixels))[0] == pytest.approx(exact, abs=1e-3)


@given(seed=st.integers(0, 999), level=st.integers(1, LEVELS - 1))
def test_figures_at_a_threshold_are_those_of_sklearn(seed, level):
    probability, lesion = drawn(seed=seed, share=0.3)
    pixels = counted(probability, lesion)
    y, found = lesion.ravel(), (quantised(probability) >= level).ravel()
    values = at_levels(pixels, np.full(4, level), once(pixels))
    references = {
        "dice": f1_score,
        "iou": jaccard_score,
        "precision": precision_score,
        "recall": recall_score,
    }
    for name, reference in references.items():
        expected = reference(y, found, zero_division=np.nan) if name == "precision" else reference(y, found)
        assert values[name][0] == pytest.approx(expected, abs=1e-12, nan_ok=True)


@given(seed=st.integers(0, 999))
def test_a_threshold_is_the_lowest_probability_of_its_level(seed):
    probability, lesion = drawn(seed=seed)
    pixels = counted(probability, lesion)
    for level in range(1, LEVELS, 97):
        kept = (probability.astype(np.float64) >= threshold_of(level)).sum()
        assert pixels.lesion[:, level:].sum() + pixels.other[:, level:].sum() == kept
    assert threshold_of(NO_LEVEL) is None


@pytest.mark.parametrize("seed", range(3))
def test_the_best_level_has_the_best_dice(seed):
    pixels = counted(*drawn(seed=seed))

    def dice(level):
        return at_levels(pixels, np.full(4, level), once(pixels))["dice"][0]

    best = best_level(pixels)
    assert all(dice(best) >= dice(level) for level in range(1, LEVELS, 7))
    assert all(dice(best) > dice(level) for level in range(best + 1, LEVELS, 7)), "the highest of equal ones"


@given(seed=st.integers(0, 999))
def test_weights_are_repetitions_and_the_order_does_not_matter(seed):
    probability, lesion = drawn(seed=seed)
    pixels, levels = counted(probability, lesion), np.array([300, 900, NO_LEVEL, 900])
    repeated = [3, 0, 0, 1, 2, 0]
    weights = np.bincount(repeated, minlength=4)[None].astype(float)
    weighted = statistics(pixels, levels, weights)
    twice = statistics(
        counted(probability[repeated], lesion[repeated]), levels[repeated], np.ones((1, len(repeated)))
    )
    mixed = np.random.default_rng(seed).permutation(probability.shape[1])
    shuffled = statistics(counted(probability[:, mixed], lesion[:, mixed]), levels, weights)
    for metric in METRICS:
        assert weighted[metric] == pytest.approx(twice[metric], abs=1e-12, nan_ok=True)
        assert (weighted[metric] == shuffled[metric]).all()


@given(seed=st.integers(0, 999), share=st.floats(0.01, 0.99))
def test_perfect_and_constant_and_worst_maps(seed, share):
    _, lesion = drawn(seed=seed, share=share, pixels=3000)
    perfect = counted(lesion.astype(np.float32), lesion)
    level = np.full(4, best_level(perfect))
    assert all(value == 1 for value in statistics(perfect, level, once(perfect)).values())
    flat = counted(np.full(lesion.shape, 0.3, np.float32), lesion)
    assert aupr(flat, once(flat)) == pytest.approx(chance(flat), abs=1e-12)
    assert auc(flat, once(flat)) == pytest.approx(0.5)
    worst = counted(1 - lesion.astype(np.float32), lesion)
    assert auc(worst, once(worst)) == 0


def test_photographs_without_annotation_do_not_count_but_those_without_lesion_do():
    probability, lesion = drawn(photographs=3)
    lesion[2] = False
    pixels = counted(probability, lesion)
    pixels.lesion[1] = pixels.other[1] = 0
    own = Pixels(pixels.lesion[[0, 2]], pixels.other[[0, 2]])
    assert pixels.annotated.tolist() == [True, False, True]
    level = best_level(own)
    assert best_level(pixels) == level
    some = statistics(own, np.full(2, level), once(own))
    for metric, value in statistics(pixels, np.full(3, level), once(pixels)).items():
        assert value == pytest.approx(some[metric])
    without = Pixels(pixels.lesion[:1], pixels.other[:1])
    assert aupr(pixels, once(pixels)) < aupr(without, once(without))
    assert photograph_aupr(pixels, once(pixels)) == aupr(without, once(without))


def test_kinds_without_lesions_are_null():
    probability, lesion = drawn(photographs=6)
    some, none = counted(probability, lesion), counted(probability, np.zeros_like(lesion))
    assert best_level(none) == NO_LEVEL
    levels = {"MA": np.full(6, best_level(some)), "SE": np.full(6, NO_LEVEL)}
    metrics = segmentation_metrics({"MA": some, "SE": none}, levels, list("aabbcd"), 100)
    assert (metrics["images"], metrics["patients"]) == (6, 4)
    assert all(metrics["SE"][name] is None for name in METRICS)
    assert (metrics["SE"]["photographs"], metrics["SE"]["with_lesion"], metrics["SE"]["chance"]) == (6, 0, 0)
    for name in (*METRICS, "chance"):
        assert metrics["mean"][name] == metrics["MA"][name], "a kind without lesions is in no mean"
    assert metrics["MA"]["aupr_low"] is None, "too few patients for an interval"


def test_the_mean_and_intervals():
    one, other = (counted(*drawn(photographs=8, seed=seed, share=0.05 + seed / 4)) for seed in range(2))
    pixels = {"MA": one, "EX": other}
    levels = {kind: np.full(8, best_level(found)) for kind, found in pixels.items()}
    patients = [f"p{number // 2 if number < 6 else number}" for number in range(8)]
    metrics = segmentation_metrics(pixels, levels, patients, 200)
    assert metrics["patients"] == 5
    for name in METRICS:
        both = [metrics[kind][name] for kind in pixels]
        assert metrics["mean"][name] == pytest.approx(np.mean(both), abs=1e-6)
        for row in (metrics["MA"], metrics["EX"], metrics["mean"]):
            assert row[f"{name}_low"] < row[name] < row[f"{name}_high"]
    again = segmentation_metrics(pixels, levels, patients, 200)
    assert again == metrics


def test_patients_are_resampled_not_photographs():
    probability, lesion = drawn(photographs=6)
    doubled = counted(np.repeat(probability, 2, axis=0), np.repeat(lesion, 2, axis=0))
    single = counted(probability, lesion)
    found = [
        segmentation_metrics({"MA": pixels}, {"MA": np.full(len(names), 900)}, names, 100)["MA"]
        for pixels, names in ((single, list("abcdef")), (doubled, list("aabbccddeeff")))
    ]
    for name in METRICS:
        for end in ("", "_low", "_high"):
            assert found[0][name + end] == found[1][name + end]
