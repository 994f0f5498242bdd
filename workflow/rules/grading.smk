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
        " {params.by_fold} --index {input.index} --crops {input.crops} --store {input.store}"
        " {params.boxes} --manifest {output.manifest} --weights {output.weights} > {log} 2>&1"


rule grade:
    input:
        sources("grade"),
        rules.overlaps.output.summary,
        start_weights,
        index=at(GRADE, "index/index.parquet"),
        crops=at(GRADE, "crop/crops.parquet"),
        store=at(GRADE, "crop/store.json"),
        shards=ancient(at(GRADE, "crop/store")),
        external=[at(name, path) for name in EXTERNAL for path in TABLES_OF_CROPS],
        external_shards=[ancient(at(name, "crop/store")) for name in EXTERNAL],
    output:
        predictions=at(GRADE, "grade/{experiment}/predictions.parquet"),
        manifest=at(GRADE, "grade/{experiment}/models.json"),
        models=directory(at(GRADE, "grade/{experiment}/models")),
    log:
        f"logs/{GRADE}/grade_{{experiment}}.log",
    threads: workflow.cores
    resources:
        gpu=1,
    params:
        block=block("grade"),
        experiment=lambda wildcards: block("experiments", wildcards.experiment),
        crop=block("crop"),
        weights=weights_option,
        dataset=GRADE,
        external=[
            f"--external {name} {' '.join(at(name, path) for path in TABLES_OF_CROPS)}"
            for name in EXTERNAL
        ],
    message:
        "Train and test the experiment {wildcards.experiment}"
    shell:
        "drgrade grade --experiment {wildcards.experiment} --experiment-params {params.experiment:q}"
        " --params {params.block:q} --crop-params {params.crop:q} {params.weights} --dataset {params.dataset}"
        " --index {input.index} --crops {input.crops} --store {input.store} {params.external}"
        " --predictions {output.predictions} --manifest {output.manifest} --models {output.models}"
        " > {log} 2>&1"
