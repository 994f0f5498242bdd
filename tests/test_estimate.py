import re
from typing import Any

import pytest

from drgrade.estimate import StageCost, estimate, stage_costs, train_share, trainings
from drgrade.params import Dataset, Demo, Download, Grade, Index, Params, Roles


def test_a_small_run_says_nothing():
    assert estimate(Params(), cores=2) == []


def test_a_large_run_says_what_it_needs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    params = Params(
        datasets={"demo": Dataset(), "eyepacs": Dataset()},
        roles=Roles(pretrain="eyepacs", grade="eyepacs", external=[]),
    )
    lines = estimate(params, cores=2)
    # 88,702 crops of 256 px in RGB are 17.4 GB
    assert "eyepacs: 88702 photographs; disk: 17.4 GB" in lines[0]
    stages = [line.split(":")[0] for line in lines[1:]]
    assert stages[:5] == ["detector", "segmentation", "lesions", "pretrain", "grade"]
    assert lines[5].startswith("grade: 3 runs")


def test_limit_and_manifest_count(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    roles = Roles(grade="eyepacs", external=[])
    small = Params(datasets={"demo": Dataset(), "eyepacs": Dataset(limit=100)}, roles=roles)
    assert estimate(small, cores=2) == []
    manifest = tmp_path / "results/eyepacs/download/manifest.tsv"
    manifest.parent.mkdir(parents=True)
    manifest.write_text("path\tsize\tsha256\n" + "".join(f"{n}.jpeg\t1\tx\n" for n in range(3000)))
    whole = Params(datasets={"demo": Dataset(), "eyepacs": Dataset()}, roles=roles)
    assert "eyepacs: 3000 photographs" in estimate(whole, cores=2)[0]


def test_trainings_are_experiments_by_seeds_by_folds():
    params = Params(
        index=Index(scheme="kfold", folds=5),
        grade=Grade(select="last"),
        experiments={
            "majority": {"grader": "majority"},
            "probe": {"grader": "linear"},
            "lesion_contrastive": {"start": "lesion_contrastive", "seeds": [0, 1, 2]},
        },
    )
    assert trainings(params) == {"lesion_contrastive": 15}


def passes(stage: str, **params: Any) -> int:
    """Photographs that a stage goes over, as printed."""
    lines = estimate(Params(download=Download(demo=Demo(patients=5000)), **params), cores=2)
    (line,) = [line for line in lines if line.startswith(f"{stage}:")]
    return int(re.search(r"(\d+) photograph passes", line)[1])


def test_an_experiment_costs_what_it_sets_itself(tmp_path, monkeypatch):
    """Of 10,016 photographs of 5,000 patients 15 % validate and 25 % test."""
    monkeypatch.chdir(tmp_path)

    def grading(**own):
        experiments = {
            "majority": {"grader": "majority"},
            "lesion_contrastive": {"start": "imagenet", **own},
        }
        return passes("grade", experiments=experiments)

    train = 10_016 * 0.6
    assert grading() == round(train * Grade().epochs)
    assert grading(epochs=3) == round(train * 3)
    assert grading(label_fraction=0.25) == round(train * Grade().epochs / 4)


def test_pretraining_and_frozen_encoders_are_counted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pretrain = {"lesion_contrastive": {"epochs": 4}, "simclr": {"epochs": 1}}
    assert passes("pretrain", pretrain=pretrain) == round(10_016 * 0.6 * 5)
    probe = {"grader": "linear", "start": "lesion_contrastive", "seeds": [0, 1]}
    known = {"lesion_contrastive": {"start": "lesion_contrastive"}, "probe": probe}
    assert passes("probes", experiments=known) == 2 * (10_016 + 32)  # those of demo_site too
    folds = {"index": Index(scheme="kfold", folds=5), "pretrain": {"simclr": {"epochs": 1}}}
    alone = {"lesion_contrastive": {"start": "simclr"}}
    assert passes("pretrain", **folds, experiments=alone) == 10_016 * 5 * 4 / 5
    assert passes("grade", **folds, experiments=alone) == 10_016 * 5 * 3 / 5 * Grade().epochs


def test_deepmt_costs_all_its_phases_at_high_resolution(tmp_path, monkeypatch):
    """One training on 60 % of 10,016 photographs of 256 px, with half the published width of segmentation."""
    monkeypatch.chdir(tmp_path)
    phases = {"restoration": {"epochs": 3}, "grading": {"epochs": 2}, "joint": {"epochs": 4}}

    def cost(**own: Any) -> StageCost:
        row = {"grader": "deepmt", "input_size": 64, "segmentation_width": 32, **phases, **own}
        params = Params(
            crop={"size": 256}, download=Download(demo=Demo(patients=5000)), experiments={"deepmt": row},
            pretrain={}, explanations={},
        )  # fmt: skip
        (found,) = stage_costs(params)
        assert (found.stage, found.trainings) == ("grade", 1)
        return found

    train = 10_016 * 0.6
    once = train * (256 / 288) ** 2 / 9 / 3600  # hours of a pass of EfficientNet-Lite0
    assert cost().passes == pytest.approx(train * (2 * 3 + 2 + 2 * 4))  # pairs in the outer phases
    assert cost().hours == pytest.approx(16 * once * (1 + 50 / 4))
    without = cost(segmentation="none")
    assert (without.passes, without.hours) == (pytest.approx(train * 16), pytest.approx(16 * once))
    neither = cost(segmentation="none", super_resolution="none")  # its first phase trains nothing
    assert (neither.passes, neither.hours) == (pytest.approx(train * 10), pytest.approx(10 * once))


def test_features_and_out_of_fold_trainings_are_counted(tmp_path, monkeypatch):
    """Two seeds of a network with three parts: eight trainings, six models that read all photographs."""
    monkeypatch.chdir(tmp_path)
    net = {"start": "imagenet", "seeds": [0, 1], "out_of_fold": 3, "epochs": 2}
    known = {
        "experiments": {"lesion_contrastive": net},
        "features": {"pooled": {"experiment": "lesion_contrastive", "transforms": 5}},
    }
    assert passes("grade", **known) == round(10_016 * 0.6 * 2 * 8)
    assert passes("features", **known) == 5 * 6 * (10_016 + 32)


def test_no_lesions_are_searched_where_nobody_looks_at_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    alone = {"lesion_contrastive": {"start": "simclr"}}
    params = Params(download=Download(demo=Demo(patients=5000)), pretrain={"simclr": {}}, experiments=alone)
    assert [cost.stage for cost in stage_costs(params)] == ["pretrain", "grade"]


def test_segmentations_are_counted_where_something_needs_them():
    """Tiles of 192 px, of which a pixel takes 1.9 times as long as in EfficientNet-Lite0."""
    counted = {"grader": "lesion_counts", "tile": 192, "tiles_per_photograph": 16, "epochs": 28}
    roles = Roles(lesions="idrid", pretrain="idrid", grade="idrid", external=[])

    def cost(**own: Any) -> list[StageCost]:
        params = Params(
            datasets={"idrid": Dataset()}, roles=roles, index=Index(val_fraction=0.25), explanations={}, **own
        )
        return [one for one in stage_costs(params) if one.stage in ("detector", "segmentation")]

    (found,) = cost(experiments={"counts": counted | {"seeds": [0, 1]}}, pretrain={})
    assert (found.trainings, found.passes) == (2, 2 * 28 * 54 * 0.75)
    hours = found.passes * 16 * 1.9 * (192 / 288) ** 2 / 9 / 3600
    assert found.hours == pytest.approx(hours)
    lesions = {"experiments": {"lesion_contrastive": {"start": "lesion_contrastive"}}}
    assert [one.stage for one in cost(**lesions)] == ["detector", "segmentation"]
    assert [one.stage for one in cost(**lesions, segmentation={"use": False})] == ["detector"]
    marks = {"lesions": {"source": "segmentation"}, "segmentation": {"use": False, "epochs": 3}}
    assert [(one.stage, one.passes) for one in cost(**lesions, **marks)] == [("segmentation", 3 * 54 * 0.75)]
    assert cost(experiments={"majority": {"grader": "majority"}}, pretrain={}) == []


def test_the_official_training_part_is_what_is_trained_on():
    params = Params(
        datasets={"idrid": Dataset(), "ddr": Dataset()},
        roles=Roles(lesions="idrid", pretrain="idrid", grade="idrid", external=[]),
        index=Index(scheme="official", val_fraction=0.25),
    )
    assert train_share(params, "idrid") == pytest.approx(413 / 516 * 0.75)
    assert train_share(params, "ddr") == pytest.approx(6835 / 13673)  # it has a validation part of its own


def test_a_detector_that_resizes_photographs_costs_what_is_left_of_them(tmp_path, monkeypatch):
    """The published detector sees at most 1600 x 1200 of 12 megapixels; one without resizing sees all."""
    monkeypatch.chdir(tmp_path)

    def searched(config: str) -> float:
        params = Params(
            datasets={"idrid": Dataset(), "eyepacs": Dataset()},
            roles=Roles(lesions="idrid", pretrain="eyepacs", grade="eyepacs", external=[]),
            lesion_boxes={"tile": None, "scale": 1.0},
            detector={"config": config},
        )
        return next(cost.hours for cost in stage_costs(params) if cost.stage == "lesions")

    whole = 88_702 * 12 / 2 / 3600
    assert searched("rtmdet-tiny_tiles") == pytest.approx(whole)
    assert searched("faster-rcnn_r50_fpn_idrid") == pytest.approx(whole * 1.92 / 12)
