"""What ``drgrade check`` says of params that would stop a run later."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from drgrade.check import problems
from drgrade.cli import main
from drgrade.encoders import create_encoder
from drgrade.params import check
from drgrade.weights.sources import SOURCES

SMALL = {"encoder": "test_efficientnet", "start": "random"}
BASE: dict[str, Any] = {
    "pretrain": {"lesion_contrastive": dict(SMALL)},
    "experiments": {
        "lesion_contrastive": SMALL | {"start": "lesion_contrastive"},
        "random": dict(SMALL),
        "majority": {"grader": "majority"},
    },
}


def changed(**changes: Any) -> dict[str, Any]:
    """The params above with other values at dotted keys, dots written as ``__``."""
    values = copy.deepcopy(BASE)
    for key, value in changes.items():
        *path, last = key.split("__")
        block = values
        for part in path:
            block = block.setdefault(part, {})
        block[last] = value
    return values


def found(**changes: Any) -> list[str]:
    return problems(check(changed(**changes), "params.yaml"))


def save(path: Path, name: str) -> Path:
    torch.save(create_encoder(name, None).state_dict(), path)
    return path


def test_what_works_is_let_through(tmp_path: Path) -> None:
    weights = str(save(tmp_path / "own.pth", "test_efficientnet"))
    assert found(experiments__random__start=weights, pretrain__lesion_contrastive__start=weights) == []


def test_weights_that_a_run_makes_from_a_package_need_not_be_there(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = {"encoder": "tf_efficientnet_lite2", "start": "imagenet"}
    assert found(experiments__random=made) == []
    source = SOURCES["tf_efficientnet_lite2"]._replace(package="no-such-package")
    monkeypatch.setitem(SOURCES, "tf_efficientnet_lite2", source)
    (line,) = found(experiments__random=made)
    assert line.startswith("experiments.random.start: no-such-package: not installed; run `uv sync")


def test_networks_of_o_o_may_start_from_smaller_ones() -> None:
    """From 128 to 256 to 512 pixels with untied biases; with tied ones at any size; RAM from o_O."""
    small = {"grader": "o_o", "encoder": "o_o_128_5x5"}
    middle = {"grader": "o_o", "encoder": "o_o_256_5x5", "start": "experiment:small"}
    large = {"grader": "o_o", "encoder": "o_o_512_5x5", "start": "experiment:middle"}
    tied = middle | {"tied_biases": True, "input_size": 320}
    ram = {"grader": "ram", "encoder": "o_o_ram_256_5x5", "start": "experiment:small"}
    experiments = {"small": small, "middle": middle, "large": large, "tied": tied, "ram": ram}
    assert found(experiments=BASE["experiments"] | experiments) == []


@pytest.mark.parametrize(("changes", "lines"), [
    ({"datasets": {"demo": {}, "demo_site": {}, "nope": {}}}, ["datasets.nope: 'nope': no module"]),
    ({"detector__config": "none"}, ["detector.config: no 'none' in workflow/detectors; there is dino"]),
    ({"detector__start": "none.pth"}, ["detector.start: none.pth: no such weights file"]),
    (
        {"detector__config": "faster-rcnn_r50_fpn_tiles"},
        ["detector.start: data/weights/resnet50.safetensors: no such file"],
    ),
    ({"explanations__cam__method": "none"}, ["explanations.cam.method: 'none': no module"]),
    (
        {"explanations__cam__experiment": "majority"},
        ["explanations.cam.experiment: the grader 'majority' of majority has no network to explain"],
    ),
    (
        {"experiments__random__encoder": "test_efficientnet1"},
        ["experiments.random.encoder: encoder 'test_efficientnet1': Unknown model", "has test_efficientnet"],
    ),
    (
        {"experiments__random": {"encoder": "test_vit", "start": "random", "input_size": 100}},
        ["experiments.random.input_size: test_vit takes no images of 100 pixels"],
    ),
    (
        {"experiments__random": {"encoder": "test_vit", "start": "experiment:lesion_contrastive"}},
        ["experiments.random.start: lesion_contrastive is a test_efficientnet", "encoder a test_vit"],
    ),
    (
        {"experiments__random__start": "experiment:majority"},
        ["experiments.random.start: majority has no encoder"],
    ),
    (
        {"experiments__random": {"encoder": "test_vit", "start": "lesion_contrastive"}},
        ["experiments.random.start: lesion_contrastive is a test_efficientnet"],
    ),
    (
        {"pretrain__lesion_contrastive__encoder": "test_vit", "patches__size": 50},
        ["pretrain.lesion_contrastive: test_vit takes no images of 50 pixels", "trastive is a test_vit"],
    ),
    (
        {"pretrain__local_to_global": {"encoder": "resnet18"}},
        ["pretrain.local_to_global.encoder: resnet18 is no vision transformer"],
    ),
    (
        {"pretrain__local_to_global": {"encoder": "test_vit", "local_size": 90}},
        ["pretrain.local_to_global.local_size: 90 is no multiple of the encoder's patch of 16 px"],
    ),
    (
        {"pretrain__local_to_global": {"encoder": "test_vit", "epochs": 5}},
        ["pretrain.local_to_global.warmup_epochs: 10 of 5 epochs"],
    ),
    (
        {
            "pretrain__lesion_contrastive__positives": "lesion",
            "patches__published": "boxes.pkl",
            "crop": {"rule": "o_O", "aspect": "squash"},
        },
        [
            "patches.published: boxes.pkl: no such file",
            "pretrain.lesion_contrastive.positives: 'lesion' needs the kind of each box, which boxes.pkl",
        ],
    ),
    (
        {"experiments__random": {"grader": "o_o", "encoder": "o_o_128_4x4", "input_size": 256}},
        [
            "experiments.random.input_size: o_o_128_4x4 takes no images of 256 pixels: untied biases need "
            "128 pixels; set tied_biases for other sizes",
        ],
    ),
    (
        {"experiments__random": {"grader": "o_o", "encoder": "o_o_128_6x6"}},
        ["experiments.random.encoder: encoder 'o_o_128_6x6': Unknown model"],
    ),
    (
        {
            "experiments__small": {"grader": "o_o", "encoder": "o_o_128_4x4"},
            "experiments__random": {
                "grader": "o_o", "encoder": "o_o_256_5x5", "start": "experiment:small", "input_size": 256,
            },
        },
        ["experiments.random.start: small is a o_o_128_4x4, the experiment's encoder a o_o_256_5x5; set"],
    ),
    ({"index__folds_file": "folds.csv"}, ["index.folds_file: folds.csv: no such file"]),
])  # fmt: skip
def test_each_problem_is_a_line_that_names_the_key(changes: dict[str, Any], lines: list[str]) -> None:
    said = "\n".join(found(**changes))
    for line in lines:
        assert line in said
    assert len(said.splitlines()) <= len(lines)


def test_weights_of_another_network_are_told_at_once(tmp_path: Path) -> None:
    vit = str(save(tmp_path / "vit.pth", "test_vit"))
    text = found(experiments__random__start=vit, pretrain__lesion_contrastive__start=vit)
    assert len(text) == 1, "one file, one line"
    assert text[0].startswith(
        f"pretrain.lesion_contrastive.start (and 1 more keys): {vit}: no tensor matches"
    )
    (tmp_path / "broken.pth").write_bytes(b"broken")
    (line,) = found(experiments__random__start=str(tmp_path / "broken.pth"))
    assert line.startswith(f"experiments.random.start: {tmp_path / 'broken.pth'}: ")


def test_a_compiler_is_looked_for_where_one_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(experiments__random__compile=True) == []
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CXX", "none")
    (line,) = found(experiments__random__compile=True)
    assert line.startswith("experiments.random.compile: needs a C++ compiler")


def test_the_verb_prints_every_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """First all that is wrong with keys and values, then all that they name."""
    path = tmp_path / "params.yaml"
    twice = changed(experiments__random__seeds=[0, 0], detector__lr=-1, grade__epochs="x")
    path.write_text(yaml.safe_dump(twice))
    assert main(["check", str(path)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert all(line.startswith(f"drgrade: error: {path}: ") for line in lines)
    assert any("experiments.random.seeds: seed 0 stands twice" in line for line in lines)
    apart = changed(
        roles__grade="gone", explanations__cam__experiment="gone", experiments__random__start="gone"
    )
    path.write_text(yaml.safe_dump(apart))
    assert main(["check", str(path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 3
    missing = changed(explanations__cam__method="none", detector__config="none")
    path.write_text(yaml.safe_dump(missing))
    assert main(["check", str(path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2
