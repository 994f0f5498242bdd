"""Before a run: are the outputs those of runs here, and is there all that they were made from?

After a clone, `dvc pull` or `dvc checkout` the outputs are there but Snakemake's metadata is not. A job
without metadata never reruns on an edit of params.yaml, so DVC would record new params over old models.
"""

import re

from snakemake.io import is_flagged

from drgrade import run_records


def patterns(outputs):
    """Outputs of rules as patterns of glob."""
    return {re.sub(r"{[^}]+}", "*", str(output)) for output in outputs}


if workflow.is_main_process:
    outputs = [output for rule in workflow.rules for output in rule.output]
    there = run_records.existing(patterns(outputs))
    unknown = [path for path in there if not run_records.is_recorded(path)]
    if unknown and "--touch" not in sys.argv:
        sys.exit(
            f"drgrade: error: {unknown[0]} and {len(unknown) - 1} more outputs were not made by Snakemake here"
            " (a clone, dvc pull or dvc checkout); run `uv run drgrade sync` to take them over,"
            " or delete results/ to start again"
        )
    run_records.mark_stale(
        there, patterns(output for output in outputs if is_flagged(output, "temp"))
    )
