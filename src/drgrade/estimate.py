"""What a run will cost, said before it starts."""

from pathlib import Path

from drgrade.params import Grade, Params
from drgrade.params.trainings import trainings as trainings_of

LARGE = 2000
"""Photographs from which on the estimate is printed."""
PUBLISHED = {"eyepacs": (88_702, 90.0), "idrid": (597, 1.1), "aptos": (5_590, 10.0), "ddr": (14_430, 0.0)}
"""Photographs and GB of raw files (0: not known) of whole datasets, as their publishers state them."""
CROP_SECONDS = 0.07  # a look and a crop at 15 megapixels on one core, benchmarks/index.py and crop.py
SIZE = {"raw": 1.0, "png": 0.35, "jpeg": 0.09}
"""Bytes of a stored crop relative to its pixels, benchmarks/loader.py."""
CPU_RATE = 9.0  # photographs a second, forward and backward, EfficientNet-Lite0 at 288 px on 2 cores


def count(params: Params, dataset: str) -> int:
    """Photographs that will be used: the limit, else what the manifest lists, else what is published."""
    limit = params.datasets[dataset].limit
    manifest = Path(f"results/{dataset}/download/manifest.tsv")
    if manifest.exists():
        names = (line.split("\t")[0].lower() for line in manifest.read_text().splitlines())
        known = sum(name.endswith((".jpg", ".jpeg", ".png", ".tif", ".tiff", ".dcm")) for name in names)
    elif painted := getattr(params.download, dataset, None):
        known = 2 * painted.patients + painted.segmentation
    else:
        known = PUBLISHED.get(dataset, (0, 0.0))[0]
    return min(limit, known) if limit and known else limit or known


def trainings(params: Params) -> dict[str, int]:
    """Networks that each experiment trains, of graders that go over photographs: seeds by folds."""
    tuned = [name for name, row in params.experiments.items() if isinstance(row, Grade)]
    return {name: len(trainings_of(params, name)) for name in tuned}


def estimate(params: Params, cores: int) -> list[str]:
    """Lines to print before a large run; none for a small one."""
    counts = {name: count(params, name) for name in params.datasets}
    lines = []
    for name, photographs in counts.items():
        if photographs < LARGE:
            continue
        store = photographs * params.crop.size**2 * 3 / 1e9 * SIZE[params.crop.format]
        hours = photographs * CROP_SECONDS / cores / 3600
        raw = PUBLISHED.get(name, (0, 0.0))[1]
        beside = f" beside {raw:.0f} GB of raw files" if raw else ""
        lines.append(
            f"{name}: {photographs} photographs; disk: {store:.1f} GB of crops{beside}; "
            f"index and crop about {hours:.1f} h on {cores} cores"
        )
    graded = counts[params.roles.grade]
    passes, hours = 0.0, 0.0
    for name, networks in trainings(params).items():
        block = params.experiment(name)
        assert isinstance(block, Grade)
        own = graded * block.label_fraction * block.epochs * networks
        passes += own
        hours += own * (block.input_size / 288) ** 2 / CPU_RATE / 3600
    if lines or hours > 1:
        lines.append(
            f"grade: {sum(trainings(params).values())} trainings, {passes:.0f} photograph passes: "
            f"about {hours:.1f} h on 2 CPU cores with a small encoder; a GPU is much faster"
        )
    return lines
