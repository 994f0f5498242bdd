import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from drgrade.bootstrap import interval, resample_weights
from drgrade.evaluate import intervals, metrics


def drawn(rng, patients, eyes=2, seeds=1, noise=1.0):
    """Correlated grades of both eyes, and predictions around them."""
    base = rng.integers(0, 5, patients)
    y = np.clip(np.repeat(base, eyes) + rng.integers(-1, 2, patients * eyes), 0, 4)
    predicted = np.clip(np.round(y + noise * rng.normal(size=(seeds, len(y)))), 0, 4).astype(int)
    names = np.array([f"p{patient:05d}" for patient in np.repeat(np.arange(patients), eyes)])
    return y, predicted, names


def naive(y, predicted, names, resamples, seed):
    """Resample row by row, with scikit-learn's kappa."""
    unique = sorted(set(names))
    rows_of = {name: np.flatnonzero(names == name) for name in unique}
    values = []
    weights = np.concatenate(list(resample_weights(len(unique), resamples, seed)))
    for weight in weights:
        rows = np.concatenate(
            [rows_of[n] for n, w in zip(unique, weight, strict=True) for _ in range(int(w))]
        )
        values.append(
            np.mean(
                [cohen_kappa_score(y[rows], p[rows], labels=range(5), weights="quadratic") for p in predicted]
            )
        )
    return np.array(values)


@pytest.mark.parametrize("seeds", [1, 3])
def test_bootstrap_is_the_naive_loop(seeds):
    data = drawn(np.random.default_rng(0), patients=20, seeds=seeds)
    np.testing.assert_allclose(intervals.bootstrap(*data, 60, 5), naive(*data, 60, 5), atol=1e-9)


def test_rows_may_come_in_any_order_and_patients_may_have_any_number_of_them():
    rng = np.random.default_rng(1)
    y, predicted, names = drawn(rng, patients=20)
    keep = rng.permutation(40)[:31]
    y, predicted, names = y[keep], predicted[:, keep], names[keep]
    values = intervals.bootstrap(y, predicted, names, 30, 5)
    np.testing.assert_allclose(values, naive(y, predicted, names, 30, 5), atol=1e-9)


def test_weights_are_draws_with_replacement():
    weights = np.concatenate(list(resample_weights(12, 4000, 3)))
    assert weights.shape == (4000, 12)
    assert (weights.sum(axis=1) == 12).all()
    np.testing.assert_allclose(weights.mean(axis=0), 1, atol=0.08)
    # multinomial: variance of a count is n * (1/n) * (1 - 1/n)
    np.testing.assert_allclose(weights.var(axis=0), 1 - 1 / 12, atol=0.12)
    assert len(np.unique(weights, axis=0)) > 3000


def test_same_seed_same_draws_and_another_seed_others():
    data = drawn(np.random.default_rng(2), patients=30)
    np.testing.assert_array_equal(intervals.bootstrap(*data, 120, 1), intervals.bootstrap(*data, 120, 1))
    assert not np.array_equal(intervals.bootstrap(*data, 120, 1), intervals.bootstrap(*data, 120, 2))


def test_eyes_of_a_patient_move_together():
    """With two identical eyes a patient, the interval is that of one eye a patient."""
    y, predicted, names = drawn(np.random.default_rng(3), patients=60, eyes=1)
    one = intervals.bootstrap(y, predicted, names, 300, 1)
    two = intervals.bootstrap(np.tile(y, 2), np.tile(predicted, 2), np.tile(names, 2), 300, 1)
    np.testing.assert_allclose(one, two, atol=1e-9)
    apart = intervals.bootstrap(
        np.tile(y, 2),
        np.tile(predicted, 2),
        np.char.add(np.tile(names, 2), np.repeat(["l", "r"], 60)),
        300,
        1,
    )
    assert np.std(apart) < 0.85 * np.std(two)


def test_paired_difference_is_narrower_than_an_unpaired_one():
    y, predicted, names = drawn(np.random.default_rng(4), patients=100, seeds=2)
    predicted[1] = np.where(np.arange(len(y)) % 40 == 0, 0, predicted[0])  # a slightly worse twin
    one, two = (intervals.bootstrap(y, p[None], names, 500, 1) for p in predicted)
    low, high = interval(one - two)
    unpaired = interval(one - np.random.default_rng(0).permutation(two))
    assert one.mean() > two.mean()
    assert high - low < 0.7 * (unpaired[1] - unpaired[0])


def test_interval_covers_the_true_value_about_95_times_of_100():
    rng = np.random.default_rng(5)
    population = drawn(rng, patients=20000)
    truth = metrics.qwk(population[0], population[1][0])
    y, predicted = population[0].reshape(-1, 2), population[1][0].reshape(-1, 2)
    hits = 0
    for _ in range(200):
        some = rng.integers(20000, size=80)
        draws = intervals.bootstrap(
            y[some].ravel(), predicted[some].reshape(1, -1), np.repeat(np.arange(80), 2), 300, 1
        )
        low, high = interval(draws)
        hits += low <= truth <= high
    # nominal 190; four binomial standard deviations below, and the known shortfall at 80 patients
    assert 174 <= hits <= 200


def test_any_metric_of_the_confusion_matrix():
    y, predicted, names = drawn(np.random.default_rng(6), patients=25)
    values = intervals.bootstrap(y, predicted, names, 40, 1, metrics.accuracy)
    weights = np.concatenate(list(resample_weights(25, 40, 1)))
    right = (y == predicted[0]).reshape(25, 2).sum(axis=1)
    np.testing.assert_allclose(values, weights @ right / 50, atol=1e-12)


def test_interval_leaves_out_undefined_resamples():
    assert interval([np.nan, *np.arange(101.0)]) == pytest.approx((2.5, 97.5))
    assert np.isnan(interval([np.nan, np.nan])).all()


def test_eyepacs_size():
    """1000 resamples of the EyePACS test (42,670 photographs, both eyes), three seeds."""
    data = drawn(np.random.default_rng(7), patients=21335, seeds=3)
    draws = intervals.bootstrap(*data, 1000, 1)
    assert draws.shape == (1000,)
    assert 0 < draws.std() < 0.01  # patients by the thousand: a narrow interval
