"""A SLURM of this machine, and the finished pipeline run that the pipeline's tests share."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.pipeline.conftest import finished, snakemade, started

__all__ = ["cluster", "finished", "snakemade", "started"]

SCRIPT = Path(__file__).with_name("slurm.sh")


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    """A running SLURM with one node: the environment variables by which commands find it; or a skip."""
    if not shutil.which("slurmctld", path=f"{os.environ['PATH']}:/usr/sbin"):
        message = "no SLURM: as root, tests/cluster/slurm.sh installs it"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    command = [SCRIPT, "sh", "-c", 'echo "$SLURM_CONF"; echo "$PATH"; exec cat']
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        configuration, path = (process.stdout.readline().strip() for _ in range(2))
        assert configuration, "SLURM did not start"
        yield {"SLURM_CONF": configuration, "PATH": path}
        process.stdin.close()
