"""Refuse to run on outputs that Snakemake has no record of.

After a clone, `dvc pull` or `dvc checkout` the outputs are there but Snakemake's metadata is not. A job
without metadata never reruns on an edit of params.yaml, so DVC would record new params over old models.
"""

from base64 import urlsafe_b64encode
from glob import glob
import re


def recorded(path, folder):
    """Whether Snakemake's metadata (or its list of incomplete outputs) knows a path."""
    name = urlsafe_b64encode(path.encode()).decode()
    pieces = [name[start : start + 254] for start in range(0, len(name), 254)]
    return Path(
        ".snakemake", folder, *("@" + piece for piece in pieces[:-1]), pieces[-1]
    ).exists()


def unrecorded():
    """Existing outputs that no Snakemake run here has made."""
    patterns = {
        re.sub(r"{[^}]+}", "*", str(output))
        for rule in workflow.rules
        for output in rule.output
    }
    paths = sorted(path for pattern in patterns for path in glob(pattern))
    return [
        path
        for path in paths
        if not (recorded(path, "metadata") or recorded(path, "incomplete"))
    ]


if workflow.is_main_process and "--touch" not in sys.argv and (unknown := unrecorded()):
    sys.exit(
        f"drgrade: error: {unknown[0]} and {len(unknown) - 1} more outputs were not made by Snakemake here"
        " (a clone, dvc pull or dvc checkout); run `uv run drgrade sync` to take them over,"
        " or delete results/ to start again"
    )
