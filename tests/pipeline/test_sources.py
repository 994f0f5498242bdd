"""Each rule has its verb, its block of params and its DVC stage."""

import re
from pathlib import Path

import pytest
import yaml

from drgrade import verbs

ROOT = Path(__file__).parents[2]
BLOCKS = {"explain": "explanations"}
"""Blocks that are not named as their rule."""


PARTS = {"all_patches", "all_masks", "all_segmentations", "all_segmentation_metrics", "all_robustness",
         "index_shard", "crop_shard", "lesions_shard"}  # fmt: skip
"""A name for several jobs, and a part of one."""


def rules() -> set[str]:
    text = "".join(path.read_text() for path in (ROOT / "workflow/rules").glob("*.smk"))
    return set(re.findall(r"^rule (\w+):", text, re.M)) - PARTS


def test_every_rule_has_its_verb_block_and_stage():
    stages = set(yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"])
    assert rules() == stages
    assert all(callable(getattr(verbs, rule)) for rule in rules())
    blocks = set(yaml.safe_load((ROOT / "params.yaml").read_text()))
    assert {BLOCKS.get(rule, rule) for rule in rules()} <= blocks


@pytest.mark.parametrize("stage", sorted(rules()))
def test_dvc_watches_the_package(stage):
    written = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"][stage]
    assert "src/drgrade" in (written.get("do") or written)["deps"]
