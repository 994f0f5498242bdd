"""The stage on a small store of random images: what it writes, what it refuses, what it resumes."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from drgrade.encoders import create_encoder
from drgrade.errors import UserError
from drgrade.evaluate.leaderboard import evaluate
from drgrade.files import sha256
from drgrade.grading import stage
from drgrade.grading.base import GRADERS, Grader, Output, Start
from drgrade.grading.finetune import Finetune, Params
from drgrade.grading.majority import Params as Majority
from drgrade.grading.models import load_model
from drgrade.grading.photographs import parts_of, splits
from drgrade.grading.stage import Inputs, grade, graded_external, start_of
from drgrade.images.dataset import CroppedDataset
from drgrade.lesions import mask_store
from drgrade.lesions.mask_store import BITS
from drgrade.params import Crop, Evaluate, Experiment, Index
from drgrade.schema import CROPS, INDEX, LESION_BOXES, MASKS, PREDICTIONS, read_table, write_table
from drgrade.splits.assign import assign_splits
from drgrade.tracking import Run

SMALL = {"encoder": "test_efficientnet", "start": "random", "input_size": 32, "epochs": 1, "batch_size": 4}


def table(folds, split=None) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "image_id": [f"i{n}" for n in range(len(folds))],
            "patient_id": [f"p{n}" for n in range(len(folds))],
            "grade": pd.array([n % 5 for n in range(len(folds))], "Int8"),
            "split": split,
            "fold": pd.array(folds, "Int8"),
        }
    )


def test_holdout_uses_the_split_column():
    rows = table([None] * 4, ["train", "val", "test", "train"])
    ((fold, parts),) = splits(rows, "best")
    assert fold is None
    assert {part: list(found["image_id"]) for part, found in parts.items()} == {
        "train": ["i0", "i3"], "val": ["i1"], "test": ["i2"],
    }  # fmt: skip


@pytest.mark.parametrize(("select", "held_out"), [("best", [1, 2, 0]), ("last", [None, None, None])])
def test_every_photograph_is_tested_once_out_of_fold(select, held_out):
    rows = table([0, 1, 2] * 4, ["train"] * 12)
    tested = []
    for (fold, parts), val in zip(splits(rows, select), held_out, strict=True):
        assert set(parts["test"]["fold"]) == {fold}
        assert set(parts["val"]["fold"]) == (set() if val is None else {val})
        assert set(parts["train"]["fold"]) == {0, 1, 2} - {fold, val}
        tested += list(parts["test"]["image_id"])
    assert sorted(tested) == sorted(rows["image_id"])


def test_a_training_needs_its_fold_and_something_to_train_on():
    rows = table([0, 1] * 5, ["train"] * 10)
    parts = parts_of(rows, seed=0, fold=1, select="last", label_fraction=1.0)
    assert set(parts["test"]["fold"]) == {1}
    with pytest.raises(UserError, match="--fold 2: the index has the folds 0, 1"):
        parts_of(rows, seed=0, fold=2, select="last", label_fraction=1.0)
    with pytest.raises(UserError, match="no graded training photographs"):
        parts_of(table([None], ["test"]), seed=0, fold=None, select="best", label_fraction=1.0)


def test_label_fractions_take_whole_patients_inside_one_another():
    rows = table([None] * 100, ["train"] * 100)
    tenth, quarter, whole = (
        set(parts_of(rows, seed=0, fold=None, select="last", label_fraction=share)["train"]["image_id"])
        for share in (0.1, 0.25, 1.0)
    )
    assert tenth < quarter < whole
    assert (len(tenth), len(whole)) == (10, 100)


def test_a_start_is_found_and_has_the_digest_of_what_is_read(tmp_path):
    start = start_of(Params(start="imagenet"), None, 1)  # the packaged file, as its name has it
    assert (start.kind, start.weights, start.sha256[:8]) == ("imagenet", "imagenet", "57934424")
    assert start_of(Majority(), None, None) == Start("random")
    encoder, own, model = (
        tmp_path / name for name in ("encoder.safetensors", "encoder_fold1.safetensors", "model")
    )
    encoder.write_text("shared")
    pretrained = Params(start="lesion_contrastive")
    assert start_of(pretrained, tmp_path, 1) == Start("pretrain", encoder, sha256(encoder))
    own.write_text("of fold 1")
    assert start_of(pretrained, tmp_path, 1).path == own  # the fold's own encoder is preferred
    assert start_of(pretrained, tmp_path, 0).path == encoder
    model.mkdir()
    (model / "model.safetensors").write_text("trained")
    built = start_of(Params(start="experiment:other"), tmp_path, 1)
    assert (built.kind, built.path) == ("experiment", model / "model.safetensors")
    assert start_of(Params(start="a.pth"), own, None) == Start("file", own, sha256(own))
    with pytest.raises(UserError, match=r"no such file; run the stage that makes 'lesion_contrastive' first"):
        start_of(pretrained, tmp_path / "none", None)
    with pytest.raises(UserError, match="--start: not given, and the experiment starts from lesion_contrast"):
        start_of(pretrained, None, None)


def test_an_external_dataset_without_grades_is_refused(dataset):
    """As the test part of APTOS 2019, whose grades were never released; b's only graded crop failed."""
    site = dataset("site", grades=[None, 2, None])
    assert graded_external(site)["image_id"].tolist() == ["i1"]
    cut = pd.DataFrame(
        {"image_id": ["i0", "i1", "i2"], "row": [0, None, 2], "status": ["ok", "failed", "ok"]}
    )
    write_table(cut.reindex(columns=list(CROPS)), site.crops_file, CROPS)
    with pytest.raises(UserError, match=r"^roles\.external: 'site' has no graded photograph with a crop"):
        graded_external(CroppedDataset("site", site.folder))


def run(data, experiment, out, *, name="e", seed=0, fold=None, part=None, **inputs) -> dict:
    grade(name, experiment, Crop(), Inputs(data, **inputs), seed=seed, fold=fold, part=part, out=out)
    return json.loads((out / "training.json").read_text())


def test_each_training_writes_a_folder_of_its_own(dataset, tmp_path):
    data, site = dataset("own", folds=3), dataset("site")
    experiment = Params(**SMALL, select="last", seeds=[0, 1])
    written = {
        (seed, fold): run(
            data, experiment, tmp_path / f"seed{seed}_fold{fold}", seed=seed, fold=fold, external=[site]
        )
        for seed in (0, 1)
        for fold in (0, 1)
    }
    assert len({about["files"]["model.safetensors"] for about in written.values()}) == 4
    table = read_table(tmp_path / "seed1_fold0/predictions.parquet", PREDICTIONS)
    assert (set(table["seed"]), set(table["fold"])) == ({1}, {0})
    own, external = (table[table["dataset"] == name] for name in ("own", "site"))
    assert set(own["image_id"]) == {f"i{n}" for n in range(0, 15, 3)}
    assert set(own["split"]) == {"test"}
    assert len(external) == 15
    about = written[1, 0]
    assert about["start"] == {"weights": "random", "seed": 1}
    model = tmp_path / "seed1_fold0/model"
    assert about["files"] == {path.name: sha256(path) for path in model.iterdir()}
    loaded = load_model(model)
    assert isinstance(loaded, Finetune)
    assert loaded.preprocess.size == 32
    # the same job once more gives the same bytes
    assert (
        run(data, experiment, tmp_path / "again", seed=1, fold=0, external=[site])["files"] == about["files"]
    )


@pytest.mark.parametrize(
    "experiment", [Majority(), Params(**SMALL, select="last")], ids=lambda one: one.grader
)
def test_without_a_test_part_a_model_is_trained_on_all_and_evaluate_says_why_it_stops(
    dataset, tmp_path, experiment
):
    data = dataset("own")
    rows = data.index.assign(official_split=pd.Series("train", data.index.index, "string"))
    split = assign_splits(rows, Index(scheme="official", val_fraction=0.0))
    write_table(split, data.index_file, INDEX)
    data = CroppedDataset("own", data.folder)
    assert set(run(data, experiment, tmp_path / "seed0")["files"]) >= {"model.json"}
    assert load_model(tmp_path / "seed0/model").params.grader == experiment.grader
    predictions = tmp_path / "seed0/predictions.parquet"
    assert read_table(predictions, PREDICTIONS).empty
    with pytest.raises(
        UserError, match=r"^\S+parquet: no predictions of the split test, .* \(index.scheme: kfold\)"
    ):
        evaluate([predictions], data.graded(), tmp_path / "calibration.json", Evaluate(), tmp_path)


@pytest.fixture
def keys(dataset, tmp_path, monkeypatch):
    """Keys of trainings, in place of the trainings."""

    class ReachedError(Exception):
        pass

    def fit(self, job):
        raise ReachedError(job.key)

    monkeypatch.setattr(Finetune, "fit", fit)

    def key(data, experiment, **options) -> str:
        with pytest.raises(ReachedError) as known:
            run(data, experiment, tmp_path / "out", **options)
        return str(known.value)

    return key


def test_a_key_changes_with_what_is_learned_from_and_with_nothing_else(keys, dataset, tmp_path, monkeypatch):
    data, experiment = dataset("own"), Params(**SMALL)
    first = keys(data, experiment)
    assert keys(data, experiment) == first
    assert keys(data, experiment.model_copy(update={"seeds": [0, 7]})) == first  # another training's seed
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"one")
    assert keys(data, experiment.model_copy(update={"out_of_fold": 5})) == first  # other parts
    filed = experiment.model_copy(update={"start": str(weights)})
    started = keys(data, filed, start=weights)
    weights.write_bytes(b"two")
    found = {
        "start": started,
        "other weights in the same file": keys(data, filed, start=weights),
        "fraction": keys(data, experiment.model_copy(update={"label_fraction": 0.5})),
        "seed": keys(data, experiment, seed=1),
        "part": keys(data, experiment, part=(0, 2)),
        "the other part": keys(data, experiment, part=(1, 2)),
        "lr": keys(data, experiment.model_copy(update={"lr": 0.5})),
        "split": keys(dataset("split", splits=["train", "train", "val", "test", "train"]), experiment),
        "grades": keys(dataset("grades", grades=[4, 3, 2, 1, 0] * 3), experiment),
        "pictures": keys(dataset("pictures", pixel_seed=9), experiment),
    }
    monkeypatch.setattr("drgrade.resume.software", lambda *parts: "another code")
    found["code"] = keys(data, experiment)
    assert len({first, *found.values()}) == len(found) + 1, found


def write_weights(path, seed):
    torch.manual_seed(seed)
    torch.save(create_encoder("test_efficientnet", "random").state_dict(), path)
    return path


MOVED = ["train", "train", "test", "val", "train"]
"""A training photograph has become a test photograph, and the other way round."""
EDITS = {
    "lr": {"params": {"lr": 0.01}},
    "fold": {"fold": 1},
    "split": {"data": {"splits": MOVED}},
    "folds": {"data": {"folds": 5}},
}
"""Of each sort one: what else changes the key is tested above."""


@pytest.mark.parametrize(
    ("folds", "edit"),
    [(None, None), (3, None), (None, "lr"), (None, "split"), (3, "fold"), (3, "folds")],
)
def test_a_killed_training_resumes_only_as_it_was(dataset, tmp_path, monkeypatch, caplog, folds, edit):
    """Killed in its second epoch; what then comes out is what an undisturbed run of the edit gives."""
    change = EDITS.get(edit, {})
    grades = list(range(5)) * 6
    weights = write_weights(tmp_path / "start.pth", 0)
    experiment = Params(**SMALL | {"epochs": 3, "start": str(weights), "select": "last"})
    fold = None if folds is None else 0

    def stop(self, values, step=0):
        if step == 1:
            raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(Run, "metrics", stop)
        with pytest.raises(InterruptedError):
            run(
                dataset("own", grades=grades, folds=folds),
                experiment,
                tmp_path / "out",
                fold=fold,
                start=weights,
            )
    data = dataset("own", grades=grades, **{"folds": folds} | change.get("data", {}))
    edited = experiment.model_copy(update=change.get("params", {}))
    options = {"start": weights, "fold": change.get("fold", fold)}
    caplog.set_level("INFO")
    found = run(data, edited, tmp_path / "out", **options)
    assert any("resumes from" in record.getMessage() for record in caplog.records) == (edit is None)
    monkeypatch.setattr("drgrade.training.CHECKPOINTS", tmp_path / "elsewhere")
    assert found["files"] == run(data, edited, tmp_path / "undisturbed", **options)["files"]


def test_an_experiment_goes_on_from_the_model_of_another(dataset, tmp_path, monkeypatch):
    """As the networks of o_O do, from 128 to 256 px: the head too is where the other ended."""
    from drgrade.grading import regression

    data = dataset("own")
    run(data, Params(**SMALL), tmp_path / "small", name="small")
    begun = []
    begin = regression.begin
    monkeypatch.setattr(regression, "begin", lambda *args: begun.append(begin(*args)) or begun[-1])

    def fit(module, **_):
        begun.append({key: value.clone() for key, value in module.network.state_dict().items()})

    monkeypatch.setattr("drgrade.training.fit", fit)
    larger = Params(**SMALL | {"input_size": 48, "start": "experiment:small"})
    about = run(data, larger, tmp_path / "large", start=tmp_path / "small")
    small = load_model(tmp_path / "small/model")
    for key, value in small.network.state_dict().items():
        assert (begun[-1][key] == value).all(), key
    assert about["start"]["sha256"] == sha256(tmp_path / "small/model/model.safetensors")


def test_a_training_may_leave_out_a_part_of_the_patients(dataset, tmp_path):
    """What is left out and validation are graded; nothing else, and no other dataset."""
    data = dataset("own")
    whole = set(data.index.query("split == 'train'")["image_id"])
    left_out = []
    for part in range(2):
        about = run(data, Params(**SMALL), tmp_path / str(part), part=(part, 2), external=[dataset("site")])
        assert about["part"] == [part, 2]
        table = read_table(tmp_path / str(part) / "predictions.parquet", PREDICTIONS)
        assert set(table["split"]) == {"val", "left_out"}
        assert set(table["dataset"]) == {"own"}
        left_out.append(set(table.loc[table["split"] == "left_out", "image_id"]))
    assert left_out[0] | left_out[1] == whole
    assert not left_out[0] & left_out[1]
    with pytest.raises(UserError, match="6 training patients cannot be divided into 7 parts") as error:
        run(data, Params(**SMALL), tmp_path / "none", part=(0, 7))
    assert "\n" not in str(error.value)


class PairParams(Experiment):
    """Of :class:`Pair`."""

    grader: str = "pair"


class Pair(Grader):
    """Both eyes of a patient by the features of a member: what a blend looks like in this contract."""

    Params = PairParams
    fitted: dict[str, np.ndarray]

    def inputs(self, photographs):
        (features,) = [output.features for output in photographs.outputs.values()]
        partner = photographs.partner()
        other = np.where((partner < 0)[:, None], features, features[partner])
        return np.concatenate([features, other, np.ones((len(features), 1))], axis=1)

    def fit(self, job):
        weights, *_ = np.linalg.lstsq(self.inputs(job.train), job.train.grades, rcond=None)
        self.weights = weights

    def predict(self, photographs):
        score = np.clip(self.inputs(photographs) @ self.weights, 0, 4)
        return Output(np.eye(5)[np.rint(score).astype(int)], score)

    def facts(self):
        return {"weights": self.weights.tolist()}

    def rebuild(self, facts, shapes):
        self.weights = np.array(facts["weights"])


def test_a_blend_of_other_experiments_is_one_class(dataset, tmp_path, monkeypatch):
    monkeypatch.setitem(GRADERS._parts, "pair", Pair)
    monkeypatch.setattr("drgrade.resume.software", lambda *parts: "")  # it has no module
    data, site = dataset("own"), dataset("site", pixel_seed=2)
    run(data, Params(**SMALL), tmp_path / "member", name="member")
    blend = PairParams(members=["member"])
    about = run(
        data,
        blend,
        tmp_path / "blend",
        name="blend",
        members={"member": tmp_path / "member"},
        external=[site],
    )
    assert about["start"] == {}
    table = read_table(tmp_path / "blend/predictions.parquet", PREDICTIONS)
    assert set(table["split"]) == {"val", "test", "external"}
    member = load_model(tmp_path / "member/model")
    test = data.graded().query("split == 'test'").reset_index(drop=True)
    features = member.predict(stage.Photographs(data.images, test)).features
    place = {(row.patient_id, row.eye): n for n, row in enumerate(test.itertuples())}
    swap = {"left": "right", "right": "left"}
    other = [place.get((row.patient_id, swap[row.eye]), n) for n, row in enumerate(test.itertuples())]
    joined = np.concatenate([features, features[other], np.ones((len(test), 1))], axis=1)
    expected = np.clip(
        joined @ np.array(json.loads((tmp_path / "blend/model/model.json").read_text())["facts"]["weights"]),
        0,
        4,
    )
    np.testing.assert_allclose(table.query("split == 'test'")["score"], expected, atol=1e-6)
    with pytest.raises(UserError, match="--member member: not given"):
        run(data, blend, tmp_path / "none")


def test_boxes_are_given_in_crop_pixels_to_graders_that_need_them(dataset, tmp_path):
    """A crop of 40 px of a photograph's square from (10, 20) to (90, 100): half the scale."""
    data = dataset("own")
    cut = read_table(data.crops_file, CROPS).assign(x0=10, y0=20, x1=90, y1=100, scale=0.5)
    write_table(cut, data.crops_file, CROPS)
    lesion = {
        "image_id": ["i3", "gone"],
        "x1": 30,
        "y1": 40,
        "x2": 50,
        "y2": 44,
        "score": 0.9,
        "lesion": "MA",
    }
    write_table(pd.DataFrame(lesion), tmp_path / "lesions.parquet", LESION_BOXES)
    grader = type("Needy", (Pair,), {"needs": frozenset({"boxes"})})(PairParams(), Crop())
    known = stage.known_of(grader, Inputs(data, lesions=tmp_path / "lesions.parquet"))
    assert known["boxes"].values.tolist() == [["i3", 10, 10, 20, 12, pytest.approx(0.9), "MA"]]
    with pytest.raises(UserError, match="--lesions: the grader pair needs the stage lesions"):
        stage.known_of(grader, Inputs(data))


class Spots(Pair):
    """The share of a photograph that is as bright as drawn lesions: a grader that learns from masks."""

    needs = frozenset({"masks"})

    def inputs(self, photographs):
        bright = photographs.images[photographs.rows].mean(axis=3) >= self.level
        return np.stack([bright.mean(axis=(1, 2)), np.ones(len(photographs))], axis=1)

    def fit(self, job):
        masks = job.masked.masks
        drawn = masks[:] & masks.annotated[:, None, None] > 0
        self.level = float(job.masked.images[job.masked.rows].mean(axis=3)[drawn].min())
        super().fit(job)

    def facts(self):
        return super().facts() | {"level": self.level}

    def rebuild(self, facts, shapes):
        super().rebuild(facts, shapes)
        self.level = facts["level"]


def masked(dataset, brightest):
    """Mask photographs of two patients, one of them for training; pixels from ``brightest`` on are EX."""
    data = dataset("masked", grades=[None] * 4, splits=["train", "val"], pixel_seed=5)
    write_table(data.index.assign(subset="segmentation"), data.index_file, INDEX)
    drawn = (data.images[:].mean(axis=3) >= brightest).astype(np.uint8) * BITS["EX"]
    done = pd.DataFrame({"image_id": [f"i{n}" for n in range(4)], "row": range(4), "status": "ok"})
    write_table(done.assign(annotated=BITS["EX"], reason=""), data.masks_folder / mask_store.TABLE, MASKS)
    np.save(data.masks_folder / mask_store.ARRAY, drawn)
    return CroppedDataset("masked", data.folder)


def test_a_grader_that_learns_from_masks_is_one_class(dataset, tmp_path, monkeypatch):
    monkeypatch.setitem(GRADERS._parts, "pair", Spots)
    monkeypatch.setattr("drgrade.resume.software", lambda *parts: "")
    data, keys = dataset("own"), []
    fit = Spots.fit
    monkeypatch.setattr(Spots, "fit", lambda self, job: (keys.append(job.key), fit(self, job)))
    for brightest in (200, 220, 200):
        source = masked(dataset, brightest)
        run(data, PairParams(), tmp_path / "spots", masked=source)
        train = source.images[[0, 1]].mean(axis=3)  # the other patient is of the validation part
        assert load_model(tmp_path / "spots/model").level == train[train >= brightest].min()
    assert keys[0] == keys[2] != keys[1]
    table = read_table(tmp_path / "spots/predictions.parquet", PREDICTIONS)
    assert set(table["split"]) == {"val", "test"}
    with pytest.raises(UserError, match="--masked: the grader pair needs the stage lesion_masks"):
        run(data, PairParams(), tmp_path / "none")
    write_table(source.index.assign(split="test"), source.index_file, INDEX)
    with pytest.raises(UserError, match=r"masks\.parquet: no training photograph with masks"):
        run(data, PairParams(), tmp_path / "none", masked=CroppedDataset("masked", source.folder))
