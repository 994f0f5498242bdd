"""Photographs as they come from a clinic: every bad one ends as a row with a reason, and the run goes on."""

import io

import numpy as np
import pandas as pd
import yaml
from PIL import Image

from drgrade.report.inputs import input_counts
from drgrade.schema import CROPS, INDEX, read_table


def eye(seed: int, mode: str = "RGB") -> Image.Image:
    y, x = np.mgrid[:200, :260]
    inside = ((x - 130) ** 2 + (y - 100) ** 2 < 95**2)[..., None]
    noise = np.random.default_rng(seed).integers(0, 30, (200, 260, 3))
    return Image.fromarray((inside * (np.array([190, 90, 40]) + noise)).astype(np.uint8)).convert(mode)


def clinic(root) -> None:
    images = root / "images"
    images.mkdir(parents=True)
    for number in range(12):
        eye(number).save(images / f"good{number}.jpg")
    eye(20, "L").save(images / "grey.jpg")
    eye(21, "RGBA").save(images / "alpha.png")
    eye(22, "CMYK").save(images / "cmyk.jpg")
    deep = np.asarray(eye(23, "L")).astype(np.uint16) * 257
    Image.fromarray(deep).save(images / "sixteen.png")
    buffer = io.BytesIO()
    eye(24).save(buffer, "JPEG")
    (images / "cut.jpg").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    (images / "empty.jpg").write_bytes(b"")
    (images / "text.jpg").write_text("I am no photograph")
    eye(25).save(images / "unlabelled.jpg")
    names = [path.name for path in sorted(images.iterdir()) if path.name != "unlabelled.jpg"]
    rows = [f"{name},{number % 5}" for number, name in enumerate([*names, "nowhere.jpg"])]
    (root / "labels.csv").write_text("image,grade\n" + "\n".join(rows) + "\n")


def test_bad_photographs_become_rows_and_the_run_goes_on(finished):
    clinic(finished.folder / "data/raw/folder")
    finished.edit({"datasets.folder": {}, "crop.max_failed_fraction": 0.3})
    finished.snakemake("--", "results/folder/crop/store.json")
    results = finished.folder / "results/folder"
    index = read_table(results / "index/index.parquet", INDEX)
    crops = read_table(results / "crop/crops.parquet", CROPS)
    assert len(index) == len(crops) == 21
    state = {row.image_id: row.status for row in index.itertuples()}
    named = {name.split(".")[0]: status for name, status in state.items()}
    assert {name: named[name] for name in ("empty", "text", "cut", "unlabelled", "nowhere")} == {
        "empty": "unreadable",
        "text": "unreadable",
        "cut": "unreadable",
        "unlabelled": "unlabelled",
        "nowhere": "missing",
    }
    assert {named[name] for name in ("good0", "grey", "alpha", "cmyk", "sixteen")} == {"ok"}
    failed = crops[crops["status"] == "failed"]
    assert sorted(image_id.split(".")[0] for image_id in failed["image_id"]) == [
        "cut",
        "empty",
        "nowhere",
        "text",
    ]
    assert (failed["reason"].str.len() > 0).all()
    counts = input_counts(index, crops)
    assert counts.groupby("table")["rows"].sum().to_dict() == {"index": 21, "crops": 21}


def test_too_many_bad_photographs_stop_the_run_with_a_reason(finished):
    clinic(finished.folder / "data/raw/folder")
    finished.edit({"datasets.folder": {}, "crop.max_failed_fraction": 0.01})
    output = finished.snakemake("--", "results/folder/crop/store.json", ok=False)
    assert "drgrade: error:" in output
    assert "max_failed_fraction" in output
    assert not (finished.folder / "results/folder/crop/store.json").exists()


def test_a_dataset_behind_a_form_says_what_to_put_where(finished):
    finished.edit({"datasets.eyepacs": {}})
    output = finished.snakemake("--", "results/eyepacs/download/manifest.tsv", ok=False)
    assert "drgrade: error:" in output
    assert "trainLabels.csv" in output
    assert yaml.safe_load((finished.folder / "params.yaml").read_text())["datasets"]["eyepacs"] == {}
    assert pd.read_csv(finished.file("evaluate/leaderboard.csv")).shape[0] == 3


def test_a_params_file_that_yaml_misreads_is_one_line(fresh):
    file = fresh.folder / "params.yaml"
    text = file.read_text()
    for content, reason in (
        (text.encode() + b"grade: {}\n", "key 'grade' stands twice"),
        (text.encode() + "# caf\xe9\n".encode("latin-1"), "not UTF-8 text; save the file as UTF-8"),
    ):
        file.write_bytes(content)
        said = fresh.snakemake("--dry-run", ok=False)
        assert any(
            line.startswith("drgrade: error: params.yaml: ") and reason in line for line in said.splitlines()
        )


def test_labels_that_have_lost_their_zeros_stop_the_run_with_the_cause(fresh):
    root = fresh.folder / "data/raw/folder"
    (root / "images").mkdir(parents=True)
    for number in range(4):
        eye(number).save(root / f"images/{number:04}.jpg")
    (root / "labels.csv").write_text("image,grade\n" + "".join(f"{number},0\n" for number in range(4)))
    fresh.edit({"datasets.folder": {}})
    said = fresh.snakemake("--", "results/folder/index/index.parquet", ok=False)
    assert "0 of 4 labels match one of 4 photographs" in said
    assert "lost leading zeros" in said


def test_photographs_without_any_label_are_searched_pretrained_on_and_graded(finished):
    images = finished.folder / "data/raw/folder/images"
    images.mkdir(parents=True)
    for number in range(8):
        eye(number).save(images / f"{number}.jpg")
    finished.edit({
        "datasets": {"demo": {}, "folder": {}},
        "roles": {"lesions": "demo", "pretrain": "folder", "grade": "demo", "external": []},
        "pretrain.lesion_contrastive": {"method": "simclr", "epochs": 1, "batch_size": 4},
    })  # fmt: skip
    said = finished.snakemake("--", "results/folder/pretrain/lesion_contrastive/encoder.json",
                              "results/folder/lesions/lesions.parquet")  # fmt: skip
    index = read_table(finished.folder / "results/folder/index/index.parquet", INDEX)
    assert set(index["status"]) == {"unlabelled"}
    assert len(read_table(finished.folder / "results/folder/crop/crops.parquet", CROPS)) == 8
    assert (
        "labels.csv: not found, so none of the photographs is graded"
        in said + (finished.folder / "logs/folder/index.log").read_text()
    )
    model = "results/demo/grade/lesion_contrastive/seed0/model"
    finished.run("drgrade", "predict", "data/raw/folder/images", "--model", model, "--out", "grades.csv")
    table = pd.read_csv(finished.folder / "grades.csv")
    assert len(table) == 8
    assert set(table["status"]) == {"ok"}
