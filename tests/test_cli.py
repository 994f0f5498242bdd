import subprocess
import sys
from unittest.mock import create_autospec

import numpy as np
import pytest

from drgrade import verbs
from drgrade.cli import main
from drgrade.images.shards import write_store

DATA = ["download", "index", "overlaps", "crop"]
LESIONS = ["lesion_boxes", "detector", "lesions", "lesion_metrics", "patches"]
SEGMENTATION = ["segmentation", "segmentation_metrics"]
STAGES = [*DATA, *LESIONS, *SEGMENTATION, "pretrain", "grade", "evaluate", "explain", "robustness"]
VERBS = [*STAGES, "report", "predict", "check", "verify", "schema", "sync", "doctor"]


def test_help_lists_every_verb_and_loads_nothing_heavy():
    script = (
        "import sys\nfrom drgrade.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'mmdet', 'mlflow', 'pandas', 'numpy', 'pydantic'} & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert [verb for verb in VERBS if f"\n    {verb}" not in output] == []
    assert output.strip().endswith("[]")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert stop.value.code == 0
    assert f"usage: drgrade {verb}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "gone.yaml"], "drgrade: error: gone.yaml: no such file"),
        (
            [
                "index",
                "--dataset",
                "demo",
                "--manifest",
                "gone.tsv",
                "--out",
                "i.parquet",
                "--split",
                "s.csv",
            ],
            "drgrade: error: gone.tsv",
        ),
        (
            ["download", "--dataset", "nothing", "--manifest", "m.tsv"],
            "drgrade: error: 'nothing': no module drgrade.data.nothing",
        ),
        (
            ["download", "--dataset", "demo", "--manifest", "m.tsv", "--params", '{"demo": {"patients": 1}}'],
            "drgrade: error: download: demo.patients: input should be greater than or equal to 5, not 1",
        ),
        (
            [
                *(
                    "pretrain",
                    "--name",
                    "a",
                    "--params",
                    '{"method": "mae"}',
                    "--patch",
                    "64",
                    "--dataset",
                    "d",
                ),
                *("--data", "f", "--manifest", "m", "--weights", "w"),
            ],
            "drgrade: error: pretrain.a: Input tag 'mae' found using 'method' does not match any of",
        ),
        (["predict", "gone.jpg", "--model", "gone", "--out", "o.csv"], "drgrade: error: gone"),
        (
            ["verify"],
            "drgrade: error: the following arguments are required: STORE.json; see drgrade verify --help",
        ),
        (
            ["paint"],
            "drgrade: error: argument VERB: invalid choice: 'paint'",
        ),
        (["doctor", "--loud"], "drgrade: error: unrecognized arguments: --loud; see drgrade --help"),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert error[-1].startswith(message)
    assert not any("Traceback" in line for line in error)
    assert [path.name for path in tmp_path.iterdir() if path.suffix in (".parquet", ".csv", ".tsv")] == []


SEARCH = ["lesions", "--dataset", "d", "--index", "i", "--crops", "c", "--model", "t", "--out", "o"]
LISTING = ["index", "--dataset", "d", "--manifest", "m", "--out", "o", "--split", "s"]


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        ([*SEARCH, "--shard", "0/1"], "shard", (0, 1)),
        ([*SEARCH, "--shard", "11/12"], "shard", (11, 12)),
        (SEARCH, "shard", (0, 1)),
        ([*LISTING, "--limit", "7"], "limit", 7),
        ([*LISTING, "--limit", "None"], "limit", None),  # as Snakemake writes it
        ([*LISTING, "--limit", ""], "limit", None),
        ([*LISTING, "--numbers-per-patient", "8"], "numbers_per_patient", 8),
    ],
)
def test_shards_and_limits_reach_their_verbs(arguments, name, value, monkeypatch):
    verb = create_autospec(getattr(verbs, arguments[0]), __name__=arguments[0])
    monkeypatch.setattr(verbs, arguments[0], verb)
    assert main(arguments) == 0
    assert getattr(verb.call_args.args[0], name) == value


@pytest.mark.parametrize("shard", ["3/2", "2/2", "0/0", "a/b", "-1/2", "1", "1/", "/2", "1/2/3", "", "0.5/2"])
def test_a_malformed_shard_is_one_line_and_status_2(shard, capsys):
    assert main([*SEARCH, f"--shard={shard}"]) == 2
    message = f"argument --shard: {shard!r} must be a part I/N, such as 0/4, 1/4, 2/4 or 3/4"
    assert capsys.readouterr().err == f"drgrade: error: {message}; see drgrade lesions --help\n"


@pytest.mark.parametrize("limit", ["0", "-1", "1.5", "many", "none"])
def test_a_malformed_limit_is_one_line_and_status_2(limit, capsys):
    assert main([*LISTING, f"--limit={limit}"]) == 2
    message = f"argument --limit: {limit!r} must be an integer >= 1"
    assert capsys.readouterr().err == f"drgrade: error: {message}; see drgrade index --help\n"


def test_verify_names_the_damaged_shard(tmp_path, capsys):
    manifest = tmp_path / "store.json"
    pictures = np.random.default_rng(0).integers(0, 255, (5, 32, 32, 3), dtype=np.uint8)
    write_store(pictures, manifest, shard_bytes=2 * 32 * 32 * 3)
    assert main(["verify", str(manifest)]) == 0
    assert "5 crops of 32 px (raw), every shard as written" in capsys.readouterr().out
    shard = sorted((tmp_path / "store").iterdir())[1]
    damaged = bytearray(shard.read_bytes())
    damaged[-7] ^= 1
    shard.write_bytes(damaged)
    assert main(["verify", str(manifest)]) == 2
    assert f"drgrade: error: {shard}: damaged" in capsys.readouterr().err
