"""A folder that looks like a checkout, for a benchmark that is a Snakemake run of its own."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from drgrade.params import check

ROOT = Path(__file__).parents[1]
LINKED = ("Snakefile", "workflow", "params", "profiles", "src")


def checkout(folder: Path, params: dict[str, Any]) -> dict[str, Any]:
    """Make the folder, which is kept so that a run that was killed goes on.

    Args:
        folder: where the run writes its results.
        params: its params file; defaults are filled in.

    Returns:
        The params with all defaults.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for one in LINKED:
        if not (folder / one).is_symlink():
            (folder / one).symlink_to(ROOT / one)
    values = check(params, str(folder / "params.yaml")).model_dump(mode="json")
    (folder / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    return values


def side_by_side(folder: Path, *stages: str, targets: tuple[str, ...] = ()) -> None:
    """Run Snakemake in such a folder with two trainings at a time on two cores, a tenth faster than in turn.

    Threads that wait for others sleep at once, so that their core is free for the other training.

    Args:
        folder: as :func:`checkout` has made it.
        *stages: those that train.
        targets: files or rules; none: all.
    """
    threads = [f"{stage}=1" for stage in stages]
    subprocess.run(
        ["snakemake", "--cores", "2", "--resources", "gpu=2", "--set-threads", *threads, "--", *targets],
        cwd=folder, env=os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}, check=True, stdout=sys.stderr,
    )  # fmt: skip
