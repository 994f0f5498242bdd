"""Raw photographs to crops."""


rule download:
    input:
        sources("download"),
    output:
        manifest="results/{dataset}/download/manifest.tsv",
    log:
        "logs/{dataset}/download.log",
    threads: workflow.cores
    params:
        block=block("download"),
    message:
        "Fetch and verify the photographs of {wildcards.dataset}"
    shell:
        "drgrade download --dataset {wildcards.dataset} --params {params.block:q}"
        " --manifest {output.manifest} > {log} 2>&1"


rule index:
    input:
        sources("index"),
        [PARAMS.index.folds_file] if PARAMS.index.folds_file else [],
        manifest=rules.download.output.manifest,
    output:
        index="results/{dataset}/index/index.parquet",
    log:
        "logs/{dataset}/index.log",
    threads: workflow.cores
    params:
        block=block("index"),
        limit=lambda wildcards: PARAMS.datasets[wildcards.dataset].limit,
    message:
        "List, label and split the photographs of {wildcards.dataset}"
    shell:
        "drgrade index --dataset {wildcards.dataset} --params {params.block:q} --limit {params.limit}"
        " --manifest {input.manifest} --out {output.index} > {log} 2>&1"


rule crop:
    input:
        sources("crop"),
        index=rules.index.output.index,
    output:
        store="results/{dataset}/crop/store.json",
        shards=directory("results/{dataset}/crop/store"),
        table="results/{dataset}/crop/crops.parquet",
    log:
        "logs/{dataset}/crop.log",
    threads: workflow.cores
    params:
        block=block("crop"),
    message:
        "Crop the photographs of {wildcards.dataset}"
    shell:
        "drgrade crop --dataset {wildcards.dataset} --params {params.block:q} --workers {threads}"
        " --index {input.index} --store {output.store} --table {output.table} > {log} 2>&1"
