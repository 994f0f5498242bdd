"""The comparison of lesion supervision: fair pairs, maps scored outside the training, figures by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from ablation import Row
from benchmarks import lesion_supervision as benchmark

from drgrade.params import check
from drgrade.schema import INDEX


def found(**means: float) -> dict[str, Row]:
    """Rows of all experiments: QWK 0.5, or the value of a system, the same on every resample."""
    values = {system: means.get(system, 0.5) for system in benchmark.SYSTEMS}
    return {
        benchmark.name(system, share): Row([value], np.full(9, value))
        for system, value in values.items()
        for share in benchmark.SHARES
    }


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("contrast", benchmark.CONTRASTS)
def test_every_row_of_the_tables_is_an_experiment_or_an_explanation(contrast, quick, monkeypatch):
    known = check(benchmark.params(contrast, quick), "lesion_supervision")
    monkeypatch.setattr(benchmark, "read", lambda folder, experiment: experiment)
    assert set(benchmark.graded(Path())) == set(known.experiments)
    assert {f"{method}_{system}" for method, system in benchmark.MAPS} == set(known.explanations)
    assert known.download.demo.lesion_contrast == contrast
    for explanation in known.explanations.values():
        assert known.experiments[explanation.experiment].label_fraction == 1


@pytest.mark.parametrize(
    ("system", "only"),
    [("contrastive", {"start"}), ("clpi", {"patch_weight", "patches"})],
)
def test_a_counterpart_differs_in_lesion_supervision_only(system, only):
    experiments = check(benchmark.params(1.0, False), "lesion_supervision").experiments
    for share in benchmark.SHARES:
        one, other = (
            experiments[benchmark.name(each, share)].model_dump()
            for each in (system, benchmark.COUNTERPART[system])
        )
        assert {key for key in one if one[key] != other[key]} == only
    assert experiments["clpi_control_100"].patch_weight == 0


def test_maps_are_scored_outside_the_training_split_only(tmp_path):
    splits = {"b": "test", "a": "val", "c": "train"}
    index = pd.DataFrame({"image_id": list(splits), "split": list(splits.values())})
    (tmp_path / "results/demo/index").mkdir(parents=True)
    index.reindex(columns=list(INDEX)).astype(INDEX).to_parquet(tmp_path / "results/demo/index/index.parquet")
    (tmp_path / "results/demo/explain/cam_clpi").mkdir(parents=True)
    photographs = {image: {"auc": value} for image, value in (("c", 0.9), ("b", 0.25), ("a", 0.5))}
    summary = tmp_path / "results/demo/explain/cam_clpi/scores.json"
    summary.write_text(json.dumps({"photographs": photographs}))
    assert benchmark.held_out(tmp_path, "cam_clpi")["auc"].to_dict() == {"a": 0.5, "b": 0.25}


def test_an_estimate_is_the_mean_with_a_bootstrap_interval():
    assert benchmark.estimate([0.25] * 5) == "0.250 (0.250 to 0.250)"
    # of two photographs a resample holds the first twice, both, or the second twice: 1/4, 1/2, 1/4
    assert benchmark.estimate([0.0, -1.0], "+") == "-0.500 (-1.000 to +0.000)"


def test_the_last_line_compares_with_the_counterparts():
    # against image_only +0.1 and -0.1, against clpi_control +0.3; each at both shares of labels
    rows: dict[str, Any] = found(contrastive=0.6, deepmt=0.4, clpi=0.8)
    result = benchmark.overall([rows, rows])
    assert result["difference"] == pytest.approx([0.1, 0.1, 0.1])
    assert result["value"] == 0.6
    assert result["baseline"] == 0.5
    assert result["ratio"] == 1.2
    assert result["holds"]
    assert [result[f"intervals_{side}_0"] for side in ("above", "below")] == [8, 4]
    assert result["comparisons"] == 12
    assert not benchmark.overall([found()])["holds"]
    assert benchmark.overall([found(image_only=0.0, clpi_control=0.0)])["ratio"] is None
