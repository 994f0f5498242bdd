"""The published protocols in params/: what they ask for, on stand-ins of the published size."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from drgrade.cli import main
from drgrade.data.eyepacs import EyePACS
from drgrade.data.index import assemble
from drgrade.evaluate.calibrate import FILE, calibrate
from drgrade.evaluate.leaderboard import evaluate
from drgrade.grading.stage import Inputs, grade
from drgrade.images.dataset import CroppedDataset
from drgrade.images.shards import write_store
from drgrade.images.survey import Survey
from drgrade.params import Calibrate, Evaluate, Params, load
from drgrade.schema import CROPS, INDEX, write_table

ROOT = Path(__file__).parents[1]
LOCAL_TO_GLOBAL, LESION_CONTRASTIVE = (
    ROOT / f"params/eyepacs-{name}.yaml" for name in ("local_to_global", "lesion_contrastive")
)
TRAIN = (25810, 2443, 5292, 873, 708)
TEST = (39533, 3762, 7861, 1214, 1206)
"""Photographs of grade 0 to 4, as the competition published them."""
PUBLIC = 10906


def label_lines(counts: tuple[int, ...], first: int) -> list[str]:
    """``10_left,0``: both eyes of patients from ``first`` on, grades in no order."""
    grades = np.random.default_rng(0).permutation(np.repeat(np.arange(5), counts))
    return [f"{first + n // 2}_{('left', 'right')[n % 2]},{grade}" for n, grade in enumerate(grades)]


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """What the reader makes of label files of the published size, every photograph there."""
    root = tmp_path_factory.mktemp("eyepacs")
    (root / "trainLabels.csv").write_text("\n".join(["image,level", *label_lines(TRAIN, 10)]))
    tested = [
        f"{line},{'Public' if n < PUBLIC else 'Private'}" for n, line in enumerate(label_lines(TEST, 50_000))
    ]
    (root / "retinopathy_solution.csv").write_text("\n".join(["image,level,Usage", *tested]))
    table = EyePACS().read(root)
    table["path"] = table["image_id"] + ".jpeg"
    table["sha256"] = [f"{n:064x}" for n in range(len(table))]
    kinds = ("grade", "path", "official_split", "quality_label", "sha256")
    return table.astype({name: "Int8" if name == "grade" else "string" for name in kinds})


def indexed(labels: pd.DataFrame, params: Params) -> pd.DataFrame:
    """The index of photographs that a look finds nothing against."""
    block = params.index.model_copy(update={"scheme": params.scheme("eyepacs")})
    return assemble(labels.copy(), [Survey(8, 8, *[1.0] * 5)] * len(labels), block)


def test_majority_of_the_local_to_global_protocol(
    labels: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained on 35,126, tested on 53,576: always 0 is right for 73.79 % and agrees by 0."""
    monkeypatch.setenv("DRGRADE_TRACKING", "off")
    params = load(LOCAL_TO_GLOBAL)
    index = indexed(labels, params)
    assert index["split"].value_counts().to_dict() == {"test": 53576, "train": 35126}
    write_table(index, tmp_path / "eyepacs/index/index.parquet", INDEX)
    cut = index[["image_id"]].assign(row=range(len(index)), status="ok").reindex(columns=list(CROPS))
    write_table(cut, tmp_path / "eyepacs/crop/crops.parquet", CROPS)
    # majority looks at no image
    blank = np.lib.format.open_memmap(tmp_path / "blank.npy", "w+", np.uint8, (len(index), 1, 1, 3))
    write_store(blank, tmp_path / "eyepacs/crop/store.json", "raw")
    data = CroppedDataset("eyepacs", tmp_path / "eyepacs")
    majority = params.experiment("majority")
    grade("majority", majority, params.crop, Inputs(data), seed=0, fold=None, out=tmp_path / "seed0")
    paths = [tmp_path / "seed0/predictions.parquet"]
    calibrate(paths, Calibrate(), tmp_path)
    evaluate(paths, data.graded(), tmp_path / FILE, Evaluate(bootstrap=100), tmp_path / "evaluate")
    _, row = pd.read_csv(tmp_path / "evaluate/leaderboard.csv").to_dict("records")
    assert (row["experiment"], row["n"], row["qwk"]) == ("majority", 53576, 0)
    assert row["accuracy"] == pytest.approx(39533 / 53576, abs=1e-6)
    assert round(row["accuracy"], 4) == 0.7379
    assert row["balanced_accuracy"] == pytest.approx(0.2)


def test_parts_of_the_lesion_contrastive_protocol(labels: pd.DataFrame) -> None:
    index = indexed(labels, load(LESION_CONTRASTIVE))
    assert index["split"].value_counts().to_dict() == {"test": 42670, "train": 35126, "val": 10906}


@pytest.mark.parametrize("path", [LOCAL_TO_GLOBAL, LESION_CONTRASTIVE], ids=lambda path: path.stem)
def test_check_says_what_a_protocol_costs_and_which_weights_to_bring(
    path: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["check", str(path)]) == 2
    said = capsys.readouterr()
    assert said.out.startswith("eyepacs: 88702 photographs; disk: 69.8 GB of crops")
    for line in said.err.splitlines():
        assert line.startswith(f"drgrade: error: {path}: ")
        assert "data/weights/" in line
        assert "no such" in line


def test_nothing_is_selected_where_nothing_validates() -> None:
    params = load(LOCAL_TO_GLOBAL)
    assert params.index.val_fraction == 0
    assert params.grade.select == "last"
    probes = [params.experiment(name) for name in params.experiments if name != "majority"]
    assert all(probe.k == [15] for probe in probes if probe.grader == "knn")
    assert all(len(probe.lr) == 1 for probe in probes if probe.grader == "linear")
    assert {probe.grader for probe in probes} == {"finetune", "knn", "linear"}


def test_every_start_is_judged_at_every_share_of_the_labels_in_both_ways() -> None:
    params = load(LESION_CONTRASTIVE)
    rows = [row for name, row in params.experiments.items() if name != "majority"]
    for start in ("imagenet", *params.pretrain):
        for grader in ("linear", "finetune"):
            found = [row.label_fraction for row in rows if (row.start, row.grader) == (start, grader)]
            assert found == [0.01, 0.05, 0.1, 0.25, 1.0]
    assert len(rows) == 4 * 2 * 5
