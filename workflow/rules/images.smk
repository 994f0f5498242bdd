"""Raw photographs to crops."""


# the job rewrites its input at the end: only then is known what lies there
rule download:
    input:
        listing=listing_of("{dataset}"),
    output:
        manifest="results/{dataset}/download/manifest.tsv",
    log:
        "logs/{dataset}/download.log",
    threads: CORES
    params:
        software=dataset_software("download"),
        block=block("download"),
    message:
        "Fetch and verify the photographs of {wildcards.dataset}"
    shell:
        "drgrade download --dataset {wildcards.dataset} --params {params.block:q}"
        " --listing {input.listing} --manifest {output.manifest} > {log} 2>&1"


# many jobs a dataset where one machine is not enough: --set-scatter index=8 crop=8
scattergather:
    index=1,
    crop=1,


INDEX_SHARDS = gather.index("results/{{dataset}}/index/{scatteritem}.surveyed")
CROP_SHARDS = gather.crop("results/{{dataset}}/crop/{scatteritem}.cropped")


rule index_shard:
    input:
        manifest=rules.download.output.manifest,
    output:
        temp(touch("results/{dataset}/index/{scatteritem}.surveyed")),
    log:
        "logs/{dataset}/index_{scatteritem}.log",
    threads: CORES
    params:
        software=dataset_software("index"),
        block=index_block,
        limit=lambda wildcards: PARAMS.datasets[wildcards.dataset].limit,
        numbers=numbers_per_patient,
        shard=shard,
        index="results/{dataset}/index/index.parquet",
        split="results/splits/{dataset}.csv",
    message:
        "Survey a part of the photographs of {wildcards.dataset}: {wildcards.scatteritem}"
    shell:
        "drgrade index --dataset {wildcards.dataset} --params {params.block:q} --limit {params.limit}"
        " --numbers-per-patient {params.numbers} --workers {threads} --shard {params.shard}"
        " --manifest {input.manifest} --out {params.index} --split {params.split} > {log} 2>&1"


rule index:
    input:
        INDEX_SHARDS if len(INDEX_SHARDS) > 1 else [],  # joins what they found
        split_files,
        manifest=rules.download.output.manifest,
    output:
        index="results/{dataset}/index/index.parquet",
        split="results/splits/{dataset}.csv",
        summary="results/splits/{dataset}.json",
    log:
        "logs/{dataset}/index.log",
    threads: CORES
    params:
        software=dataset_software("index"),
        block=index_block,
        limit=lambda wildcards: PARAMS.datasets[wildcards.dataset].limit,
        numbers=numbers_per_patient,
        lists=split_options,
    message:
        "List, survey and split the photographs of {wildcards.dataset}"
    shell:
        "drgrade index --dataset {wildcards.dataset} --params {params.block:q} --limit {params.limit}"
        " --numbers-per-patient {params.numbers} --workers {threads} {params.lists}"
        " --manifest {input.manifest} --out {output.index} --split {output.split} > {log} 2>&1"


rule overlaps:
    input:
        indexes=expand(rules.index.output.index, dataset=USED),
    output:
        overlaps="results/overlaps/overlaps.csv",
        summary="results/overlaps/overlaps.json",
    log:
        "logs/overlaps.log",
    params:
        software=software("overlaps"),
        block=block("overlaps"),
        roles=block("roles"),
        indexes=[f"--index {name} {at(name, 'index/index.parquet')}" for name in USED],
        folder=subpath(output.summary, parent=True),
    message:
        "Compare datasets: is a photograph trained on in one and tested on in another"
    shell:
        "drgrade overlaps --params {params.block:q} --roles {params.roles:q} {params.indexes}"
        " --out {params.folder} > {log} 2>&1"


rule crop_shard:
    input:
        index=rules.index.output.index,
    output:
        temp(touch("results/{dataset}/crop/{scatteritem}.cropped")),
    log:
        "logs/{dataset}/crop_{scatteritem}.log",
    threads: CORES
    params:
        software=software("crop"),
        block=block("crop"),
        shard=shard,
        store="results/{dataset}/crop/store.json",
        table="results/{dataset}/crop/crops.parquet",
    message:
        "Crop a part of the photographs of {wildcards.dataset}: {wildcards.scatteritem}"
    shell:
        "drgrade crop --dataset {wildcards.dataset} --params {params.block:q} --workers {threads}"
        " --shard {params.shard} --index {input.index} --store {params.store} --table {params.table}"
        " > {log} 2>&1"


rule crop:
    input:
        CROP_SHARDS if len(CROP_SHARDS) > 1 else [],  # joins what they cropped
        index=rules.index.output.index,
    output:
        store="results/{dataset}/crop/store.json",
        shards=directory("results/{dataset}/crop/store"),
        table="results/{dataset}/crop/crops.parquet",
    log:
        "logs/{dataset}/crop.log",
    threads: CORES
    params:
        software=software("crop"),
        block=block("crop"),
    message:
        "Crop the photographs of {wildcards.dataset}"
    shell:
        "drgrade crop --dataset {wildcards.dataset} --params {params.block:q} --workers {threads}"
        " --index {input.index} --store {output.store} --table {output.table} > {log} 2>&1"
