"""Measure, explain, report."""


rule evaluate:
    input:
        predictions=of_trainings("predictions.parquet"),
        models=of_trainings("training.json"),
        index=at(GRADE, "index/index.parquet"),
        crops=at(GRADE, "crop/crops.parquet"),
    output:
        metrics=at(GRADE, "evaluate/metrics.json"),
        confusion=at(GRADE, "evaluate/confusion.csv"),
        external=report(
            at(GRADE, "evaluate/external.csv"),
            caption="../report/external.rst",
            category="1 Leaderboard",
        ),
        leaderboard=report(
            at(GRADE, "evaluate/leaderboard.csv"),
            caption="../report/leaderboard.rst",
            category="1 Leaderboard",
        ),
        chart=report(
            at(GRADE, "evaluate/figures/leaderboard.png"),
            caption="../report/leaderboard.rst",
            category="1 Leaderboard",
        ),
        matrices=report(
            at(GRADE, "evaluate/figures/confusion.png"),
            caption="../report/confusion.rst",
            category="1 Leaderboard",
        ),
    log:
        f"logs/{GRADE}/evaluate.log",
    params:
        software=software("evaluate"),
        block=block("evaluate"),
        folder=subpath(output.metrics, parent=True),
        dataset=GRADE,
    message:
        "Measure all experiments"
    shell:
        "drgrade evaluate --params {params.block:q} --dataset {params.dataset} --data results/{params.dataset}"
        " --predictions {input.predictions} --out {params.folder} > {log} 2>&1"


rule explain:
    input:
        raw=at(LESIONS, "download/manifest.tsv"),  # holds digests of masks
        lesions_index=at(LESIONS, "index/index.parquet"),
        lesions_crops=at(LESIONS, "crop/crops.parquet"),
        lesions_store=at(LESIONS, "crop/store.json"),
        lesions_shards=ancient(at(LESIONS, "crop/store")),
        index=at(GRADE, "index/index.parquet"),
        crops=at(GRADE, "crop/crops.parquet"),
        store=at(GRADE, "crop/store.json"),
        shards=ancient(at(GRADE, "crop/store")),
        manifests=explained("training.json"),
        models=ancient(explained("model")),
    output:
        scores=at(GRADE, "explain/{explanation}/scores.json"),
        maps=directory(at(GRADE, "explain/{explanation}/maps")),
        sheet=report(
            at(GRADE, "explain/{explanation}/heat_maps.png"),
            caption="../report/heat_maps.rst",
            category="3 What the model looks at",
        ),
    log:
        f"logs/{GRADE}/explain_{{explanation}}.log",
    threads: JOB_THREADS
    resources:
        gpu=JOB_GPUS,
    params:
        software=explain_software,
        block=lambda wildcards: block("explanations", wildcards.explanation),
        folder=subpath(output.scores, parent=True),
        dataset=GRADE,
        lesions_dataset=LESIONS,
    message:
        "Draw heat maps: {wildcards.explanation}"
    shell:
        "drgrade explain --params {params.block:q} --dataset {params.dataset} --data results/{params.dataset}"
        " --lesions-dataset {params.lesions_dataset} --lesions-data results/{params.lesions_dataset}"
        " --model {input.models} --out {params.folder} > {log} 2>&1"


# lesion stages run where a pretraining looks at boxes: whole photographs need no dataset with masks
LESION_FILES = (
    {
        "lesions": rules.lesions.output.lesions,
        "detector_metrics": rules.detector.output.metrics,
        "lesion_metrics": rules.lesion_metrics.output.metrics,
    }
    if SOURCES_OF_BOXES
    else {}
)


rule report:
    input:
        **LESION_FILES,
        index=at(PRETRAIN, "index/index.parquet"),
        crops=at(PRETRAIN, "crop/crops.parquet"),
        store=at(PRETRAIN, "crop/store.json"),
        shards=ancient(at(PRETRAIN, "crop/store")),
        statistics=rules.all_patches.input,
        segmentation=rules.all_segmentation_metrics.input,
        verdicts=rules.lesion_metrics.output.verdicts if LESION_FILES else [],
        leaderboard=rules.evaluate.output.leaderboard,
        charts=[rules.evaluate.output.chart, rules.evaluate.output.matrices],
        external=rules.evaluate.output.external,
        metrics=rules.evaluate.output.metrics,
        heat_maps=expand(rules.explain.output.sheet, explanation=PARAMS.explanations),
    output:
        **{
            name: report(
                at(GRADE, f"report/{name}.png"),
                caption=f"../report/{caption}.rst",
                category="2 What went in",
            )
            for name, caption in (
                ("lesion_sheet", "lesion_sheet"),
                ("froc", "detector"),
            )
            if LESION_FILES
        },
        page=at(GRADE, "report/report.html"),
        counts=report(
            at(GRADE, "report/input.csv"),
            caption="../report/input.rst",
            category="2 What went in",
        ),
        crop_sheet=report(
            at(GRADE, "report/crop_sheet.png"),
            caption="../report/crop_sheet.rst",
            category="2 What went in",
        ),
        worst_sheet=report(
            at(GRADE, "report/worst_sheet.png"),
            caption="../report/worst_sheet.rst",
            category="2 What went in",
        ),
        cards=directory(at(GRADE, "report/model_cards")),
        resolved=at(GRADE, "report/params.yaml"),
    log:
        f"logs/{GRADE}/report.log",
    params:
        software=software("report"),
        all_params=json.dumps(RESOLVED, sort_keys=True),
        lesions=" ".join(
            f"--{name.replace('_', '-')} {path}" for name, path in LESION_FILES.items()
        ),
        segmentation=lambda wildcards, input: (
            f"--segmentation-metrics {input.segmentation}"
            if input.segmentation
            else ""
        ),
        folder=subpath(output.page, parent=True),
    message:
        "Write the report"
    shell:
        "drgrade report --all-params {params.all_params:q} --index {input.index} --crops {input.crops}"
        " --store {input.store} {params.lesions} {params.segmentation} --statistics {input.statistics}"
        " --leaderboard {input.leaderboard} --metrics {input.metrics}"
        " --heat-maps {input.heat_maps} --out {params.folder} > {log} 2>&1"
