"""Subgroups against direct computations by pandas and scikit-learn."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, cohen_kappa_score, mean_absolute_error, recall_score
from tests.evaluate.tables import predictions, written

from drgrade.bootstrap import interval
from drgrade.errors import UserError
from drgrade.evaluate.intervals import bootstrap
from drgrade.evaluate.subgroups import COLUMNS, members, subgroups, write_subgroups
from drgrade.params import Evaluate

QUICK = Evaluate(bootstrap=100)


def index_of(table: pd.DataFrame) -> pd.DataFrame:
    """An index of the photographs: every third is small, every fourth has no eye; the order is another."""
    rows = table.drop_duplicates("image_id").reset_index(drop=True)
    place = np.arange(len(rows))
    found = rows[["image_id"]].assign(
        eye=rows["eye"].where(place % 4 > 0),
        width=np.where(place % 3 == 0, 800, 1999),
        height=np.where(place % 5 == 0, 2000, 700),
        quality=pd.array(np.where(place < 4, np.nan, np.linspace(0.4, 1, len(rows))), "Float32"),
    )
    return found.iloc[::-1]


@pytest.fixture(scope="module")
def tables():
    """Two experiments, one with two seeds, tested on their own dataset and at another site."""
    good = predictions("good", 0.6, seeds=(0, 1))
    there = predictions("good", 1.0, seeds=(0, 1), split="external").assign(dataset="site")
    return {"good": pd.concat([good, there], ignore_index=True), "bad": predictions("bad", 2.0)}


@pytest.fixture(scope="module")
def indexes(tables):
    return {"own": index_of(tables["bad"]), "site": index_of(tables["bad"])}


@pytest.fixture(scope="module")
def found(tables, indexes):
    return subgroups(tables, indexes, QUICK)


def expected_members(index: pd.DataFrame) -> dict[tuple[str, str], set[str]]:
    """Photographs of each subgroup, one by one."""
    groups: dict[tuple[str, str], set[str]] = {}
    for row in index.itertuples():
        side = max(row.width, row.height)
        if pd.isna(row.quality):
            quality = "unknown"
        else:
            quality = "below 0.5" if row.quality < 0.5 else "0.5 to 0.9"
            quality = "0.9 or above" if row.quality >= np.float32(0.9) else quality
        names = {
            "eye": "unknown" if pd.isna(row.eye) else row.eye,
            "quality": quality,
            "resolution": "below 1000 px" if side < 1000 else "1000 to 1999 px" if side < 2000
            else "2000 to 2999 px",
            "site": "own",
        }  # fmt: skip
        for key in names.items():
            groups.setdefault(key, set()).add(row.image_id)
    return groups


def test_every_metric_is_that_of_scikit_learn(tables, indexes, found):
    groups = expected_members(indexes["own"])
    own = tables["good"][tables["good"]["dataset"] == "own"]
    rows = found[(found["experiment"] == "good") & (found["dataset"] == "own")]
    assert set(zip(rows["subgroup"], rows["value"], strict=True)) == set(groups)
    for row in rows.itertuples():
        photographs = own[own["image_id"].isin(groups[row.subgroup, row.value])]
        seeds = [one for _, one in photographs.groupby("seed")]
        assert (row.n, row.patients) == (len(seeds[0]), seeds[0]["patient_id"].nunique())
        assert row.referable == (seeds[0]["grade"] >= 2).sum()
        if row.n < 10:
            assert row.reason == "fewer than 10 photographs"
            assert np.isnan(row.qwk)
            continue
        pairs = [(one["grade"].astype(int), one["predicted"].astype(int)) for one in seeds]
        values = {
            "qwk": [cohen_kappa_score(*pair, weights="quadratic", labels=range(5)) for pair in pairs],
            "accuracy": [accuracy_score(*pair) for pair in pairs],
            "mae": [mean_absolute_error(*pair) for pair in pairs],
            "referable_sensitivity": [recall_score(y >= 2, p >= 2) for y, p in pairs],
            "referable_specificity": [recall_score(y < 2, p < 2) for y, p in pairs],
        }
        for name, by_seed in values.items():
            assert getattr(row, name) == pytest.approx(np.mean(by_seed), abs=1e-6), name
        assert pd.isna(row.reason)


def test_intervals_are_those_of_the_common_bootstrap(tables, indexes, found):
    own = tables["bad"][tables["bad"]["eye"] == "left"]
    left = set(indexes["own"].query("eye == 'left'")["image_id"])
    own = own[own["image_id"].isin(left)].sort_values("image_id")
    grades, predicted = own["grade"].to_numpy(int), own["predicted"].to_numpy(int)
    draws = bootstrap(grades, predicted[None], own["patient_id"].to_numpy(str), QUICK.bootstrap, QUICK.seed)
    row = found.query("experiment == 'bad' and subgroup == 'eye' and value == 'left'").iloc[0]
    assert (row["qwk_low"], row["qwk_high"]) == pytest.approx(interval(draws), abs=1e-6)


def test_rows_are_ordered_by_dataset_and_experiment(found):
    places = found[["dataset", "experiment"]].drop_duplicates().to_numpy().tolist()
    assert places == [["own", "good"], ["own", "bad"], ["site", "good"]]
    assert found.columns.tolist() == list(COLUMNS)
    assert found["subgroup"].drop_duplicates().tolist() == ["eye", "quality", "resolution", "site"]
    assert found.query("subgroup == 'site'")["value"].tolist() == ["own", "own", "site"]


def test_each_photograph_is_in_one_group_of_each_kind(indexes):
    index = indexes["own"]
    counts: dict[str, np.ndarray] = {}
    for subgroup, _, chosen in members(index, "own"):
        counts[subgroup] = counts.get(subgroup, 0) + chosen
    assert set(counts) == {"eye", "quality", "resolution", "site"}
    assert all((one == 1).all() for one in counts.values())


def test_limits_belong_to_the_upper_band():
    index = pd.DataFrame({"eye": "left", "quality": [0.5, 0.9], "width": [1000, 3000], "height": [9, 9]})
    index = index.astype({"quality": "Float32", "width": "Int32", "height": "Int32"})
    places = {(group, value): chosen.tolist() for group, value, chosen in members(index, "own")}
    assert places["quality", "0.5 to 0.9"] == [True, False]
    assert places["quality", "0.9 or above"] == [False, True]
    assert places["resolution", "1000 to 1999 px"] == [True, False]
    assert places["resolution", "3000 px or above"] == [False, True]


def test_the_file_is_the_same_each_time(tables, indexes, tmp_path):
    paths = written(tmp_path, tables["good"], tables["bad"])
    for name in ("one.csv", "other.csv"):
        write_subgroups(paths, indexes, QUICK, tmp_path / name)
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "other.csv").read_bytes()
    assert len(pd.read_csv(tmp_path / "one.csv")) == len(subgroups(tables, indexes, QUICK))


def test_an_index_that_is_missing_or_lacks_a_photograph_is_a_users_mistake(tables, indexes):
    with pytest.raises(UserError, match="--external site: not given, and good was tested on it"):
        subgroups(tables, {"own": indexes["own"]}, QUICK)
    short = {**indexes, "own": indexes["own"].iloc[1:]}
    gone = indexes["own"]["image_id"].iloc[0]
    with pytest.raises(UserError, match=f"{gone} of own is not in index.parquet"):
        subgroups(tables, short, QUICK)
