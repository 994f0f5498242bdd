"""Pretrain encoders, train the experiments."""

TABLES_OF_CROPS = ("index/index.parquet", "crop/crops.parquet", "crop/store.json")


rule pretrain:
    input:
        sources("pretrain"),
        rules.overlaps.output.summary,
        index=at(PRETRAIN, "index/index.parquet"),
        crops=at(PRETRAIN, "crop/crops.parquet"),
        store=at(PRETRAIN, "crop/store.json"),
        shards=ancient(at(PRETRAIN, "crop/store")),
        boxes=lambda wildcards: [
            at(PRETRAIN, f"patches/{source}/{name}")
            for source in [boxes_of(wildcards.encoder)]
            if source
            for name in ("patches.pkl", "boxes.parquet")
        ],
    output:
        manifest=at(PRETRAIN, "pretrain/{encoder}/encoder.json"),
        weights=directory(at(PRETRAIN, "pretrain/{encoder}/weights")),
    log:
        f"logs/{PRETRAIN}/pretrain_{{encoder}}.log",
    threads: workflow.cores
    resources:
        gpu=1,
    params:
        block=lambda wildcards: block("pretrain", wildcards.encoder),
        boxes=lambda wildcards, input: (
            "--patches {} --kinds {}".format(*input.boxes) if input.boxes else ""
        ),
        patch=PARAMS.patches.size,
        dataset=PRETRAIN,
        # a test photograph must not have been seen, not even without its grade
        by_fold=(
            "--by-fold"
            if PRETRAIN == GRADE and PARAMS.scheme(GRADE) == "kfold"
            else ""
        ),
    message:
        "Pretrain an encoder: {wildcards.encoder}"
    shell:
        "drgrade pretrain --name {wildcards.encoder} --params {params.block:q} --patch {params.patch}"
        " {params.by_fold} --dataset {params.dataset} --data results/{params.dataset}"
        " {params.boxes} --manifest {output.manifest} --weights {output.weights} > {log} 2>&1"


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


def grade_needs(wildcards):
    """What a training reads beside the dataset, by option of the verb: files to wait for."""
    start, needs = PARAMS.start(wildcards.experiment), needs_of(wildcards.experiment)
    files = {}
    if start is not None and start.kind == "pretrain":
        files["start"] = at(PRETRAIN, f"pretrain/{start.name}/encoder.json")
    if start is not None and start.kind == "file":
        files["start"] = start.name
    built_on = PARAMS.built_on(wildcards.experiment)
    files["built_on"] = [
        f"{training_folder(name, wildcards.training)}/training.json"
        for name in built_on
    ]
    if "boxes" in needs:
        files["lesions"] = at(PRETRAIN, "lesions/lesions.parquet")
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
    return " ".join(options)


def training_options(wildcards):
    """Seed and fold of a training as options."""
    (training,) = [
        one
        for one in trainings(PARAMS, wildcards.experiment)
        if one.label == wildcards.training
    ]
    fold = "" if training.fold is None else f" --fold {training.fold}"
    return f"--seed {training.seed}{fold}"


rule grade:
    input:
        grader_sources,
        rules.overlaps.output.summary,
        unpack(grade_needs),
        index=at(GRADE, "index/index.parquet"),
        crops=at(GRADE, "crop/crops.parquet"),
        store=at(GRADE, "crop/store.json"),
        shards=ancient(at(GRADE, "crop/store")),
        external=[at(name, path) for name in EXTERNAL for path in TABLES_OF_CROPS],
        external_shards=[ancient(at(name, "crop/store")) for name in EXTERNAL],
    output:
        predictions=at(GRADE, "grade/{experiment}/{training}/predictions.parquet"),
        manifest=at(GRADE, "grade/{experiment}/{training}/training.json"),
        model=directory(at(GRADE, "grade/{experiment}/{training}/model")),
    log:
        f"logs/{GRADE}/grade_{{experiment}}_{{training}}.log",
    threads: workflow.cores
    resources:
        gpu=1,
    params:
        block=lambda wildcards: experiment_block(wildcards.experiment),
        crop=block("crop"),
        training=training_options,
        options=grade_options,
        external=[f"--external {name} {at(name, '')}" for name in EXTERNAL],
        dataset=GRADE,
        folder=subpath(output.manifest, parent=True),
    message:
        "Train and test {wildcards.experiment}, {wildcards.training}"
    shell:
        "drgrade grade --experiment {wildcards.experiment} {params.training} --params {params.block:q}"
        " --crop-params {params.crop:q} --dataset {params.dataset} --data results/{params.dataset}"
        " {params.options} {params.external} --out {params.folder} > {log} 2>&1"


# a target for each experiment, which DVC asks for
for experiment in EXPERIMENTS:

    rule:
        name:
            f"grade_{experiment}"
        input:
            of_trainings("training.json", [experiment]),
