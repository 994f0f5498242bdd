import json
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from dvc.utils.hydra import apply_overrides
from hypothesis import given
from hypothesis import strategies as st

from drgrade import grid
from drgrade.cli import main
from drgrade.errors import UserError

ROOT = Path(__file__).parents[1]
NUMBERS = st.integers(-(10**6), 10**6) | st.floats(-1e6, 1e6, allow_subnormal=False)
WORDS = st.from_regex(r"[\w ./:=+-]*", fullmatch=True, alphabet=st.characters(codec="ascii"))
SCALARS = st.none() | st.booleans() | NUMBERS | WORDS


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("DRGRADE_DEMO_ROOT", raising=False)
    Path("params.yaml").write_text((ROOT / "params.yaml").read_text())
    return tmp_path


def written(over, experiment="imagenet"):
    path = Path("grid.yaml")
    path.write_text(yaml.safe_dump({"experiment": experiment, "over": over}, sort_keys=False))
    return path


def test_the_committed_grid_fits_the_committed_params(project):
    found = grid.settings(ROOT / "params/grids/finetune.yaml")
    assert len(found) == 6
    assert len({setting.name for setting in found}) == 6


def test_all_combinations_are_commands(project, capsys):
    written({"lr": [0.001, 0.003], "augment.zoom": [[0.8, 1.25]], "start": ["random"]})
    Path(".snakemake").mkdir()
    Path("data/weights").mkdir(parents=True)
    for name in ("README.md", "resnet18.pth"):
        Path("data/weights", name).touch()
    assert main(["grid", "grid.yaml"]) == 0
    assert [shlex.split(line) for line in capsys.readouterr().out.splitlines()] == [
        [
            *("uv", "run", "dvc", "exp", "run", "--queue"),
            *("--name", f"imagenet-lr_{lr}-augment.zoom_0.8-1.25-start_random"),
            *("--copy-paths", ".snakemake", "--copy-paths", "data/weights/resnet18.pth"),
            *("--set-param", f"++experiments.imagenet.lr={lr}"),
            *("--set-param", "++experiments.imagenet.augment.zoom=[0.8, 1.25]"),
            *("--set-param", '++experiments.imagenet.start="random"'),
        ]
        for lr in ("0.001", "0.003")
    ]


def refused(setting):
    """Whether a number of it would not be read as one."""
    try:
        grid.check_numbers(setting, Path("grid.yaml"))
    except UserError:
        return True
    return False


@given(
    values=st.dictionaries(
        st.sampled_from(["lr", "start", "augment.zoom", "new.key"]), SCALARS | st.lists(SCALARS)
    )
)
def test_dvc_writes_what_the_grid_says(values, tmp_path_factory):
    """By DVC's own code; or the number is refused, as it would be text."""
    path = tmp_path_factory.mktemp("dvc") / "params.yaml"
    path.write_text((ROOT / "params.yaml").read_text())
    setting = grid.Setting("name", "imagenet", values)
    command = grid.command(setting)
    apply_overrides(path, [one for before, one in pairwise(command) if before == "--set-param"])
    expected = grid.changed(yaml.safe_load((ROOT / "params.yaml").read_text()), setting.params)
    assert (yaml.safe_load(path.read_text()) == expected) != refused(setting)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"experiment": "gone", "over": {"lr": [0.1]}}, "experiment: 'gone' is not one of experiments"),
        ({"experiment": "imagenet", "over": {"lr": ["fast"]}}, "experiments.imagenet.lr: input should be a"),
        ({"experiment": "imagenet", "over": {"start": ["${x}"]}}, "over.start.0"),
        ({"experiment": "imagenet", "over": {"speed": [1]}}, "experiments.imagenet.speed: no such key"),
        ({"experiment": "imagenet", "over": {"lr": []}}, "over.lr: list should have at least 1 item"),
        ({"experiment": "imagenet", "over": {}}, "over: dictionary should have at least 1 item"),
        ({"experiment": "imagenet", "over": {"lr": [0.1, 0.1]}}, "over: lr: 0.1 stands twice"),
        ({"experiment": "imagenet"}, "over: field required"),
        ({"experiment": "imagenet", "over": {"lr": [0.001, 0.00001]}}, "over.lr: DVC writes 1e-05"),
    ],
)  # fmt: skip
def test_a_grid_that_cannot_run_is_refused(project, capsys, content, message):
    Path("grid.yaml").write_text(yaml.safe_dump(content))
    assert main(["grid", "grid.yaml"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"drgrade: error: grid.yaml: {message}")
    assert error.count("\n") == 1


def test_queue_asks_dvc_and_says_how_to_start(project, capsys, monkeypatch):
    asked, codes = [], iter([0, 0])

    def run(command, **kwargs):
        asked.append(command)
        return type("Done", (), {"returncode": next(codes)})

    monkeypatch.setattr(grid.subprocess, "run", run)
    monkeypatch.setenv("DRGRADE_DEMO_SITE_ROOT", "/photographs of site")
    written({"lr": [0.001, 0.003]})
    assert main(["grid", "grid.yaml", "--queue"]) == 0
    assert asked == [grid.command(setting) for setting in grid.settings(Path("grid.yaml"))]
    start = shlex.split(capsys.readouterr().out.removeprefix("run them:"))
    assert start == [
        "env",
        f"MLFLOW_TRACKING_URI=sqlite:///{project}/mlflow.db",
        f"DRGRADE_DEMO_ROOT={project}/data/raw/demo",
        "DRGRADE_DEMO_SITE_ROOT=/photographs of site",
        *("uv", "run", "dvc", "queue", "start"),
    ]


def test_queue_stops_where_dvc_refuses(project, capsys, monkeypatch):
    refused = type("Done", (), {"returncode": 255})
    monkeypatch.setattr(grid.subprocess, "run", lambda command, **kwargs: refused)
    written({"lr": [0.001]})
    assert main(["grid", "grid.yaml", "--queue"]) == 2
    assert "imagenet-lr_0.001 was not queued" in capsys.readouterr().err


def shown(*runs, graded="demo"):
    """What ``dvc exp show --json`` of DVC 3.67 prints, without what is not read.

    Args:
        runs: name and ``metrics.json`` of each experiment, None for one that failed.
        graded: dataset of the metrics.
    """
    path = f"results/{graded}/evaluate/metrics.json"
    entries = [
        {
            "rev": "c585a0c", "name": name, "experiments": None,
            "error": None if metrics else {"msg": "Experiment run failed", "type": ""},
            "data": {"rev": "c585a0c", "metrics": {path: {"data": metrics}}} if metrics else None,
        }
        for name, metrics in runs
    ]  # fmt: skip
    groups = [{"revs": [entry], "name": entry["name"], "executor": None} for entry in entries]
    own = {"rev": "3e1e37c", "metrics": {path: {"data": {"imagenet": {"qwk": 0.5, "val_qwk": 0.5}}}}}
    return [
        {"rev": "workspace", "name": None, "data": own, "error": None, "experiments": None},
        {"rev": "3e1e37c", "name": "main", "data": own, "error": None, "experiments": groups},
    ]


def entry(validated, tested):
    found = {"qwk": tested} | ({} if validated is None else {"val_qwk": validated})
    return {"imagenet": found, "majority": {"qwk": 0.0}}


def test_the_best_is_chosen_by_validation_and_only_its_test_is_told(project, capsys, monkeypatch):
    written({"lr": [0.001, 0.002, 0.003, 0.004]})
    runs = [
        ("imagenet-lr_0.002", entry(0.75, 0.6)),
        ("imagenet-lr_0.001", entry(0.7, 0.9)),
        ("imagenet-lr_0.003", None),
        ("by_hand", entry(0.99, 0.99)),
    ]
    done = type("Done", (), {"returncode": 0, "stdout": json.dumps(shown(*runs))})
    monkeypatch.setattr(grid.subprocess, "run", lambda command, **kwargs: done)
    assert main(["grid", "grid.yaml", "--best"]) == 0
    header, *rows, best, command = capsys.readouterr().out.splitlines()
    assert header.split() == ["validation", "QWK", "lr", "name"]
    assert [row.split() for row in rows] == [
        ["0.750", "0.002", "imagenet-lr_0.002"],
        ["0.700", "0.001", "imagenet-lr_0.001"],
        ["–", "0.003", "imagenet-lr_0.003"],
        ["–", "0.004", "imagenet-lr_0.004"],
    ]
    assert best == "best by validation: imagenet-lr_0.002; its QWK on test photographs: 0.600"
    assert "uv run dvc exp apply imagenet-lr_0.002 && uv run drgrade sync" in command


@pytest.mark.parametrize(
    "runs",
    [[], [("imagenet-lr_0.001", None)], [("imagenet-lr_0.001", entry(None, 0.9))]],
)
def test_without_validation_nothing_is_best(project, runs):
    known = grid.settings(written({"lr": [0.001]}))
    (_, row, last) = grid.lines(grid.compared(known, shown(*runs), "demo"))
    assert "–" in row
    assert last.startswith("no QWK on validation photographs yet")
    assert grid.compared(known, shown(("imagenet-lr_0.001", entry(0.7, 0.9)), graded="idrid"), "demo")[0][
        1:
    ] == (None, None)
