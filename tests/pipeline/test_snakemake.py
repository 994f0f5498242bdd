import json
import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from safetensors.torch import save_file

from drgrade.encoders import create_encoder
from drgrade.schema import CROPS, INDEX, LESION_BOXES, MASKS, PREDICTIONS, read_table

DOWN_FROM_GRADE = {"grade", "robustness", "calibrate", "evaluate", "explain", "report"}


def test_every_stage_leaves_what_the_contract_says(snakemade):
    index = read_table(snakemade.file("index/index.parquet"), INDEX)
    crops = read_table(snakemade.file("crop/crops.parquet"), CROPS)
    read_table(snakemade.file("lesions/lesions.parquet"), LESION_BOXES)
    assert sorted(index["image_id"]) == sorted(crops["image_id"])
    graded = index[(index["subset"] == "grading") & (index["status"] == "ok")]
    for experiment in ("majority", "lesion_contrastive"):
        predictions = read_table(snakemade.file(f"grade/{experiment}/seed0/predictions.parquet"), PREDICTIONS)
        expected = graded[graded["split"].isin(["val", "test"])]
        own, site = (predictions[predictions["dataset"] == name] for name in ("demo", "demo_site"))
        assert sorted(own["image_id"]) == sorted(expected["image_id"])
        assert set(site["split"]) == {"external"}
        assert len(site) == 10
        total = predictions[["p0", "p1", "p2", "p3", "p4"]].sum(axis=1)
        assert total.between(1 - 1e-9, 1 + 1e-9).all()
    marked = pd.read_csv(snakemade.file("segmentation_metrics/photographs.csv"))
    assert set(marked["status"]) == {"ok"}
    assert set(marked["kind"]) == {"MA", "HE", "EX", "SE"}
    leaderboard = pd.read_csv(snakemade.file("evaluate/leaderboard.csv"))
    assert set(leaderboard["experiment"]) == {"majority", "class_prior", "lesion_contrastive"}
    assert 10_000 < snakemade.file("report/report.html").stat().st_size < 5_000_000


def test_the_number_of_jobs_does_not_depend_on_the_number_of_photographs(fresh):
    totals = []
    for patients in (10, 50_000):
        fresh.edit({"download.demo.patients": patients})
        plan = fresh.snakemake("--dry-run", "--quiet", "rules")
        totals.append(int(re.search(r"^total\s+(\d+)", plan, re.M)[1]))
    assert totals[0] == totals[1] < 25


def test_patients_are_not_shared_between_splits(snakemade):
    index = read_table(snakemade.file("index/index.parquet"), INDEX)
    graded = index[index["subset"] == "grading"]
    assert graded.groupby("patient_id")["split"].nunique().max() == 1


def test_a_finished_run_has_nothing_to_do(finished):
    assert finished.planned() == set()


@pytest.mark.parametrize(
    ("change", "stages"),
    [
        ({"evaluate.bootstrap": 200}, {"evaluate", "report"}),
        ({"grade.lr": 0.002}, DOWN_FROM_GRADE),
        ({"experiments.majority.seeds": [0, 1]}, {"grade", "calibrate", "evaluate", "report"}),
        ({"calibrate.alpha": 0.2}, {"calibrate", "evaluate", "report"}),
        ({"pretrain.lesion_contrastive.temperature": 0.1}, {"pretrain", *DOWN_FROM_GRADE}),
        ({"patches.min_score": 0.0005}, {"patches", "pretrain", *DOWN_FROM_GRADE}),
        ({"segmentation.lr": 0.002}, {"segmentation", "segmentation_metrics", "report"}),
        ({"segmentation_metrics.bootstrap": 200}, {"segmentation_metrics", "report"}),
        ({"segmentation.use": False}, {"report"}),
    ],
)
def test_an_edit_reruns_what_it_touches(finished, change, stages):
    finished.edit(change)
    assert finished.planned() == stages


def test_an_edit_of_one_experiment_leaves_the_others(finished):
    finished.edit({"experiments.majority.seeds": [0, 1]})
    plan = finished.snakemake("--dry-run", "--quiet", "progress", "-p")
    assert set(re.findall(r"drgrade grade --experiment (\w+)", plan)) == {"majority"}


def test_a_photograph_that_is_trained_on_and_tested_elsewhere_stops_the_run(finished):
    index = read_table(finished.file("index/index.parquet"), INDEX).query(
        "split == 'train' and eye == 'left'"
    )
    trained = finished.folder / "data/raw/demo" / index["path"].iloc[0]
    folder = finished.folder / "data/raw/folder"
    (folder / "images").mkdir(parents=True)
    Image.open(trained).save(folder / "images/copy.png")  # other bytes, same image
    (folder / "labels.csv").write_text("image,grade\ncopy,1\n")
    finished.edit({"datasets.folder": {}, "roles.external": ["folder"]})
    refused = finished.snakemake(ok=False)
    assert "drgrade: error: 1 overlaps between training and test" in refused
    assert "same image but for 0 bits" in refused
    assert finished.planned("--until", "grade") >= {"overlaps", "grade"}
    leaks = finished.folder / "results/overlaps/leaks.csv"
    assert pd.read_csv(leaks)["image_id"].tolist() == index["image_id"].head(1).tolist()
    leaks.rename(finished.folder / "leaks.csv")
    finished.edit({"datasets.demo.exclude": "leaks.csv"})
    finished.snakemake("--", "results/overlaps/overlaps.json")
    assert json.loads((finished.folder / "results/overlaps/overlaps.json").read_text())["leaks"] == 0
    left_out = read_table(finished.file("index/index.parquet"), INDEX).query("status == 'filtered'")
    assert left_out["image_id"].tolist() == index["image_id"].head(1).tolist()


def test_an_impossible_edit_leaves_the_results_alone(finished):
    before = finished.file("grade/lesion_contrastive/seed0/predictions.parquet").read_bytes()
    finished.edit({"evaluate.bootstrap": 150, "experiments": {"majority": {"grader": "majority"}},
                   "explanations.cam.experiment": "lesion_contrastive"})  # fmt: skip
    refused = finished.snakemake(ok=False)
    assert "explanations.cam.experiment: 'lesion_contrastive' is not one of experiments (majority)" in refused
    assert "Traceback" not in refused
    assert finished.file("grade/lesion_contrastive/seed0/predictions.parquet").read_bytes() == before


def test_a_deleted_experiment_leaves_the_leaderboard(finished):
    finished.edit({"experiments": {"lesion_contrastive": {"start": "lesion_contrastive"}}})
    finished.snakemake("--until", "evaluate")
    leaderboard = pd.read_csv(finished.file("evaluate/leaderboard.csv"))
    # majority stays as the baseline of that name
    assert set(leaderboard["experiment"]) == {"lesion_contrastive", "class_prior", "majority"}


def test_an_edit_of_code_reruns_its_stages_and_a_comment_nothing(finished):
    source = finished.folder / "src/drgrade/evaluate/metrics.py"
    source.touch()
    source.write_text(source.read_text() + "\n# changed\n")
    config = finished.folder / "workflow/detectors/rtmdet-tiny_tiles.py"
    config.write_text("# changed\n" + config.read_text())
    assert finished.planned() == set()
    source.write_text(source.read_text() + "\nLEVELS = 5\n")
    assert finished.planned() == {"pretrain", *DOWN_FROM_GRADE}
    finished.run("git", "checkout", "-q", "src")
    config.write_text(config.read_text() + "\nval_interval = 2\n")
    assert finished.planned("--until", "detector") == {"detector"}


def test_masks_are_cropped_for_graders_that_learn_from_them(finished):
    """A grader in a file of its own: the rules ask it what it needs."""
    majority = (finished.folder / "src/drgrade/grading/majority.py").read_text()
    masked = majority.replace('"majority"', '"masked"').replace(
        "    Params = Params\n", '    Params = Params\n    needs = frozenset({"masks"})\n'
    )
    (finished.folder / "src/drgrade/grading/masked.py").write_text(masked)
    assert not finished.file("lesion_masks").exists()
    finished.edit({"experiments.majority.grader": "masked"})
    assert finished.planned("--until", "grade") == {"lesion_masks", "grade"}
    (command,) = re.findall(r"drgrade grade --experiment majority .*", finished.snakemake("--dry-run", "-p"))
    assert "--masked demo results/demo" in command
    finished.snakemake("results/demo/grade/majority/seed0/predictions.parquet")
    table = read_table(finished.file("lesion_masks/masks.parquet"), MASKS)
    assert (table["status"] == "ok").all()
    assert len(np.load(finished.file("lesion_masks/masks.npy"), mmap_mode="r")) == len(table) > 0


def test_a_library_reruns_the_stages_that_import_it(finished):
    lock = finished.folder / "uv.lock"
    locked = lock.read_text()

    def update(*packages: str) -> None:
        text = locked
        for package in packages:
            text, found = re.subn(rf'(name = "{package}"\nversion = )".+"', r'\1"99.0"', text)
            assert found == 1
        lock.write_text(text)

    update("ruff", "mlflow", "snakemake", "kagglehub")
    assert finished.planned() == set()
    update("lightly")
    assert finished.planned() == {"pretrain", *DOWN_FROM_GRADE}
    assert finished.planned("--rerun-triggers", "mtime", "input", "code") == set()
    finished.snakemake("--touch", "--forceall")
    assert finished.planned() == set()
    update("torch")
    assert finished.planned("--until", "grade") >= {"detector", "pretrain", "grade"}
    assert finished.planned("--until", "crop") == set()
    lock.write_text(locked)
    finished.snakemake("--touch", "--forceall")
    lock.unlink()  # what is installed then counts, and is the same
    assert finished.planned() == set()


def test_start_weights_are_inputs(finished):
    weights = finished.folder / "data/weights"
    own = weights / "own.safetensors"
    small = {"encoder": "test_efficientnet", "start": "data/weights/own.safetensors"}
    save_file(create_encoder("test_efficientnet", "random").state_dict(), own)
    finished.edit({"experiments.own": {"grader": "finetune", **small}})
    finished.snakemake("--until", "grade")
    assert finished.planned("--until", "grade") == set()
    own.touch()
    assert finished.planned("--until", "grade") == set()
    save_file(create_encoder("test_efficientnet", "random").state_dict(), own)
    plan = finished.snakemake("--dry-run", "--quiet", "progress", "-p")
    assert set(re.findall(r"drgrade (pretrain|grade --experiment \w+)", plan)) == {"grade --experiment own"}
    # ImageNet's, which come before the packaged ones once they are there
    (weights / "tf_efficientnet_lite0.safetensors").write_bytes(b"")
    assert finished.planned() >= {"detector", "pretrain"}
    (weights / "tf_efficientnet_lite0.safetensors").unlink()
    # those that are still to be brought are asked for by the job
    finished.edit({"experiments.own": {"grader": "finetune", "encoder": "resnet50", "start": "imagenet"}})
    assert "grade" in finished.planned()


def test_photographs_and_labels_are_inputs(fresh):
    fresh.edit({"datasets.folder": {}})
    target = ("--", "results/folder/index/index.parquet")
    folder = fresh.write_photographs(0, 1, 2, 3, 4)
    assert fresh.planned(*target) == {"download", "index"}
    fresh.snakemake(*target)
    assert fresh.planned(*target) == set()
    (folder / "images/0.png").touch()
    (folder / "labels.csv").touch()
    assert fresh.planned(*target) == set()
    fresh.write_photographs(0, 1, 2, 3, 4, 0)  # one more
    fresh.snakemake(*target)
    fresh.write_photographs(4, 1, 2, 3, 4, 0)  # a corrected grade, in as many bytes
    fresh.snakemake(*target)
    table = read_table(fresh.folder / "results/folder/index/index.parquet", INDEX)
    assert table["grade"].tolist() == [4, 1, 2, 3, 4, 0]
    assert fresh.planned(*target) == set()
    # run up to a stage whose output turns out the same, and nothing after it runs again
    crop = ("--", "results/folder/crop/store.json")
    fresh.snakemake(*crop)
    (folder / "notes.txt").write_text("nothing that the index reads")
    assert fresh.planned(*crop) == {"download", "index", "crop"}
    fresh.snakemake(*target)
    assert fresh.planned(*crop) == set()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grade.lrr": 1.0}, "params.yaml: grade.lrr: no such key"),
        ({"crop.size": "big"}, "params.yaml: crop.size: input should be a valid integer, not 'big'"),
        (
            {"roles.grade": "eyepacs"},
            "params.yaml: roles.grade: 'eyepacs' is not one of datasets (demo, demo",
        ),
    ],
)
def test_wrong_params_stop_before_anything_runs(fresh, change, message):
    fresh.edit(change)
    output = fresh.snakemake(ok=False)
    assert message in output
    assert "Traceback" not in output


def test_a_configfile_replaces_params_yaml_whole(finished):
    """Values of params.yaml must not shine through a file that leaves them out."""
    (finished.folder / "other.yaml").write_text("evaluate: {bootstrap: 100}\n")
    plan = finished.snakemake("--dry-run", "--quiet", "rules", "--configfile", "other.yaml")
    assert "download" in plan  # the default demo is larger than the tiny one


def test_the_snakemake_report_is_made_without_a_network(finished):
    finished.run("snakemake", "--report", "snakemake.html", https_proxy="http://127.0.0.1:9")
    page = (finished.folder / "snakemake.html").read_text()
    assert "Leaderboard" in page
    assert "leaderboard.png" in page


def test_mlflow_has_one_parent_and_a_child_for_each_training(snakemade, monkeypatch):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{snakemade.folder}/mlflow.db")
    experiment = client.get_experiment_by_name("drgrade")
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if "params_key" in run.data.tags]
    children = {
        run.info.run_name: run
        for run in runs
        if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id
    }
    stages = sorted(
        run.data.tags["stage"]
        for run in runs
        if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id
    )
    assert stages == ["detector", "grade", "grade", "pretrain", "segmentation"]
    assert set(parent.data.metrics) == {"qwk_majority", "qwk_lesion_contrastive"}
    board = pd.read_csv(snakemade.file("evaluate/leaderboard.csv")).set_index("experiment")
    assert parent.data.metrics["qwk_lesion_contrastive"] == pytest.approx(
        board.loc["lesion_contrastive", "qwk"], abs=1e-6
    )
    assert parent.data.params["grade.input_size"] == "48"
    seeds = [run for run in runs if run.info.run_name == "lesion_contrastive seed0"]
    assert {"loss", "val_qwk"} <= set(seeds[0].data.metrics)
    assert all(run.info.status == "FINISHED" for run in runs)
    detector = next(run for run in children.values() if run.data.tags["stage"] == "detector")
    assert any("loss" in key for key in detector.data.metrics)
