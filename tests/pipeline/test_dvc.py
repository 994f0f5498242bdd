import json
import re
import shlex
import shutil

import pandas as pd
import pytest
from tests.documented import commands


def executed(output: str) -> set[str]:
    """Names of the rules that Snakemake ran to their end, from what it printed."""
    return set(re.findall(r"^[\d:]{8}  (\w+) .*: done in \d+ s", output, re.M))


def test_repro_after_snakemake_recomputes_nothing(recorded):
    assert "grade" in executed((recorded.folder / "run.log").read_text())
    output = (recorded.folder / "repro.log").read_text()
    assert "Nothing to be done" in output
    assert executed(output) == set()
    assert (recorded.folder / "dvc.lock").exists()


def test_repro_on_a_clean_checkout_does_the_job(fresh):
    output = fresh.run("dvc", "repro", "crop@demo_site")  # later stages are no different, and slow
    assert executed(output) == {"download", "index", "crop"}
    assert fresh.planned("--", "results/demo_site/crop/store.json") == set()


def test_snakemake_after_repro_has_nothing_to_do(versioned):
    assert versioned.planned() == set()
    status = json.loads(versioned.run("dvc", "status", "--json"))
    assert status == {f"download@{name}": ["always changed"] for name in ("demo", "demo_site")}


def test_an_experiment_reruns_what_it_changes_and_is_recorded(versioned):
    """Also: metrics, differences and plots."""
    output = versioned.run("dvc", "exp", "run", "-S", "evaluate.bootstrap=300")
    assert executed(output) == {"evaluate", "report"}
    assert versioned.params["evaluate"]["bootstrap"] == 300
    assert versioned.planned() == set()
    assert "evaluate.bootstrap" in versioned.run("dvc", "params", "diff")
    assert "qwk" in versioned.run("dvc", "metrics", "show")
    versioned.run("dvc", "metrics", "diff")
    versioned.run("dvc", "plots", "show")
    assert (versioned.folder / "dvc_plots/index.html").exists()


def test_checkout_causes_no_rerun(versioned):
    shutil.rmtree(versioned.folder / "results/demo/evaluate")
    shutil.rmtree(versioned.file("crop/store"))
    versioned.file("crop/store.json").unlink()
    versioned.run("dvc", "checkout")
    assert versioned.planned() == set()


@pytest.fixture
def s3(monkeypatch):
    """Address of a server with the S3 protocol and an empty bucket; commands find the keys for it."""
    import boto3
    from moto.server import ThreadedMotoServer

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = ThreadedMotoServer("127.0.0.1", port=0)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    boto3.client("s3", endpoint_url=address).create_bucket(Bucket="bucket")
    yield address
    server.stop()


def test_push_and_pull_restore_a_run_without_computing(versioned, tmp_path, s3):
    """With the commands of docs/shared.md."""
    changes = {
        "uv run ": "",
        "https://s3.example.org": s3,
        'dvc repro\ngit commit -m "Results" dvc.lock\n': "",
    }
    once, after, fresh = (
        [shlex.split(line) for line in block.splitlines()]
        for block in commands("shared.md", "### S3", changes)
    )
    for command in once + after:  # what is recorded already is not recorded again
        versioned.run(*command)
    clone = versioned.clone(tmp_path / "clone")
    pull, sync = fresh
    clone.run(*pull)
    assert pd.read_csv(clone.file("evaluate/leaderboard.csv")).equals(
        pd.read_csv(versioned.file("evaluate/leaderboard.csv"))
    )
    # without a record Snakemake would not see an edit, and DVC would put new params on old models
    clone.edit({"grade.lr": 0.003})
    for command in (("snakemake", "--cores", "2"), ("dvc", "repro")):
        assert "uv run drgrade sync" in clone.run(*command, ok=False)
    clone.run("git", "checkout", "-q", "params.yaml")
    clone.run(*sync)
    assert clone.planned() == set()
    assert executed(clone.run("dvc", "repro")) == set()
    clone.edit({"grade.lr": 0.003})
    assert "grade" in clone.planned()


def test_sync_refuses_results_that_are_not_dvcs(versioned):
    versioned.file("evaluate/leaderboard.csv").unlink()
    versioned.file("evaluate/leaderboard.csv").write_text("experiment,qwk\nmine,1.0\n")
    assert "results differ from dvc.lock" in versioned.run("drgrade", "sync", ok=False)
