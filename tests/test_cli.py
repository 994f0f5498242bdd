import subprocess
import sys

import numpy as np
import pytest

from drgrade.cli import main
from drgrade.images.shards import write_store

DATA = ["download", "index", "overlaps", "crop"]
LESIONS = ["lesion_boxes", "detector", "lesions", "lesion_metrics", "patches"]
STAGES = [*DATA, *LESIONS, "pretrain", "grade", "evaluate", "explain"]
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
                    "--index",
                    "i",
                ),
                *("--crops", "c", "--store", "s", "--manifest", "m", "--weights", "w"),
            ],
            "drgrade: error: pretrain.a: Input tag 'mae' found using 'method' does not match any of",
        ),
        (["predict", "gone.jpg", "--model", "gone", "--out", "o.csv"], "drgrade: error: gone"),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert error[-1].startswith(message)
    assert not any("Traceback" in line for line in error)
    assert [path.name for path in tmp_path.iterdir() if path.suffix in (".parquet", ".csv", ".tsv")] == []


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
