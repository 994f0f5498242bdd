import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import cohen_kappa_score

from drgrade.errors import UserError
from drgrade.evaluate.submission import patient_of, score_submission, write_submission
from drgrade.params import Evaluate
from drgrade.schema import PREDICTIONS, write_table

PUBLIC = {"1_left": 0.2, "1_right": 1.2}
PRIVATE = {"10_left": 3.6, "10_right": 0.5, "2_left": 2.4}
SCORES = PUBLIC | PRIVATE


def table(scores, *, name="o_o", seed=0, fold=None, split="test", dataset="eyepacs", grades=None):
    """Predictions of one training, from scores (and true grades) by image_id."""
    images, values = list(scores), np.array(list(scores.values()), float)
    return pd.DataFrame(
        {
            "dataset": dataset, "image_id": images, "patient_id": [image.split("_")[0] for image in images],
            "eye": [image.split("_")[1] for image in images], "split": split,
            "grade": [(grades or {}).get(image, 0) for image in images], "score": values,
            **{f"p{grade}": np.clip(1 - abs(values - grade), 0, 1) for grade in range(5)},
            "predicted": np.floor(values + 0.5), "experiment": name, "seed": seed, "fold": fold,
        }
    )  # fmt: skip


@pytest.fixture
def written(tmp_path):
    """Writes trainings, one or more tables each, as the stage grade does; returns their paths."""

    def write(*trainings):
        paths = []
        for training in trainings:
            paths.append(tmp_path / f"training{len(paths)}" / "predictions.parquet")
            write_table(training, paths[-1], PREDICTIONS)
        return paths

    return write


def both(**options):
    """The predictions of one training for the public and the private part."""
    return pd.concat([table(PRIVATE, **options), table(PUBLIC, split="val", **options)])


def test_submission_byte_for_byte(written, tmp_path):
    write_submission(written(both()), tmp_path / "new/submission.csv")
    expected = b"image,level\n10_left,4\n10_right,1\n1_left,0\n1_right,1\n2_left,2\n"
    assert (tmp_path / "new/submission.csv").read_bytes() == expected


def test_scores_of_seeds_are_averaged_before_they_become_grades(written, tmp_path):
    paths = written(
        table({"1_left": 0.4, "1_right": 1.0}),
        table({"1_right": 1.25, "1_left": 0.4}, seed=1),
        table({"1_left": 2.8, "1_right": 2.25}, seed=7),
    )
    write_submission(paths, tmp_path / "out.csv", continuous=True)
    found = pd.read_csv(tmp_path / "out.csv")
    # the grades of 1_right are 1, 1 and 2: their mean would give 1
    assert found["level"].tolist() == [1, 2]
    assert list(found.columns) == ["image", "level", "score"]
    assert found["score"].tolist() == pytest.approx([1.2, 1.5])


def test_folds_count_equally_within_a_seed(written, tmp_path):
    paths = written(
        pd.concat([table({"1_left": 1.0}, fold=0), table({"2_left": 3.0}, fold=0, split="val")]),
        pd.concat([table({"2_left": 2.0}, fold=1), table({"1_left": 4.0}, fold=1, split="val")]),
    )
    write_submission(paths, tmp_path / "out.csv", continuous=True)
    assert pd.read_csv(tmp_path / "out.csv")["score"].tolist() == [2.5, 2.5]


def test_an_external_dataset_is_submitted_alone_and_only_on_request(written, tmp_path):
    outside = table({"9_left": 2.0, "1_left": 3.0}, split="external", dataset="hospital")
    paths = written(pd.concat([both(), outside]))
    write_submission(paths, tmp_path / "own.csv")
    assert len(pd.read_csv(tmp_path / "own.csv")) == len(SCORES)
    write_submission(paths, tmp_path / "other.csv", external="hospital")
    assert (tmp_path / "other.csv").read_text() == "image,level\n1_left,3\n9_left,2\n"
    with pytest.raises(UserError, match="external dataset 'eyepacs'; there are: hospital"):
        write_submission(paths, tmp_path / "no.csv", external="eyepacs")
    only = written(table({"9_left": 2.0}, split="external"))
    with pytest.raises(UserError, match="no predictions of the splits val and test"):
        write_submission(only, tmp_path / "no.csv")


def test_a_sample_of_the_same_images_changes_nothing(written, tmp_path):
    paths, sample = written(both()), tmp_path / "sample.csv"
    sample.write_text(
        "level,Image\r\n0,2_left\r\n" + "".join(f"0,{image}\r\n" for image in SCORES if "1" in image)
    )
    write_submission(paths, tmp_path / "one.csv")
    write_submission(paths, tmp_path / "other.csv", sample=sample)
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "other.csv").read_bytes()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["image", *SCORES, "8_left", "7_left"], "o_o: lacks 2 of the 7 images of .*csv, first 7_left;"),
        (["image", *PRIVATE], "o_o: has 2 images that .*sample.csv lacks, first 1_left;"),
        (["image", "5", *PUBLIC], "lacks 1 of the 3 images .*, first 5 and has 3 images .*, first 10_left;"),
        (["image", *SCORES, "2_left"], "sample.csv: line 7: 2_left stands in line 6 already"),
        (["image,level", ",0"], "sample.csv: line 2: no image"),
        (["id", *SCORES], "sample.csv: line 1: no column 'image'"),
    ],
)  # fmt: skip
def test_a_sample_of_other_images_is_refused(lines, message, written, tmp_path):
    (tmp_path / "sample.csv").write_text("\n".join(lines))
    with pytest.raises(UserError, match=message):
        write_submission(written(both()), tmp_path / "out.csv", sample=tmp_path / "sample.csv")
    assert not (tmp_path / "out.csv").exists()


def test_thresholds_are_fitted_on_the_mean_validation_scores(written, tmp_path):
    """Scores of 1, 1.5, 2, 2.5 and 3 for the grades 0 to 4 give the thresholds 1.25, 1.75, 2.25 and 2.75."""
    grades = {f"{grade}_left": grade for grade in range(5)}
    val = {image: 1 + grade / 2 for image, grade in grades.items()}
    test = {"5_left": 1.2, "5_right": 1.3, "6_left": 2.7, "6_right": 2.8}

    def training(seed, shift):
        shifted = [{image: score + shift for image, score in part.items()} for part in (val, test)]
        of_val = table(shifted[0], split="val", seed=seed, grades=grades)
        return pd.concat([of_val, table(shifted[1], seed=seed, grades={"5_left": 4})])

    paths = written(training(0, -0.4), training(1, 0.4))  # neither gives these thresholds by itself
    write_submission(paths, tmp_path / "fitted.csv", thresholds="fitted")
    found = pd.read_csv(tmp_path / "fitted.csv").set_index("image")["level"]
    assert found.to_dict() == grades | {"5_left": 0, "5_right": 1, "6_left": 3, "6_right": 4}
    write_submission(paths, tmp_path / "midpoints.csv")
    assert pd.read_csv(tmp_path / "midpoints.csv").set_index("image")["level"]["5_left"] == 1


def test_without_validation_there_is_nothing_to_fit(written, tmp_path):
    with pytest.raises(UserError, match="o_o: no graded validation photographs"):
        write_submission(written(table(SCORES)), tmp_path / "out.csv", thresholds="fitted")


def test_tables_that_do_not_belong_together_are_refused(written, tmp_path):
    out = tmp_path / "out.csv"
    with pytest.raises(UserError, match="of one experiment, not of o_o, ram"):
        write_submission(written(both(), both(name="ram")), out)
    with pytest.raises(UserError, match="of one experiment, not of none"):
        write_submission([], out)
    with pytest.raises(UserError, match="o_o: seed 1 lacks 2 photographs of other seeds, such as 1_left"):
        write_submission(written(both(), table(PRIVATE, seed=1)), out)
    with pytest.raises(UserError, match="o_o: 2_left: the score is nan"):
        write_submission(written(both(), table(SCORES | {"2_left": np.nan}, seed=1)), out)


def solved(folder, patients=40, seed=0):
    """A solution of both eyes of patients, a submission, and both as a table; a quarter is public."""
    rng = np.random.default_rng(seed)
    grades = np.clip(np.repeat(rng.integers(0, 5, patients), 2) + rng.integers(-1, 2, 2 * patients), 0, 4)
    rows = pd.DataFrame(
        {
            "image": [f"{patient}_{eye}" for patient in range(patients) for eye in ("left", "right")],
            "level": grades,
            "Usage": np.repeat(["Private" if patient % 4 else "Public" for patient in range(patients)], 2),
            "given": np.clip(grades + rng.integers(-2, 3, 2 * patients), 0, 4),
        }
    )  # fmt: skip
    rows[["image", "level", "Usage"]].to_csv(folder / "solution.csv", index=False)
    submitted = rows[["image", "given"]].rename(columns={"given": "level"}).sample(frac=1, random_state=1)
    submitted.to_csv(folder / "submission.csv", index=False)
    return rows


def test_score_against_scikit_learn(tmp_path):
    rows = solved(tmp_path)
    found = score_submission(tmp_path / "submission.csv", tmp_path / "solution.csv", Evaluate(bootstrap=200))
    assert list(found) == ["public", "private", "all"]
    for part, usage in (("public", ["Public"]), ("private", ["Private"]), ("all", ["Public", "Private"])):
        chosen = rows[rows["Usage"].isin(usage)]
        oracle = cohen_kappa_score(chosen["level"], chosen["given"], labels=range(5), weights="quadratic")
        assert found[part]["qwk"] == pytest.approx(oracle, abs=1e-12)
        assert found[part]["qwk_low"] < oracle < found[part]["qwk_high"]
        assert (found[part]["n"], found[part]["patients"]) == (len(chosen), len(chosen) // 2)
    assert found["public"]["n"] == 20
    widths = {part: values["qwk_high"] - values["qwk_low"] for part, values in found.items()}
    assert widths["all"] < widths["public"]


def test_intervals_resample_patients_not_photographs(tmp_path):
    """The photographs of a single patient are the same in every resample."""
    (tmp_path / "solution.csv").write_text("image,level,Usage\n7_left,0,Private\n7_right,2,Private\n")
    (tmp_path / "submission.csv").write_text("image,level\n7_right,1\n7_left,0\n")
    # observed disagreement (2 - 1)^2 / 2; by chance (0 + 1 + 4 + 1) / 4
    expected = pytest.approx(1 - (1 / 2) / (6 / 4))
    found = score_submission(tmp_path / "submission.csv", tmp_path / "solution.csv", Evaluate(bootstrap=100))
    assert found["private"] == {
        "qwk": expected,
        "qwk_low": expected,
        "qwk_high": expected,
        "n": 2,
        "patients": 1,
    }
    assert "public" not in found


def test_patients_of_image_names():
    names = ["10_left", "10_right", "a_b_left", "10", "10_up", "_left"]
    assert [patient_of(name) for name in names] == ["10", "10", "a_b", "10", "10_up", "_left"]


def test_a_written_submission_can_be_scored(written, tmp_path):
    write_submission(written(both()), tmp_path / "submission.csv", continuous=True)
    lines = [f"{image},{round(score + 1e-9)},Public" for image, score in SCORES.items()]
    (tmp_path / "solution.csv").write_text("\n".join(["image,level,Usage", *lines]))
    found = score_submission(tmp_path / "submission.csv", tmp_path / "solution.csv", Evaluate(bootstrap=100))
    assert (found["all"]["qwk"], found["all"]["n"], found["all"]["patients"]) == (1, 5, 3)


SOLUTION = "image,level,Usage\n1_left,0,Public\n1_right,3,Private\n"


@pytest.mark.parametrize(
    ("submission", "solution", "message"),
    [
        ("image,level\n1_left,0\n", SOLUTION, "lacks 1 of the 2 images of .*solution.csv, first 1_right;"),
        (
            "image,level\n1_left,0\n1_right,1\n9_left,0\n2_left,4\n",
            SOLUTION,
            "submission.csv: has 2 images that .*solution.csv lacks, first 2_left;",
        ),
        ("image,level\n1_left,0\n1_right,2.5\n", SOLUTION, "submission.csv: line 3: grade '2.5' is not"),
        ("image,level\n1_left,0\n1_right,\n", SOLUTION, "submission.csv: line 3: grade '' is not"),
        ("image,level\n1_left,0\n1_right,5\n", SOLUTION, "submission.csv: line 3: grade '5' is not"),
        ("image,level\n1_left,0\n1_left,0\n", SOLUTION, "line 3: image '1_left' has a label already"),
        ("image,score\n1_left,0\n", SOLUTION, "submission.csv: line 1: no column 'level'"),
        ("image,level\n1_left,0\n", "image,level\n1_left,0\n", "solution.csv: 1_left: no Usage"),
        ("image,level\n1_left,0\n", "image,level,Usage\n1_left,0,Secret\n", "Usage 'Secret' is not one of"),
        (None, SOLUTION, "submission.csv: no such file; write it with the verb submission"),
    ],
)
def test_a_submission_that_does_not_fit_is_refused(submission, solution, message, tmp_path):
    (tmp_path / "solution.csv").write_text(solution)
    if submission is not None:
        (tmp_path / "submission.csv").write_text(submission)
    with pytest.raises(UserError, match=message):
        score_submission(tmp_path / "submission.csv", tmp_path / "solution.csv")
