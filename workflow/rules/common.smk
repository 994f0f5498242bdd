"""Checked params, the paths of results, and what jobs read beside them."""

import json
import os
import re
import shlex
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

from drgrade.data import listing
from drgrade.devices import gpu_present
from drgrade.errors import UserError
from drgrade.estimate import estimate
from drgrade.explain.inputs import lesion_files, lesion_options
from drgrade.faults import as_user_errors
from drgrade.params import GRADERS, check, read_yaml
from drgrade.params.trainings import part_trainings, trainings
from drgrade.run_lock import lock_run, only_looks
from drgrade.seeding import torch_threads
from drgrade.segmentation.parts import part_names
from drgrade.summary import summary
from drgrade.weights.make import awaited_file


def or_exit(call, *arguments):
    """What a call returns; if the user has to mend something, one line that says what, and the end."""
    try:
        with as_user_errors():
            return call(*arguments)
    except UserError as error:
        sys.exit(f"drgrade: error: {error}")


for file in workflow.overwrite_configfiles or ["params.yaml"]:
    or_exit(read_yaml, Path(file))

# a --configfile takes the place of params.yaml, whose values must not shine through
if not workflow.overwrite_configfiles:

    configfile: "params.yaml"


PARAMS = or_exit(
    check,
    json.loads(json.dumps(config)),
    ", ".join(map(str, workflow.overwrite_configfiles)) or "params.yaml",
)
RESOLVED = PARAMS.model_dump()
LESIONS, PRETRAIN, GRADE = (
    PARAMS.roles.lesions,
    PARAMS.roles.pretrain,
    PARAMS.roles.grade,
)
EXTERNAL = PARAMS.roles.external
USED = list(dict.fromkeys([LESIONS, PRETRAIN, GRADE, *EXTERNAL]))
EXPERIMENTS = list(PARAMS.experiments)
ROBUST = PARAMS.robustness.experiments
ENCODERS = list(PARAMS.pretrain)

# the verbs of this environment, also when Snakemake was called by its path; and the params of the
# parent run in MLflow that every job belongs to
os.environ |= {
    "PATH": f"{Path(sys.executable).parent}:{os.getenv('PATH')}",
    "DRGRADE_PARENT": json.dumps(RESOLVED, sort_keys=True),
}


def block(*keys):
    """A block of the params as JSON: what a verb gets, and what Snakemake compares for reruns."""
    values = RESOLVED
    for key in keys:
        values = values[key]
    return json.dumps(values, sort_keys=True)


def index_block(wildcards):
    """The block of the rule index, with what a dataset says of its own."""
    scheme = PARAMS.scheme(wildcards.dataset)
    return json.dumps(RESOLVED["index"] | {"scheme": scheme}, sort_keys=True)


def numbers_per_patient(wildcards):
    """How many consecutive numbers count as one patient of a dataset; None if its patients are known."""
    return PARAMS.datasets[wildcards.dataset].numbers_per_patient


def split_files(wildcards):
    """The user's lists that the index of a dataset is made by."""
    dataset = PARAMS.datasets[wildcards.dataset]
    folds = (
        PARAMS.index.folds_file if PARAMS.scheme(wildcards.dataset) == "kfold" else None
    )
    return [path for path in (folds, dataset.split_file, dataset.exclude) if path]


def split_options(wildcards):
    """The same as options of the verb; the folds are in its block."""
    dataset = PARAMS.datasets[wildcards.dataset]
    files = {"--split-file": dataset.split_file, "--exclude": dataset.exclude}
    return " ".join(
        f"{option} {shlex.quote(path)}" for option, path in files.items() if path
    )


def at(dataset, path):
    """Where a stage of a dataset writes."""
    return f"results/{dataset}/{path}"


def listing_of(dataset):
    """The file that says what lies in the raw folder of a dataset."""
    return f"{listing.FOLDER}/{dataset}.tsv"


def weights_files(start, encoders):
    """Files of start weights, to wait for and to watch: the user's own, or ImageNet's in data/weights.

    The latter need not be there yet if weights.smk makes them. None for random and for packaged weights; nor
    where ImageNet's are still to be brought, as the job says.
    """
    if start == "imagenet":
        return [str(path) for path in map(awaited_file, encoders) if path]
    return [] if start in (None, "random") else [start]


def boxes_of(encoder):
    """Where the boxes that its pretraining looks at come from; None if it looks at none."""
    params = RESOLVED["pretrain"][encoder]
    if params["method"] == "lesion_contrastive" or params.get("preset") == "lesion":
        return params["boxes"]
    return None


def experiment_block(name):
    """An experiment with the values of the block grade filled in, without what names other trainings."""
    values = PARAMS.experiment(name).model_dump(exclude={"seeds", "out_of_fold"})
    return json.dumps(values, sort_keys=True)


def needs_of(experiment):
    """What the grader of an experiment is given beside crops and grades."""
    return GRADERS.get(PARAMS.experiments[experiment].grader).needs


def shard(wildcards):
    """Number of a part of a stage's work, from 0, and how many there are."""
    number, of = wildcards.scatteritem.split("-of-")
    return f"{int(number) - 1}/{of}"


def of_trainings(path, experiments=EXPERIMENTS):
    """A file of every training of these experiments."""
    return [
        at(GRADE, f"grade/{name}/{training.label}/{path}")
        for name in experiments
        for training in trainings(PARAMS, name)
    ]


def of_part_trainings(path, experiment):
    """A file of every training of an experiment that leaves out a part of the patients."""
    return [
        f"{training_folder(experiment, training.label)}/{path}"
        for training in part_trainings(PARAMS, experiment)
    ]


def of_features(name):
    """The manifests of a feature set, one for each training of its experiment."""
    experiment = PARAMS.features[name].experiment
    return [
        at(GRADE, f"features/{name}/{training.label}/features.json")
        for training in trainings(PARAMS, experiment)
    ]


def training_named(experiment, label):
    """The training of an experiment with this label."""
    known = [*trainings(PARAMS, experiment), *part_trainings(PARAMS, experiment)]
    return next(training for training in known if training.label == label)


def models_of(features, label, path):
    """A file of the models that give a feature set: of the parts if there are any, else of the training."""
    experiment = PARAMS.features[features].experiment
    parts = training_named(experiment, label).parts(PARAMS.parts_of_features(features))
    return [
        f"{training_folder(experiment, name)}/{path}"
        for name in [part.label for part in parts] or [label]
    ]


def seed_and_fold(label):
    """Seed and fold of a training as options, from its label."""
    numbers = dict(re.findall(r"(seed|fold)(\d+)", label))
    return " ".join(f"--{name} {number}" for name, number in numbers.items())


def explained(file):
    """A file of each training whose model is explained (first seed and fold), as an input."""

    def paths(wildcards):
        experiments = PARAMS.explanations[wildcards.explanation].experiments
        return [of_trainings(file, [experiment])[0] for experiment in experiments]

    return paths


def of_robustness(path):
    """A file of each training that the stage robustness tests (first seed and fold), and of its members."""
    tested = [
        training_folder(one, trainings(PARAMS, name)[0].label)
        for name in ROBUST
        for one in (name, *PARAMS.experiments[name].members)
    ]
    return [f"{folder}/{path}" for folder in dict.fromkeys(tested)]


def features_of_robustness():
    """The manifests of the feature sets that these trainings are fitted on."""
    return [
        at(GRADE, f"features/{one}/{trainings(PARAMS, name)[0].label}/features.json")
        for name in ROBUST
        for one in PARAMS.feature_sets(name)
    ]


def robustness_options():
    """The tested trainings as options."""
    folders = {
        name: training_folder(name, trainings(PARAMS, name)[0].label) for name in ROBUST
    }
    return [f"--training {name} {folder}" for name, folder in folders.items()]


def finder_folder(wildcards, input):
    """Folder of what finds lesions: the trained detector, or the segmentation network."""
    folder = Path(input.finder[0]).parent
    return folder / "model" if PARAMS.lesions.source == "segmentation" else folder


def explained_lesions(wildcards):
    """Files of the lesion stages that an explanation shows."""
    return lesion_files(PARAMS, wildcards.explanation)


def training_folder(experiment, training):
    """Where a training of an experiment writes."""
    return at(GRADE, f"grade/{experiment}/{training}")


def start_folder(wildcards):
    """Where the start weights of an experiment are: a folder, a file, or nothing."""
    start = PARAMS.start(wildcards.experiment)
    if start is None or start.kind in ("random", "imagenet"):
        return None
    return {
        "pretrain": at(PRETRAIN, f"pretrain/{start.name}/weights"),
        "experiment": training_folder(start.name, wildcards.training),
        "file": start.name,
    }[start.kind]


TABLES_OF_CROPS = ("index/index.parquet", "crop/crops.parquet", "crop/store.json")


def grade_needs(wildcards):
    """What a training reads beside the dataset, by option of the verb: files to wait for."""
    start, needs = PARAMS.start(wildcards.experiment), needs_of(wildcards.experiment)
    files = {}
    if start is not None and start.kind == "pretrain":
        files["start"] = at(PRETRAIN, f"pretrain/{start.name}/encoder.json")
    if start is not None and start.kind in ("file", "imagenet"):
        encoder = PARAMS.experiment(wildcards.experiment).encoder
        files["start"] = weights_files(start.name, [encoder])
    built_on = PARAMS.built_on(wildcards.experiment)
    files["built_on"] = [
        f"{training_folder(name, wildcards.training)}/training.json"
        for name in built_on
    ]
    if "boxes" in needs:
        files["lesions"] = at(PRETRAIN, "lesions/lesions.parquet")
    if "masks" in needs:
        files["masks"] = at(LESIONS, "lesion_masks/masks.parquet")
        files["masked"] = [at(LESIONS, path) for path in TABLES_OF_CROPS]
    files["features"] = [
        at(GRADE, f"features/{name}/{wildcards.training}/features.json")
        for name in PARAMS.feature_sets(wildcards.experiment)
    ]
    return files


def grade_options(wildcards):
    """The same as options."""
    needs = needs_of(wildcards.experiment)
    members = PARAMS.experiments[wildcards.experiment].members
    options = [
        f"--member {name} {training_folder(name, wildcards.training)}"
        for name in members
    ]
    if start := start_folder(wildcards):
        options.append(f"--start {shlex.quote(start)}")
    if "boxes" in needs:
        options.append(f"--lesions {at(PRETRAIN, 'lesions/lesions.parquet')}")
    if "masks" in needs:
        options.append(f"--masked {LESIONS} {at(LESIONS, '')}")
    options += [
        f"--features {name} {at(GRADE, f'features/{name}/{wildcards.training}')}"
        for name in PARAMS.feature_sets(wildcards.experiment)
    ]
    return " ".join(options)


def training_options(wildcards):
    """Seed, fold and left-out part of a training as options."""
    training = training_named(wildcards.experiment, wildcards.training)
    part = " --part {}/{}".format(*training.part) if training.part else ""
    return seed_and_fold(wildcards.training) + part


# a cluster's profile names no cores: --set-threads gives its jobs another number than this
CLUSTER = workflow.resource_settings.cores is None
CORES = workflow.resource_settings.cores or 8
GPUS = (
    workflow.global_resources["gpu"].value if "gpu" in workflow.global_resources else 1
)
JOB_GPUS = int(CLUSTER or gpu_present())
"""GPUs that a job with a network asks for: none on a machine without, where --resources gpu=N limits nothing."""
CPU_THREADS = or_exit(torch_threads) * max(1, CORES // len(os.sched_getaffinity(0)))
"""Cores of such a job without a GPU: torch's threads, two by default; more of the cores that --cores claims where
the machine has fewer, so that its own are not shared by many jobs."""
JOB_THREADS = max(1, CORES // max(1, GPUS)) if JOB_GPUS else min(CPU_THREADS, CORES)

LONGEST_CHAIN = 1
"""Priority of what leads to pretrained encoders: it starts first, baselines run beside it."""

STARTED_FROM = sorted(
    start.name
    for start in {PARAMS.start(name) for name in EXPERIMENTS} - {None}
    if start.kind == "pretrain"
)
"""Encoders that experiments start from."""
SOURCES_OF_BOXES = sorted({boxes_of(encoder) for encoder in ENCODERS} - {None})
MASKS_NEEDED = any("masks" in needs_of(experiment) for experiment in EXPERIMENTS)


wildcard_constraints:
    source="detector|masks|random",
    dataset="|".join(PARAMS.datasets),
    experiment="|".join(EXPERIMENTS),
    encoder="|".join(ENCODERS),
    training=r"seed\d+(_fold\d+)?(_part\d+of\d+)?",
    features="|".join(PARAMS.features),
    explanation="|".join(PARAMS.explanations),


# jobs that Snakemake starts anew elsewhere read this file too: what follows is once a run
if workflow.is_main_process and not (
    workflow.output_settings.dryrun or only_looks(sys.argv)
):
    or_exit(lock_run)

if workflow.is_main_process:
    for name in PARAMS.datasets:
        manifest = f"results/{name}/download/manifest.tsv"
        or_exit(listing.refresh, name, Path(manifest), Path(listing_of(name)))


onstart:
    for line in estimate(PARAMS, CORES):
        print(line, file=sys.stderr)


onsuccess:
    # of a run to the end; a run to some other target (as DVC asks for) has no leaderboard to show
    if (
        "all" in (workflow.dag_settings.targets or ["all"])
        and not workflow.dag_settings.until
    ):
        for line in summary(
            Path(at(GRADE, "evaluate/leaderboard.csv")),
            Path(at(GRADE, "report/report.html")),
        ):
            print(line, file=sys.stderr)
