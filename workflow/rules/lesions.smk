"""Lesion masks to a detector, its findings, and the patches around them."""


rule lesion_boxes:
    input:
        rules.overlaps.output.summary,
        raw=at(LESIONS, "download/manifest.tsv"),  # holds digests of masks
        index=at(LESIONS, "index/index.parquet"),
        crops=at(LESIONS, "crop/crops.parquet"),
    output:
        train=at(LESIONS, "lesion_boxes/train.json"),
        val=at(LESIONS, "lesion_boxes/val.json"),
        images=directory(at(LESIONS, "lesion_boxes/images")),
    log:
        f"logs/{LESIONS}/lesion_boxes.log",
    priority: LONGEST_CHAIN
    params:
        software=software("lesion_boxes", f"drgrade.data.{LESIONS}"),
        block=block("lesion_boxes"),
        folder=subpath(output.train, parent=True),
        dataset=LESIONS,
    message:
        "Turn lesion masks into boxes"
    shell:
        "drgrade lesion_boxes --dataset {params.dataset} --params {params.block:q}"
        " --index {input.index} --crops {input.crops} --out {params.folder} > {log} 2>&1"


rule lesion_masks:
    input:
        raw=at(LESIONS, "download/manifest.tsv"),  # holds digests of masks
        index=at(LESIONS, "index/index.parquet"),
        crops=at(LESIONS, "crop/crops.parquet"),
    output:
        array=at(LESIONS, "lesion_masks/masks.npy"),
        table=at(LESIONS, "lesion_masks/masks.parquet"),
    log:
        f"logs/{LESIONS}/lesion_masks.log",
    threads: CORES
    params:
        software=software("lesion_masks", f"drgrade.data.{LESIONS}"),
        block=block("lesion_masks"),
        size=PARAMS.crop.size,
        folder=subpath(output.table, parent=True),
        dataset=LESIONS,
    message:
        "Bring lesion masks into the crops"
    shell:
        "drgrade lesion_masks --dataset {params.dataset} --params {params.block:q} --size {params.size}"
        " --workers {threads} --index {input.index} --crops {input.crops} --out {params.folder} > {log} 2>&1"


rule detector:
    input:
        weights_files(PARAMS.detector.start, BACKBONES),
        train=rules.lesion_boxes.output.train,
        val=rules.lesion_boxes.output.val,
        images=ancient(rules.lesion_boxes.output.images),
    output:
        model=at(LESIONS, "detector/model.pth"),
        config=at(LESIONS, "detector/config.py"),
        metrics=at(LESIONS, "detector/metrics.json"),
    log:
        f"logs/{LESIONS}/detector.log",
    priority: LONGEST_CHAIN
    threads: JOB_THREADS
    resources:
        gpu=JOB_GPUS,
    params:
        software=software("detector"),
        config=DETECTOR_CONFIG,
        block=block("detector"),
        boxes=subpath(input.train, parent=True),
        folder=subpath(output.model, parent=True),
    message:
        "Train the lesion detector"
    shell:
        "drgrade detector --params {params.block:q} --boxes {params.boxes} --out {params.folder} > {log} 2>&1"


# what finds lesions
FINDER = {
    "detector": rules.detector.output[:2],
    "segmentation": [
        at(LESIONS, "segmentation/holdout/training.json"),
        ancient(at(LESIONS, "segmentation/holdout/model")),
    ],
}[PARAMS.lesions.source]


scattergather:
    search=1,


# one job a GPU where the search is divided: --set-scatter search=4
SHARDS = gather.search(at(PRETRAIN, "lesions/{scatteritem}.searched"))


rule lesions_shard:
    input:
        index=at(PRETRAIN, "index/index.parquet"),
        crops=at(PRETRAIN, "crop/crops.parquet"),
        finder=FINDER,
    output:
        temp(touch(at(PRETRAIN, "lesions/{scatteritem}.searched"))),
    log:
        f"logs/{PRETRAIN}/lesions_{{scatteritem}}.log",
    threads: JOB_THREADS
    resources:
        gpu=JOB_GPUS,
    params:
        software=software("lesions"),
        block=block("lesions"),
        tiling=block("lesion_boxes"),
        finder=finder_folder,
        dataset=PRETRAIN,
        shard=shard,
        table=at(PRETRAIN, "lesions/lesions.parquet"),
    message:
        "Find lesions in a part of the photographs: {wildcards.scatteritem}"
    shell:
        "drgrade lesions --dataset {params.dataset} --params {params.block:q} --boxes-params {params.tiling:q}"
        " --index {input.index} --crops {input.crops} --model {params.finder:q}"
        " --shard {params.shard} --out {params.table} > {log} 2>&1"


rule lesions:
    input:
        SHARDS if len(SHARDS) > 1 else [],  # joins what they found
        index=at(PRETRAIN, "index/index.parquet"),
        crops=at(PRETRAIN, "crop/crops.parquet"),
        finder=FINDER,
    output:
        lesions=at(PRETRAIN, "lesions/lesions.parquet"),
        searched=at(PRETRAIN, "lesions/searched.parquet"),
    log:
        f"logs/{PRETRAIN}/lesions.log",
    priority: LONGEST_CHAIN
    threads: JOB_THREADS
    resources:
        gpu=JOB_GPUS,
    params:
        software=software("lesions"),
        block=block("lesions"),
        tiling=block("lesion_boxes"),
        finder=finder_folder,
        dataset=PRETRAIN,
    message:
        "Find lesions in the photographs"
    shell:
        "drgrade lesions --dataset {params.dataset} --params {params.block:q} --boxes-params {params.tiling:q}"
        " --index {input.index} --crops {input.crops} --model {params.finder:q}"
        " --out {output.lesions} > {log} 2>&1"


rule lesion_metrics:
    input:
        raw=at(LESIONS, "download/manifest.tsv"),  # holds digests of masks
        index=at(LESIONS, "index/index.parquet"),
        crops=at(LESIONS, "crop/crops.parquet"),
        finder=FINDER,
    output:
        metrics=at(LESIONS, "lesion_metrics/metrics.json"),
        lesions=at(LESIONS, "lesion_metrics/lesions.parquet"),
        searched=at(LESIONS, "lesion_metrics/searched.parquet"),
        verdicts=at(LESIONS, "lesion_metrics/verdicts.png"),
    log:
        f"logs/{LESIONS}/lesion_metrics.log",
    threads: JOB_THREADS
    resources:
        gpu=JOB_GPUS,
    params:
        software=software("lesion_metrics", f"drgrade.data.{LESIONS}"),
        block=block("lesion_metrics"),
        tiling=block("lesion_boxes"),
        search=block("lesions"),
        finder=finder_folder,
        folder=subpath(output.metrics, parent=True),
        dataset=LESIONS,
    message:
        "Measure what finds lesions"
    shell:
        "drgrade lesion_metrics --dataset {params.dataset} --params {params.block:q}"
        " --boxes-params {params.tiling:q} --lesions-params {params.search:q} --index {input.index}"
        " --crops {input.crops} --model {params.finder:q} --out {params.folder} > {log} 2>&1"


# a training for each part: one with the split of the index, or one a fold
PARTS_OF_MASKED = part_names(PARAMS.segmentation)
# wanted where the detector runs too, or an explanation shows it: other runs need no dataset with masks
SEGMENTED = (PARAMS.segmentation.use and bool(SOURCES_OF_BOXES)) or any(
    explanation.needs == "segmentation" for explanation in PARAMS.explanations.values()
)


rule segmentation:
    input:
        rules.overlaps.output.summary,
        weights_files(PARAMS.segmentation.start, [PARAMS.segmentation.encoder]),
        raw=at(LESIONS, "download/manifest.tsv"),  # holds digests of masks
        index=at(LESIONS, "index/index.parquet"),
        crops=at(LESIONS, "crop/crops.parquet"),
    output:
        training=at(LESIONS, "segmentation/{part}/training.json"),
        model=directory(at(LESIONS, "segmentation/{part}/model")),
    log:
        f"logs/{LESIONS}/segmentation_{{part}}.log",
    priority: LONGEST_CHAIN if PARAMS.lesions.source == "segmentation" else 0
    threads: JOB_THREADS
    resources:
        gpu=JOB_GPUS,
    params:
        software=software("segmentation", f"drgrade.data.{LESIONS}"),
        block=block("segmentation"),
        folder=subpath(output.training, parent=True),
        dataset=LESIONS,
    message:
        "Train the segmentation of lesions: {wildcards.part}"
    shell:
        "drgrade segmentation --dataset {params.dataset} --part {wildcards.part} --params {params.block:q}"
        " --index {input.index} --crops {input.crops} --out {params.folder} > {log} 2>&1"


rule segmentation_metrics:
    input:
        ancient(expand(rules.segmentation.output.model, part=PARTS_OF_MASKED)),
        trainings=expand(rules.segmentation.output.training, part=PARTS_OF_MASKED),
        raw=at(LESIONS, "download/manifest.tsv"),  # holds digests of masks
        index=at(LESIONS, "index/index.parquet"),
        crops=at(LESIONS, "crop/crops.parquet"),
    output:
        metrics=at(LESIONS, "segmentation_metrics/metrics.json"),
        photographs=at(LESIONS, "segmentation_metrics/photographs.csv"),
        overlays=report(
            at(LESIONS, "segmentation_metrics/overlays.png"),
            caption="../report/segmentation.rst",
            category="2 What went in",
        ),
        maps=directory(at(LESIONS, "segmentation_metrics/maps")),
    log:
        f"logs/{LESIONS}/segmentation_metrics.log",
    threads: JOB_THREADS
    resources:
        gpu=JOB_GPUS,
    params:
        software=software("segmentation_metrics", f"drgrade.data.{LESIONS}"),
        block=block("segmentation_metrics"),
        models=lambda wildcards, input: Path(input.trainings[0]).parents[1],
        folder=subpath(output.metrics, parent=True),
        dataset=LESIONS,
    message:
        "Measure the segmentation of lesions"
    shell:
        "drgrade segmentation_metrics --dataset {params.dataset} --params {params.block:q}"
        " --index {input.index} --crops {input.crops} --models {params.models}"
        " --out {params.folder} > {log} 2>&1"


rule all_segmentations:
    input:
        expand(
            rules.segmentation.output.training,
            part=PARTS_OF_MASKED if SEGMENTED else [],
        ),
    localrule: True


rule all_segmentation_metrics:
    input:
        rules.segmentation_metrics.output.metrics if SEGMENTED else [],
    localrule: True


# detections are waited for only where patches come from them
DETECTED = () if PARAMS.patches.published else ("detector", "random")


rule patches:
    input:
        PARAMS.patches.published or [],
        lesions=lambda wildcards: (
            rules.lesions.output.lesions if wildcards.source in DETECTED else []
        ),
        raw=lambda wildcards: (
            at(PRETRAIN, "download/manifest.tsv")
            if wildcards.source == "masks"
            else []
        ),
        index=at(PRETRAIN, "index/index.parquet"),
        crops=at(PRETRAIN, "crop/crops.parquet"),
    output:
        patches=at(PRETRAIN, "patches/{source}/patches.pkl"),
        kinds=at(PRETRAIN, "patches/{source}/boxes.parquet"),
        statistics=at(PRETRAIN, "patches/{source}/statistics.json"),
    log:
        f"logs/{PRETRAIN}/patches_{{source}}.log",
    priority: LONGEST_CHAIN
    params:
        software=software("patches", f"drgrade.data.{PRETRAIN}"),
        block=block("patches"),
        boxes=block("lesion_boxes"),
        size=PARAMS.crop.size,
        dataset=PRETRAIN,
        lesions=lambda wildcards, input: (
            f"--lesions {input.lesions}" if input.lesions else ""
        ),
    message:
        "Choose the lesions for pretraining: {wildcards.source}"
    shell:
        "drgrade patches --dataset {params.dataset} --source {wildcards.source} --params {params.block:q}"
        " --boxes-params {params.boxes:q} --size {params.size} --index {input.index} --crops {input.crops}"
        " {params.lesions} --out {output.patches} --kinds {output.kinds}"
        " --statistics {output.statistics} > {log} 2>&1"


rule all_patches:
    input:
        expand(rules.patches.output.statistics, source=SOURCES_OF_BOXES),
    localrule: True


rule all_masks:
    input:
        rules.lesion_masks.output if MASKS_NEEDED else [],
    localrule: True
