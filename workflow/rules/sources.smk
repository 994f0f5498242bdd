"""Which source files each stage is made of, below src/drgrade.

Snakemake does not see imported modules: a change of these files reruns the stage. dvc.yaml lists the
same ones; tests/pipeline/test_sources.py holds both to the real imports.
"""

from pathlib import Path

TABLES = ["errors.py", "files.py", "schema.py"]
SOURCES = {
    "download": [*TABLES, "plugins.py", "seeding.py", "data"],
    "index": [*TABLES, "plugins.py", "seeding.py", "data"],
    "crop": [
        *TABLES,
        "plugins.py",
        "data/registry.py",
        "images/contrast.py",
        "images/crop.py",
        "images/geometry.py",
        "images/read.py",
        "images/rules.py",
        "images/shards.py",
        "images/stage.py",
    ],
    "lesion_boxes": [
        *TABLES,
        "plugins.py",
        "seeding.py",
        "data",
        "images/read.py",
        "images/rules.py",
        "lesions/coco.py",
        "lesions/masks.py",
        "lesions/tiles.py",
    ],
    "detector": [
        *TABLES,
        "encoders.py",
        "seeding.py",
        "lesions/backbone.py",
        "lesions/detector.py",
        "lesions/engine.py",
        "lesions/ops.py",
        "lesions/precision.py",
    ],
    "lesions": [
        *TABLES,
        "encoders.py",
        "plugins.py",
        "seeding.py",
        "data/registry.py",
        "images/read.py",
        "images/rules.py",
        "lesions/backbone.py",
        "lesions/coco.py",
        "lesions/detector.py",
        "lesions/engine.py",
        "lesions/masks.py",
        "lesions/ops.py",
        "lesions/precision.py",
        "lesions/predict.py",
        "lesions/tiles.py",
    ],
    "patches": [*TABLES, "images/geometry.py", "lesions/patches.py"],
    "pretrain": [
        *TABLES,
        "encoders.py",
        "plugins.py",
        "seeding.py",
        "training.py",
        "images/augment.py",
        "images/geometry.py",
        "images/store.py",
        "lesions/patches.py",
        "pretrain",
    ],
    "grade": [
        *TABLES,
        "encoders.py",
        "plugins.py",
        "seeding.py",
        "training.py",
        "data/splits.py",
        "evaluate/metrics.py",
        "grading",
        "images/augment.py",
        "images/geometry.py",
        "images/store.py",
    ],
    "evaluate": [*TABLES, "seeding.py", "evaluate", "report/plots.py"],
    "explain": [
        *TABLES,
        "encoders.py",
        "plugins.py",
        "seeding.py",
        "training.py",
        "data",
        "evaluate/metrics.py",
        "explain",
        "grading",
        "images/augment.py",
        "images/geometry.py",
        "images/read.py",
        "images/rules.py",
        "images/store.py",
        "lesions/masks.py",
    ],
    "report": [
        *TABLES,
        "plugins.py",
        "seeding.py",
        "data/registry.py",
        "images/geometry.py",
        "images/store.py",
        "report",
    ],
}


def sources(stage):
    """The source files of a stage, folders opened."""
    paths = [Path("src/drgrade") / name for name in SOURCES[stage]]
    return [
        str(path)
        for item in paths
        for path in (sorted(item.glob("*.py")) if item.is_dir() else [item])
    ]
