import json
import math

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, cohen_kappa_score, f1_score, roc_auc_score
from tests.evaluate.tables import PATIENTS, evaluate, graded, in_folds, predictions, scored, written

from drgrade.errors import UserError
from drgrade.evaluate.leaderboard import COLUMNS, EXTERNAL_COLUMNS, final_results
from drgrade.evaluate.metrics import MIDPOINTS
from drgrade.evaluate.predictions import gather
from drgrade.files import sha256
from drgrade.params import Evaluate
from drgrade.schema import PREDICTIONS, write_table

PARAMS = Evaluate(bootstrap=200, seed=3)


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    """Figures take most of the time; the test that reads them undoes this."""
    for chart in ("leaderboard", "confusion", "roc", "reliability", "risk", "learning"):
        monkeypatch.setattr(f"drgrade.evaluate.leaderboard.{chart}_chart", lambda *args: None)


def majority():
    table = predictions("majority", 0)
    table["predicted"], table["score"] = 0, 0.0
    return table.assign(p0=1.0, p1=0.0, p2=0.0, p3=0.0, p4=0.0)


@pytest.fixture
def three(tmp_path):
    good = predictions("good", 0.6, seeds=(0, 1, 2))
    # shuffled rows and validation rows must not matter
    good = pd.concat([good.sample(frac=1, random_state=1), predictions("good", 3, split="val")])
    return written(tmp_path / "grade", majority(), predictions("poor", 1.8), good)


def test_leaderboard_against_scikit_learn(three, tmp_path):
    evaluate(three, graded(), PARAMS, tmp_path / "out")
    table = pd.read_csv(tmp_path / "out/leaderboard.csv").set_index("experiment")
    assert list(table.index) == ["good", "poor", "class_prior", "majority"]
    assert ("experiment", *table.columns) == COLUMNS
    test = predictions("good", 0.6, seeds=(0, 1, 2))
    by_seed = [rows for _, rows in test.groupby("seed")]
    kappas = [cohen_kappa_score(rows["grade"], rows["predicted"], weights="quadratic") for rows in by_seed]
    row = table.loc["good"]
    assert row["qwk"] == pytest.approx(np.mean(kappas), abs=1e-6)
    assert row["qwk_sd"] == pytest.approx(np.std(kappas, ddof=1), abs=1e-6)
    assert row["macro_f1"] == pytest.approx(
        np.mean([f1_score(rows["grade"], rows["predicted"], average="macro") for rows in by_seed]), abs=1e-6
    )
    assert row["referable_auc"] == pytest.approx(
        np.mean([roc_auc_score(rows["grade"] >= 2, rows["score"]) for rows in by_seed]), abs=1e-6
    )
    assert row["qwk_low"] < row["qwk"] < row["qwk_high"]
    assert (row["seeds"], row["n"], row["patients"]) == (3, 60, 30)
    assert math.isnan(table.loc["poor", "qwk_sd"])


def test_differences_are_paired_and_signed(three, tmp_path):
    evaluate(three, graded(), PARAMS, tmp_path / "out")
    table = pd.read_csv(tmp_path / "out/leaderboard.csv").set_index("experiment")
    assert table.loc["majority", "qwk"] == 0
    assert table.loc["good", "vs_majority"] == table.loc["good", "qwk"]
    # a constant prediction has QWK 0 on every resample, so the interval is the experiment's own
    assert table.loc["good", "vs_majority_low"] == table.loc["good", "qwk_low"]
    assert table.loc["poor", "vs_best"] == pytest.approx(table.loc["poor", "qwk"] - table.loc["good", "qwk"])
    assert table.loc["poor", "vs_best_high"] < 0
    assert math.isnan(table.loc["good", "vs_best"])
    assert math.isnan(table.loc["majority", "vs_majority"])


def test_both_baselines_are_always_there(tmp_path):
    evaluate(written(tmp_path, predictions("good", 0.6)), graded(), PARAMS, tmp_path / "out")
    table = pd.read_csv(tmp_path / "out/leaderboard.csv").set_index("experiment")
    assert list(table.index) == ["good", "class_prior", "majority"]
    assert table.loc["good", "vs_majority"] == table.loc["good", "qwk"]
    assert (table.loc[["class_prior", "majority"], "qwk"] == 0).all()
    assert list(table.columns[:27]) == list(COLUMNS[1:28])


def test_an_experiment_named_as_a_baseline_is_its_row(three, tmp_path):
    """The table of the experiment says grade 0, as the training grades do not."""
    others = graded().assign(grade=lambda table: table["grade"].where(table["split"] != "train", 3))
    evaluate(three, others, PARAMS, tmp_path / "out")
    table = pd.read_csv(tmp_path / "out/leaderboard.csv").set_index("experiment")
    truth = predictions("any", 0)["grade"]
    assert table.loc["majority", "accuracy"] == pytest.approx((truth == 0).mean(), abs=1e-6)
    assert table.loc["class_prior", "accuracy"] == pytest.approx((truth == 3).mean(), abs=1e-6)


def test_p_values_against_the_best_are_corrected_for_all_rows(three, tmp_path, caplog):
    """Every resample favours the best over each other row: Holm multiplies the smallest p-value by 3."""
    evaluate(three, graded(), PARAMS, tmp_path / "out")
    table = pd.read_csv(tmp_path / "out/leaderboard.csv").set_index("experiment")
    smallest = 2 / (PARAMS.bootstrap + 1)
    assert table["p_vs_best"].tolist()[1:] == pytest.approx([smallest] * 3, abs=1e-6)
    assert table["p_vs_best_holm"].tolist()[1:] == pytest.approx([3 * smallest] * 3, abs=1e-6)
    assert table.loc["good", ["p_vs_best", "p_vs_best_holm"]].isna().all()
    assert "p_vs_best_holm" not in caplog.text


def test_too_few_resamples_for_any_p_value_are_warned_of_once(three, tmp_path, caplog):
    evaluate(three, graded(), Evaluate(bootstrap=110), tmp_path / "out")
    assert caplog.text.count("at least 0.054, never below 0.05; raise evaluate.bootstrap to 120") == 1


def test_columns_on_detection_and_calibration_against_scikit_learn(three, tmp_path):
    evaluate(three, graded(), PARAMS, tmp_path / "out")
    row = pd.read_csv(tmp_path / "out/leaderboard.csv").set_index("experiment").loc["good"]
    seeds = [rows for _, rows in predictions("good", 0.6, seeds=(0, 1, 2)).groupby("seed")]
    expected = {
        "referable_auprc": [average_precision_score(rows["grade"] >= 2, rows["score"]) for rows in seeds],
        "sight_threatening_auc": [roc_auc_score(rows["grade"] >= 3, rows["score"]) for rows in seeds],
        "brier": [2 * (rows["grade"] != rows["predicted"]).mean() for rows in seeds],  # certain of one grade
        "ece": [(rows["grade"] != rows["predicted"]).mean() for rows in seeds],
    }
    for name, values in expected.items():
        assert row[name] == pytest.approx(np.mean(values), abs=1e-6), name


def test_times_are_in_no_file_that_dvc_records(tmp_path):
    paths = written(tmp_path, predictions("good", 0.6), predictions("poor", 1.8))
    manifest = paths[0].with_name("training.json")
    manifest.write_text(json.dumps({"experiment": "good", "parameters": 3_400_000}))
    cost = {"training": sha256(manifest), "train_minutes": 12.125, "peak_memory_gb": 98.75}
    manifest.with_name("cost.json").write_text(json.dumps(cost))
    evaluate(paths, graded(), PARAMS, tmp_path / "out")
    lines = (tmp_path / "out/leaderboard.csv").read_text().splitlines()
    assert [line.rpartition(",")[2] for line in lines] == ["parameters", "3400000", "", "", ""]
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert [metrics[name]["parameters"] for name in ("good", "poor", "majority")] == [3_400_000, None, None]
    timed = {path.name for path in (tmp_path / "out").rglob("*.*") if b"98.75" in path.read_bytes()}
    assert timed == {"costs.csv", "leaderboard.md", "leaderboard.html"}
    page = (tmp_path / "out/leaderboard.html").read_text()
    assert "60 test photographs of 30 patients of the dataset own" in page
    assert "(200 resamples of patients), corrected for 3 comparisons" in page


def test_metrics_are_plain_numbers_in_sorted_json(three, tmp_path):
    evaluate(three, graded(), PARAMS, tmp_path / "out")
    text = (tmp_path / "out/metrics.json").read_text()
    values = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert text == json.dumps(values, indent=2, sort_keys=True) + "\n"
    assert set(values) == {"good", "poor", "majority", "class_prior"}
    assert [row["seed"] for row in values["good"]["seeds"]] == [0, 1, 2]
    assert values["poor"]["qwk_sd"] is None
    assert values["good"]["qwk"] == pytest.approx(
        np.mean([row["qwk"] for row in values["good"]["seeds"]]), abs=2e-6
    )
    truth = predictions("good", 0.6)["grade"]
    assert [row["n"] for row in values["good"]["grades"]] == [(truth == grade).sum() for grade in range(5)]


def test_confusion_is_that_of_the_first_seed(three, tmp_path):
    evaluate(three, graded(), PARAMS, tmp_path / "out")
    table = pd.read_csv(tmp_path / "out/confusion.csv")
    assert list(table.columns) == ["experiment", "actual", "predicted"]
    good = table[table["experiment"] == "good"]
    first = predictions("good", 0.6).sort_values("image_id")
    assert good["actual"].tolist() == first["grade"].tolist()
    assert good["predicted"].tolist() == first["predicted"].astype(int).tolist()


def test_same_predictions_same_bytes(three, tmp_path, monkeypatch):
    monkeypatch.undo()
    for name in ("one", "two"):
        evaluate(three, graded(), PARAMS, tmp_path / name)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.*"))
    assert [str(path) for path in files] == [
        "calibrate/calibration.json",
        "confusion.csv",
        "costs.csv",
        "errors.csv",
        "external.csv",
        "figures/confusion.png",
        "figures/leaderboard.png",
        "figures/learning_curves.png",
        "figures/reliability.png",
        "figures/risk_coverage.png",
        "figures/roc.png",
        "leaderboard.csv",
        "leaderboard.html",
        "leaderboard.md",
        "learning_curves.csv",
        "metrics.json",
        "operating.csv",
        "reliability.csv",
        "risk_coverage.csv",
        "roc.csv",
        "sets.csv",
    ]
    for path in files:
        assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes(), path
    assert b"atplotlib" not in (tmp_path / "one/figures/leaderboard.png").read_bytes()


def _without_one(table):
    return table[table["image_id"] != "7_left"]


def _other_grade(table):
    return table.assign(grade=table["grade"].mask(table["image_id"] == "7_left", 4 - table["grade"][14]))


@pytest.mark.parametrize("change", [_without_one, _other_grade])
def test_experiments_tested_differently_are_refused(change, tmp_path):
    table = predictions("other", 1)
    assert table["grade"][14] != 2
    paths = written(tmp_path, predictions("one", 1), change(table))
    with pytest.raises(UserError, match=r"one: .*7_left"):
        evaluate(paths, graded(), PARAMS, tmp_path / "out")
    assert not (tmp_path / "out/metrics.json").exists()


def test_seeds_tested_differently_are_refused(tmp_path):
    table = predictions("one", 1, seeds=(0, 1))
    table = table[~((table["seed"] == 1) & (table["image_id"] == "7_left"))]
    with pytest.raises(UserError, match=r"seed 0: tested on 1 photographs that seed 1 lacks \(7_left"):
        evaluate(written(tmp_path, table), graded(), PARAMS, tmp_path / "out")


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("score", np.nan, "7_left: score is not a number"),
        ("score", np.inf, "7_left: score is not a number"),
        ("grade", None, "7_left: grade is <NA>"),
        ("predicted", 5, "7_left: predicted is 5"),
        ("patient_id", None, "7_left: no patient_id"),
        ("p2", 0.7, "one: 7_left: p0 to p4 are .*, not probabilities with sum 1"),
        ("image_id", "7_right", "7_right: tested twice"),
        ("experiment", "two", "one a table"),
    ],
)
def test_impossible_rows_are_named(column, value, message, tmp_path):
    table = predictions("one", 1).astype({"grade": "Int8", "predicted": "Int8"})
    table.loc[table["image_id"] == "7_left", column] = value
    with pytest.raises(UserError, match=message):
        evaluate(written(tmp_path, table), graded(), PARAMS, tmp_path / "out")


def test_no_test_rows_and_two_tables_of_one_training(tmp_path):
    with pytest.raises(UserError, match="one: no predictions of the split test"):
        evaluate(
            written(tmp_path / "a", predictions("one", 1, split="val")), graded(), PARAMS, tmp_path / "out"
        )
    twice = written(tmp_path / "a", predictions("one", 1)) + written(tmp_path / "b", predictions("one", 1))
    with pytest.raises(
        UserError,
        match=r"b/one/seed0/.*: the same experiment, seed and fold as .*a/one/seed0",
    ):
        evaluate(twice, graded(), PARAMS, tmp_path / "out")


def test_the_best_model_is_chosen_on_validation(tmp_path):
    # the better one on the test is the worse one on validation
    a = pd.concat([predictions("a", 0.3), predictions("a", 2.5, split="val")])
    b = pd.concat([predictions("b", 1.5), predictions("b", 0.3, split="val")])
    paths = written(tmp_path, a, b)
    results, best = final_results(paths)
    assert best == "b"
    assert results["a"] > results["b"]
    test = predictions("a", 0.3)
    assert results["a"] == pytest.approx(
        cohen_kappa_score(test["grade"], test["predicted"], weights="quadratic"), abs=1e-9
    )


def test_nothing_held_out_no_best(tmp_path):
    assert final_results(written(tmp_path, predictions("a", 0.3)))[1] is None


def test_external_datasets_stand_beside_and_change_nothing_else(tmp_path):
    """Site b's truth differs from the own dataset's; QWK by scikit-learn."""
    good, bad = predictions("good", 0.3, seeds=(0, 1)), predictions("bad", 3, seeds=(0, 1))
    for table in (good, bad):
        table["dataset"] = "own"
    evaluate(written(tmp_path / "alone", good, bad), graded(), PARAMS, tmp_path / "alone/out")
    there = [
        predictions(name, noise, seeds=(0, 1), split="external", rng_seed=7).assign(dataset=site)
        for site, name, noise in (("b", "bad", 2), ("b", "good", 0.5), ("a", "bad", 2), ("a", "good", 0.5))
    ]
    both = [pd.concat([table, *(one for one in there if one["experiment"][0] == table["experiment"][0])])
            for table in (good, bad)]  # fmt: skip
    evaluate(written(tmp_path / "both", *both), graded(), PARAMS, tmp_path / "both/out")
    for name in ("leaderboard.csv", "metrics.json", "confusion.csv"):
        assert (tmp_path / "both/out" / name).read_bytes() == (tmp_path / "alone/out" / name).read_bytes()
    table = pd.read_csv(tmp_path / "both/out/external.csv")
    assert list(table.columns) == list(EXTERNAL_COLUMNS)
    assert list(zip(table["dataset"], table["experiment"], strict=True)) == [
        (site, name) for site in "ab" for name in ("good", "bad", "class_prior", "majority")
    ]
    seeds = [rows for _, rows in there[1].groupby("seed")]
    kappas = [cohen_kappa_score(rows["grade"], rows["predicted"], weights="quadratic") for rows in seeds]
    expected = np.mean(kappas)
    assert table["qwk"][4] == pytest.approx(expected, abs=1e-6)
    own = pd.read_csv(tmp_path / "both/out/leaderboard.csv").set_index("experiment")["qwk"]
    assert table["drop"][4] == pytest.approx(own["good"] - expected, abs=2e-6)
    empty = pd.read_csv(tmp_path / "alone/out/external.csv")
    assert list(empty.columns) == list(EXTERNAL_COLUMNS)
    assert empty.empty


def test_an_external_photograph_is_graded_by_the_mean_of_the_folds(tmp_path):
    """Two folds say grade 1 and 4 of every photograph for certain: together 2.5, rounded to 3."""
    paths = []
    for fold, grade in enumerate((1, 4)):
        own = predictions("one", 0.5).iloc[fold::2]
        there = predictions("one", 0.5, split="external").assign(dataset="site", predicted=grade, score=grade)
        there = there.assign(**{f"p{one}": float(one == grade) for one in range(5)})
        paths.append(tmp_path / f"seed0_fold{fold}/predictions.parquet")
        write_table(pd.concat([own, there]).assign(fold=fold), paths[-1], PREDICTIONS)
    table = gather(paths)["one"]
    assert len(table.query("split == 'test'")) == 2 * PATIENTS
    external = table.query("split == 'external'")
    assert len(external) == 2 * PATIENTS
    assert external["fold"].isna().all()
    assert (external[["p1", "p4"]] == 0.5).all(axis=None)
    assert (external[["score", "predicted"]] == [2.5, 3]).all(axis=None)


def results(folder, *tables):
    """Leaderboard by experiment, and metrics."""
    evaluate(written(folder, *tables), graded(), PARAMS, folder / "out")
    table = pd.read_csv(folder / "out/leaderboard.csv").set_index("experiment")
    return table, json.loads((folder / "out/metrics.json").read_text())


def test_thresholds_are_fitted_on_validation_of_the_same_seed(tmp_path):
    """Each seed's scores lie on a scale of its own: only its own thresholds make all grades right."""
    factors = (0.5, 0.8)
    table, metrics = results(
        tmp_path, pd.concat([scored("one", factors), scored("one", factors, split="val")])
    )
    row = table.loc["one"]
    assert [row["qwk_fitted"], row["qwk_fitted_low"], row["qwk_fitted_high"]] == [1, 1, 1]
    assert row["qwk"] < 0.9
    # a QWK of 1 on every resample: the gain is what the midpoints lack
    expected = [1 - row["qwk"], 1 - row["qwk_high"], 1 - row["qwk_low"]]
    assert row[["fitted_gain", "fitted_gain_low", "fitted_gain_high"]].tolist() == pytest.approx(expected)
    found = metrics["one"]["thresholds"]
    assert [(entry["seed"], entry["fold"]) for entry in found] == [(0, None), (1, None)]
    for entry, factor in zip(found, factors, strict=True):
        assert entry["thresholds"] == pytest.approx([factor * cut for cut in MIDPOINTS])
    assert metrics["one"]["fitted_gain"] == row["fitted_gain"]


def test_thresholds_come_from_validation_even_if_others_suit_the_test_better(tmp_path):
    """Validation calls for thresholds at half the midpoints; on the test the midpoints would be perfect."""
    table, _ = results(tmp_path, pd.concat([scored("one", [1.0]), scored("one", [0.5], split="val")]))
    test = predictions("one", 0)
    doubled = np.searchsorted([0.25, 0.75, 1.25, 1.75], test["score"], side="right")
    expected = cohen_kappa_score(test["grade"], doubled, weights="quadratic")
    assert table.loc["one", "qwk"] == 1
    assert table.loc["one", "qwk_fitted"] == pytest.approx(expected, abs=1e-6)
    assert table.loc["one", "fitted_gain"] == pytest.approx(expected - 1, abs=1e-6)
    assert table.loc["one", "fitted_gain_high"] < 0


def test_the_leaderboard_stays_in_the_order_of_the_midpoints(tmp_path):
    better_fitted = pd.concat([scored("a", [0.5]), scored("a", [0.5], split="val")])
    table, _ = results(tmp_path, better_fitted, predictions("b", 0.6))
    assert list(table.index[:2]) == ["b", "a"]
    assert table.loc["a", "qwk_fitted"] == 1 > table.loc["b", "qwk"]


def test_without_validation_of_every_training_nothing_is_fitted(tmp_path):
    none = scored("none", (0.5, 0.8))
    some = pd.concat([scored("some", (0.5, 0.8)), scored("some", [0.5], split="val")])
    ungraded = pd.concat(
        [scored("ungraded", [0.5]), scored("ungraded", [0.5], split="val").assign(grade=pd.NA)]
    )
    table, metrics = results(tmp_path, none, some, ungraded)
    for name in ("none", "some", "ungraded"):
        for column in COLUMNS[15:21]:
            assert math.isnan(table.loc[name, column])
            assert metrics[name][column] is None
        assert metrics[name]["thresholds"] == []


def test_each_fold_has_thresholds_of_its_own_and_external_photographs_their_mean(tmp_path):
    factors = {(0, 0): 0.3, (0, 1): 0.8, (1, 0): 0.9, (1, 1): 0.9}
    evaluate(in_folds(tmp_path, factors), graded(folds=3), PARAMS, tmp_path / "out")
    row = pd.read_csv(tmp_path / "out/leaderboard.csv").to_dict("records")[0]
    assert (row["experiment"], row["qwk"] < 0.95) == ("one", True)
    assert row["qwk_fitted"] == 1
    found = json.loads((tmp_path / "out/metrics.json").read_text())["one"]["thresholds"]
    assert [(entry["seed"], entry["fold"]) for entry in found] == list(factors)
    for entry in found[:2]:
        factor = factors[entry["seed"], entry["fold"]]
        assert entry["thresholds"] == pytest.approx([factor * cut for cut in MIDPOINTS])
    # seed 0: the mean score is 0.55 of the truth, the mean thresholds 0.55 of the midpoints
    there = pd.read_csv(tmp_path / "out/external.csv").to_dict("records")[0]
    assert (there["experiment"], there["qwk"] < 0.95) == ("one", True)
    assert (there["qwk_fitted"], there["qwk_fitted_low"]) == (1, 1)
    assert there["fitted_gain"] == pytest.approx(1 - there["qwk"], abs=2e-6)


def test_no_test_grade_moves_a_threshold(tmp_path):
    table = pd.concat([predictions("one", 0.8), predictions("one", 0.8, split="val", rng_seed=5)])
    mirrored = table.assign(grade=table["grade"].mask(table["split"] == "test", 4 - table["grade"]))
    (_, one), (_, other) = results(tmp_path / "one", table), results(tmp_path / "other", mirrored)
    assert one["one"]["qwk_fitted"] > 0 > other["one"]["qwk_fitted"]
    assert one["one"]["thresholds"] == other["one"]["thresholds"] != []


def test_impossible_validation_rows_are_named(tmp_path):
    val = predictions("one", 1, split="val")
    val.loc[val["image_id"] == "7_left", "score"] = np.nan
    paths = written(tmp_path, pd.concat([predictions("one", 1), val]))
    with pytest.raises(UserError, match="one: 7_left: score is not a number"):
        evaluate(paths, graded(), PARAMS, tmp_path / "out")
