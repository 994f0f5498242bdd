"""drgrade, from raw photographs to the leaderboard:  uv run snakemake --cores 8 --resources gpu=1

A rule only calls the `drgrade` verb of its name; what decides results is in params.yaml.
"""

from snakemake.utils import min_version

min_version("9.0")


report: "workflow/report/workflow.rst"


# Used with --software-deployment-method apptainer only: it holds the environment of uv.lock, and jobs run the
# code of this folder; envs/README.md says how it is built.
container: "docker://drgrade/drgrade:0.1.0"


include: "workflow/rules/common.smk"
include: "workflow/rules/sources.smk"
include: "workflow/rules/weights.smk"
include: "workflow/rules/images.smk"
include: "workflow/rules/lesions.smk"
include: "workflow/rules/grading.smk"
include: "workflow/rules/results.smk"
include: "workflow/rules/sync.smk"
include: "workflow/rules/clock.smk"


rule all:
    default_target: True
    input:
        at(GRADE, "evaluate/leaderboard.csv"),
        at(GRADE, "report/report.html"),
