"""Before a run: results dated in the future, from a time when the clock was ahead, are dated now."""

from drgrade.clock import bring_to_present

if workflow.is_main_process:
    # what Snakemake compares the times of: existing outputs (found in sync.smk) and listings
    compared = [*there, *map(listing_of, PARAMS.datasets)]
    if ahead := bring_to_present(map(Path, compared)):
        print(
            f"drgrade: {ahead} results were dated in the future; they are dated now. Was the clock set back?",
            file=sys.stderr,
        )
