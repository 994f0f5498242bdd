"""Start weights that a package of the extra `weights` has, to files in data/weights."""

from drgrade.encoders import placed_file
from drgrade.weights.make import file_of
from drgrade.weights.sources import SOURCES

# None for files that are there: they may be the user's own, and Snakemake deletes the outputs of a job first.
for backbone in SOURCES:
    if placed_file(backbone) is None:

        rule:
            name:
                f"weights_{backbone}"
            output:
                str(file_of(backbone)),
            log:
                f"logs/weights_{backbone}.log",
            localrule: True
            params:
                backbone=backbone,
            message:
                "Convert the start weights of {params.backbone}"
            shell:
                "drgrade weights {params.backbone} > {log} 2>&1"
