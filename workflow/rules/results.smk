"""Measure, explain, report."""


rule calibrate:
    input:
        predictions=of_trainings("predictions.parquet"),
    output:
        calibration=at(GRADE, "calibrate/calibration.json"),
    log:
        f"logs/{GRADE}/calibrate.log",
    params:
        software=software("calibrate"),
        block=block("calibrate"),
        folder=subpath(output.calibration, parent=True),
    message:
        "Fit calibration and operating points"
    shell:
        "drgrade calibrate --params {params.block:q} --predictions {input.predictions} --out {params.folder}"
        " > {log} 2>&1"


rule evaluate:
    input:
        predictions=of_trainings("predictions.parquet"),
        calibration=rules.calibrate.output.calibration,
        models=of_trainings("training.json"),
        histories=of_trainings("history.csv"),
        index=at(GRADE, "index/index.parquet"),
        crops=at(GRADE, "crop/crops.parquet"),
        external_indexes=[at(name, "index/index.parquet") for name in EXTERNAL],
    output:
        metrics=at(GRADE, "evaluate/metrics.json"),
        confusion=at(GRADE, "evaluate/confusion.csv"),
        operating=at(GRADE, "evaluate/operating.csv"),
        sets=at(GRADE, "evaluate/sets.csv"),
        risk_coverage=at(GRADE, "evaluate/risk_coverage.csv"),
        roc=at(GRADE, "evaluate/roc.csv"),
        reliability=at(GRADE, "evaluate/reliability.csv"),
        errors=at(GRADE, "evaluate/errors.csv"),
        learning_curves=at(GRADE, "evaluate/learning_curves.csv"),
        curves=[
            report(
                at(GRADE, f"evaluate/figures/{name}.png"),
                caption=f"../report/{name}.rst",
                category="1 Leaderboard",
            )
            for name in ("roc", "reliability", "risk_coverage", "learning_curves")
        ],
        external=report(
            at(GRADE, "evaluate/external.csv"),
            caption="../report/external.rst",
            category="1 Leaderboard",
        ),
        subgroups=report(
            at(GRADE, "evaluate/subgroups.csv"),
            caption="../report/subgroups.rst",
            category="1 Leaderboard",
        ),
        leaderboard=report(
            at(GRADE, "evaluate/leaderboard.csv"),
            caption="../report/leaderboard.rst",
            category="1 Leaderboard",
        ),
        # these hold times: no rule has them as its input, and DVC does not record them
        costs=at(GRADE, "evaluate/costs.csv"),
        markdown=at(GRADE, "evaluate/leaderboard.md"),
        page=report(
            at(GRADE, "evaluate/leaderboard.html"),
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
        external=[f"--external {name} {at(name, '')}" for name in EXTERNAL],
    message:
        "Measure all experiments"
    shell:
        "drgrade evaluate --params {params.block:q} --dataset {params.dataset} --data results/{params.dataset}"
        " {params.external} --predictions {input.predictions} --calibration {input.calibration} --out {params.folder}"
        " > {log} 2>&1"


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
        lesion_results=explained_lesions,
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
        models=lambda wildcards, input: (
            f"--model {input.models}" if input.models else ""
        ),
        lesions=lambda wildcards: lesion_options(PARAMS, wildcards.explanation),
        folder=subpath(output.scores, parent=True),
        dataset=GRADE,
        lesions_dataset=LESIONS,
    message:
        "Draw heat maps: {wildcards.explanation}"
    shell:
        "drgrade explain --params {params.block:q} --dataset {params.dataset} --data results/{params.dataset}"
        " --lesions-dataset {params.lesions_dataset} --lesions-data results/{params.lesions_dataset}"
        " {params.models} {params.lesions} --out {params.folder} > {log} 2>&1"


rule robustness:
    input:
        predictions=of_robustness("predictions.parquet"),
        manifests=of_robustness("training.json"),
        models=ancient(of_robustness("model")),
        features=features_of_robustness(),
        index=at(GRADE, "index/index.parquet"),
        crops=at(GRADE, "crop/crops.parquet"),
        store=at(GRADE, "crop/store.json"),
        shards=ancient(at(GRADE, "crop/store")),
    output:
        table=at(GRADE, "robustness/robustness.csv"),
        figure=report(
            at(GRADE, "robustness/figures/robustness.png"),
            caption="../report/robustness.rst",
            category="1 Leaderboard",
        ),
    log:
        f"logs/{GRADE}/robustness.log",
    threads: JOB_THREADS
    resources:
        gpu=JOB_GPUS,
    params:
        software=robustness_software(),
        block=block("robustness"),
        trainings=robustness_options(),
        folder=subpath(output.table, parent=True),
        dataset=GRADE,
    message:
        "Grade corrupted photographs"
    shell:
        "drgrade robustness --params {params.block:q} --dataset {params.dataset}"
        " --data results/{params.dataset} {params.trainings} --out {params.folder} > {log} 2>&1"


rule all_robustness:
    input:
        rules.robustness.output.table if ROBUST else [],
    localrule: True


# lesion stages run where a pretraining looks at boxes: whole photographs need no dataset with masks
LESION_FILES = (
    {
        "lesions": rules.lesions.output.lesions,
        "lesion_metrics": rules.lesion_metrics.output.metrics,
    }
    | (
        {"detector_metrics": rules.detector.output.metrics}
        if PARAMS.lesions.source == "detector"
        else {}
    )
    if SOURCES_OF_BOXES
    else {}
)


SHOWN = dict.fromkeys((PRETRAIN, GRADE))  # datasets, each once


rule report:
    input:
        **LESION_FILES,
        crops=[at(name, path) for name in SHOWN for path in TABLES_OF_CROPS],
        shards=[ancient(at(name, "crop/store")) for name in SHOWN],
        described=[
            at(name, path)
            for name in USED
            for path in ("index/index.parquet", "crop/crops.parquet")
        ],
        trainings=of_trainings("training.json"),
        encoders=[
            at(PRETRAIN, f"pretrain/{name}/encoder.json") for name in STARTED_FROM
        ],
        statistics=rules.all_patches.input,
        segmentation=rules.all_segmentation_metrics.input,
        verdicts=rules.lesion_metrics.output.verdicts if LESION_FILES else [],
        metrics=rules.evaluate.output.metrics,
        evaluated=[
            rules.evaluate.output[name]
            for name in (
                "leaderboard",
                "external",
                "subgroups",
                "operating",
                "sets",
                "errors",
                "learning_curves",
                "chart",
                "matrices",
            )
        ],
        curves=rules.evaluate.output.curves,
        robustness=rules.all_robustness.input,
        heat_maps=expand(rules.explain.output.sheet, explanation=PARAMS.explanations),
        maps=ancient(expand(rules.explain.output.maps, explanation=PARAMS.explanations)),
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
        error_sheet=report(
            at(GRADE, "report/error_sheet.png"),
            caption="../report/error_sheet.rst",
            category="1 Leaderboard",
        ),
        galleries=report(
            expand(
                at(GRADE, "report/heat_maps/{explanation}.png"),
                explanation=PARAMS.explanations,
            ),
            caption="../report/heat_map_gallery.rst",
            category="3 What the model looks at",
        ),
        cards=directory(at(GRADE, "report/model_cards")),
        dataset_cards=directory(at(GRADE, "report/dataset_cards")),
        resolved=at(GRADE, "report/params.yaml"),
    log:
        f"logs/{GRADE}/report.log",
    params:
        software=software("report", *(f"drgrade.data.{name}" for name in USED)),
        all_params=json.dumps(RESOLVED, sort_keys=True),
        lesions=" ".join(
            f"--{name.replace('_', '-')} {path}" for name, path in LESION_FILES.items()
        ),
        segmentation=lambda wildcards, input: (
            f"--segmentation-metrics {input.segmentation}"
            if input.segmentation
            else ""
        ),
        robustness=lambda wildcards, input: (
            f"--robustness {input.robustness}" if input.robustness else ""
        ),
        evaluated=subpath(input.metrics, parent=True),
        folder=subpath(output.page, parent=True),
        dataset=GRADE,
        pretrain_dataset=PRETRAIN,
        described=[f"--described {name} {at(name, '')}" for name in USED],
    message:
        "Write the report"
    shell:
        "drgrade report --all-params {params.all_params:q} --dataset {params.dataset}"
        " --data results/{params.dataset} --pretrain-dataset {params.pretrain_dataset}"
        " --pretrain-data results/{params.pretrain_dataset} {params.lesions} {params.segmentation}"
        " --statistics {input.statistics} --evaluated {params.evaluated} {params.robustness}"
        " --heat-maps {input.heat_maps} {params.described} --trainings {input.trainings}"
        " --encoders {input.encoders} --out {params.folder} > {log} 2>&1"
