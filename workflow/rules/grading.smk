"""Pretrain encoders, train the experiments."""


rule pretrain:
    input:
        lambda wildcards: weights_files(
            PARAMS.pretrain[wildcards.encoder].start,
            [PARAMS.pretrain[wildcards.encoder].encoder],
        ),
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
    priority: LONGEST_CHAIN
    threads: JOB_THREADS
    resources:
        gpu=JOB_GPUS,
    params:
        software=pretrain_software,
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


rule grade:
    input:
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
        history=at(GRADE, "grade/{experiment}/{training}/history.csv"),
        # times, which no rule has as its input: nothing runs again because of them
        cost=at(GRADE, "grade/{experiment}/{training}/cost.json"),
        model=directory(at(GRADE, "grade/{experiment}/{training}/model")),
    log:
        f"logs/{GRADE}/grade_{{experiment}}_{{training}}.log",
    threads: JOB_THREADS
    resources:
        gpu=JOB_GPUS,
    params:
        software=grade_software,
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
            of_part_trainings("training.json", experiment),


rule features:
    input:
        lambda wildcards: models_of(
            wildcards.features, wildcards.training, "training.json"
        ),
        index=at(GRADE, "index/index.parquet"),
        crops=at(GRADE, "crop/crops.parquet"),
        store=at(GRADE, "crop/store.json"),
        shards=ancient(at(GRADE, "crop/store")),
        external=[at(name, path) for name in EXTERNAL for path in TABLES_OF_CROPS],
        external_shards=[ancient(at(name, "crop/store")) for name in EXTERNAL],
    output:
        manifest=at(GRADE, "features/{features}/{training}/features.json"),
        rows=at(GRADE, "features/{features}/{training}/rows.parquet"),
        mean=at(GRADE, "features/{features}/{training}/mean.npy"),
        std=at(GRADE, "features/{features}/{training}/std.npy"),
    log:
        f"logs/{GRADE}/features_{{features}}_{{training}}.log",
    threads: JOB_THREADS
    resources:
        gpu=JOB_GPUS,
    params:
        software=features_software,
        block=lambda wildcards: block("features", wildcards.features),
        training=lambda wildcards: seed_and_fold(wildcards.training),
        models=lambda wildcards: models_of(
            wildcards.features, wildcards.training, "model"
        ),
        external=[f"--external {name} {at(name, '')}" for name in EXTERNAL],
        dataset=GRADE,
        folder=subpath(output.manifest, parent=True),
    message:
        "Store features: {wildcards.features}, {wildcards.training}"
    shell:
        "drgrade features --name {wildcards.features} {params.training} --params {params.block:q}"
        " --dataset {params.dataset} --data results/{params.dataset} {params.external}"
        " --models {params.models} --out {params.folder} > {log} 2>&1"


# a target for each feature set, which DVC asks for
for features in PARAMS.features:

    rule:
        name:
            f"features_{features}"
        input:
            of_features(features),
