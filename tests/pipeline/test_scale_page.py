"""The commands of docs/scale.md are accepted, and plan the jobs that the page names."""

import re
import shlex
from pathlib import Path

import pytest
from tests.pipeline.conftest import ROOT, Project

from drgrade.cli import _parser
from drgrade.estimate import CPU_RATE, estimate, stage_costs
from drgrade.params import load

PRESET = "params/eyepacs-lesion_contrastive.yaml"
PAGE = (ROOT / "docs/scale.md").read_text()
LINES = [
    line.removeprefix("nohup ").split(" > ")[0]
    for block in re.findall(r"```bash\n(.*?)```", PAGE, re.S)
    for line in block.splitlines()
]
DIVIDED = {"index": 3, "crop": 5, "search": 4}
"""Stages that --set-scatter divides, and a number of parts."""


def commands(tool: str) -> list[list[str]]:
    """Arguments of each call of a tool on the page."""
    called = re.compile(rf"uv run (--with \S+ )?{tool}( |$)")
    return [shlex.split(line[found.end() :]) for line in LINES if (found := called.match(line))]


def test_verbs_know_their_options() -> None:
    found = [_parser().parse_args(arguments).call.__name__ for arguments in commands("drgrade")]
    assert set(found) == {"doctor", "check", "clean"}


@pytest.mark.parametrize("arguments", commands("snakemake"), ids=" ".join)
def test_snakemake_knows_its_options(arguments: list[str]) -> None:
    from snakemake.cli import get_argument_parser

    known = get_argument_parser().parse_args(arguments)
    assert not known.targets
    assert {name for name, _, _ in (one.partition("=") for one in known.set_scatter or [])} <= set(DIVIDED)


def test_jobs_are_those_of_the_page(fresh: Project) -> None:
    """Of the two datasets both are indexed and cropped, and one is searched."""
    (jobs,) = re.findall(rf"^\| `{PRESET}` \| (\d+) \|", PAGE, re.M)
    (fresh.folder / "data/weights/resnet50.tv_in1k.safetensors").touch()
    parts = [f"{name}={count}" for name, count in DIVIDED.items()]
    said = fresh.snakemake("-n", "--quiet", "rules", "--configfile", PRESET, "--set-scatter", *parts)
    assert set(re.findall(r"^total +(\d+)$", said, re.M)) == {str(int(jobs) + 2 * 3 + 2 * 5 + 4)}


def test_costs_are_those_that_are_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    params = load(ROOT / PRESET)
    assert "\n".join(estimate(params, cores=32)) in PAGE
    # hours of EfficientNet-Lite0 at 288 px in photographs of 224 px; a card trains on 1,218 of these a second
    hours = {cost.stage: cost.hours * CPU_RATE * (288 / 224) ** 2 / 1218 for cost in stage_costs(params)}
    shown = re.findall(r"^\| (?:pretrain|grade):[^|]* \| ([\d.]+) \|", PAGE, re.M)
    assert shown == [f"{hours[stage]:.1f}" for stage in ("pretrain", "grade", "probes")]
