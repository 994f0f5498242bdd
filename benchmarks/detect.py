"""Search of tiles for lesions: ours in batches against MMDetection's one image at a time, in one run.

    uv run python benchmarks/detect.py [--photographs 1] [--tiles 8] [--repeats 5] [--detector FOLDER]

Tiles of 384 px at native resolution, of IDRiD's photographs (DRGRADE_IDRID_ROOT) or, without them, of
synthetic eyes. The detector is rtmdet-tiny_tiles without training, or a trained one. Both ways have the tiles
in memory, the same tensors, the same number of threads and a process of their own, because ours changes how
its process holds memory; they take turns, after a round of warm-up. The baseline is the faster of
inference_detector called with the list of tiles, which builds its pipeline once, and called for each tile.
Both find the same boxes above 0.05, and the result holds only if they do but for one in a hundred: a score
or an overlap may lie on its limit. Below: where our time goes, and the share of a search that is not spent
in the detector (reading, cutting, merging, writing) although a thread reads ahead. The last line is one
JSON object.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from drgrade.data.registry import DATASETS
from drgrade.images.read import read_photograph
from drgrade.lesions import detector, predict
from drgrade.lesions.found import Found
from drgrade.lesions.tile_detector import TileDetector
from drgrade.lesions.tiles import Tiling
from drgrade.params import Demo, Detector, Download, LesionBoxes, Lesions
from drgrade.schema import CROPS, INDEX, write_table
from drgrade.seeding import torch_threads

CONFIG, SCORE, FASTER = "rtmdet-tiny_tiles", 0.05, 2.0
SPREAD = 0.01
"""Of the class weights of an untrained detector."""
CUT = LesionBoxes(tile=384, overlap=0.1, scale=1.0)
PARAMS = Lesions(min_score=SCORE)


def untrained(folder: Path) -> Path:
    """A detector that finds something: none to a hundred boxes a tile above 0.05, as trained ones do."""
    detector.register()
    from mmdet.registry import MODELS
    from mmengine.registry import init_default_scope

    init_default_scope("mmdet")
    config = detector.detector_config(Detector(config=CONFIG, start=None))
    torch.manual_seed(0)
    model = MODELS.build(config.model)
    for head in model.bbox_head.rtm_cls:
        torch.nn.init.normal_(head.weight, std=SPREAD)
        torch.nn.init.constant_(head.bias, -4.6)  # a score of 0.01
    folder.mkdir()
    torch.save(model.state_dict(), folder / "model.pth")
    (folder / "config.py").write_text(config.pretty_text)
    return folder


def photographs(count: int, folder: Path) -> tuple[list[Path], str]:
    """Paths, and what they are."""
    root = os.environ.get("DRGRADE_IDRID_ROOT", "")
    paths = sorted(Path(root).glob("*/1. Original Images/*/*.jpg")) if root else []
    kind = "IDRiD" if paths else "painted"
    if not paths:
        DATASETS.get("demo")().download(
            folder, Download(demo=Demo(patients=max(5, -(-count // 2)), width=2400))
        )
        paths = sorted(folder.rglob("*.jpeg"))
    return paths[:: max(1, len(paths) // count)][:count], kind


def tiles_of(paths: list[Path], count: int) -> list[np.ndarray]:
    """``count`` tiles (384, 384, 3) uint8 RGB that show something, evenly from all."""
    found = []
    for path in paths:
        image = read_photograph(path)
        box = (0, 0, image.shape[1], image.shape[0])
        found += [t.pixels for t in Tiling(CUT.tile, CUT.overlap, CUT.scale).cut(image, box) if not t.outside]
    return [np.ascontiguousarray(tile) for tile in found[:: max(1, len(found) // count)][:count]]


work: Callable[[], list[Found]]
"""What a process of one of the ways does in a round."""


def start(way: str, folder: Path, tiles: list[np.ndarray]) -> None:
    """Make a process ready for its rounds."""
    global work
    warnings.simplefilter("ignore")
    torch.set_num_threads(torch_threads())
    if way == "ours":
        find = TileDetector(folder, SCORE)
        step = PARAMS.batch_size

        def ours() -> list[Found]:
            return [one for k in range(0, len(tiles), step) for one in find(tiles[k : k + step])]

        work = ours
        return
    from mmdet.apis import inference_detector

    model, config = detector.load_detector(folder)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    model.cfg = config
    model.cfg.test_dataloader = config.val_dataloader
    pictures = [np.ascontiguousarray(tile[..., ::-1]) for tile in tiles]

    def theirs() -> list[Found]:
        if way == "list":
            results = inference_detector(model, pictures)
        else:
            results = [inference_detector(model, picture) for picture in pictures]
        found = [result.pred_instances.cpu().numpy() for result in results]
        return [Found(one.bboxes.astype(float), one.scores, one.labels) for one in found]

    work = theirs


def once() -> tuple[float, list[Found]]:
    """Seconds of a round, and what was found above the threshold."""
    begin = time.perf_counter()
    found = work()
    return time.perf_counter() - begin, [one[one.scores >= SCORE] for one in found]


def unlike(ours: list[Found], theirs: list[Found]) -> int:
    """Boxes of either that the other has not, within 0.1 px and 0.001 of score."""
    count = 0
    for a, b in zip(ours, theirs, strict=True):
        same = (np.abs(a.boxes[:, None] - b.boxes).max(axis=2, initial=0) < 0.1) & (
            (a.labels[:, None] == b.labels) & (np.abs(a.scores[:, None] - b.scores) < 1e-3)
        )
        count += int((~same.any(axis=1)).sum() + (~same.any(axis=0)).sum())
    return count


def race(folder: Path, tiles: list[np.ndarray], repeats: int) -> tuple[dict[str, float], int, float]:
    """Median seconds a round of each way; boxes that differ; boxes a tile."""
    ways = ("ours", "list", "each")
    context = multiprocessing.get_context("spawn")
    with contextlib.ExitStack() as stack:
        pools = {
            way: stack.enter_context(ProcessPoolExecutor(1, context, start, (way, folder, tiles)))
            for way in ways
        }
        found = {way: pools[way].submit(once).result()[1] for way in ways}
        took: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(repeats):
            for way in ways:
                took[way].append(pools[way].submit(once).result()[0])
    boxes = sum(len(one.boxes) for one in found["ours"]) / len(tiles)
    return (
        {way: statistics.median(times) for way, times in took.items()},
        unlike(found["ours"], found["list"]),
        boxes,
    )


def profile(folder: Path, tiles: list[np.ndarray], repeats: int) -> dict[str, float]:
    """Median ms a tile of the steps of our detector, on one batch."""
    find = TileDetector(folder, SCORE)
    batch, network = tiles[: PARAMS.batch_size], find.network
    samples = [find.prepare(tile) for tile in batch]
    together = {key: [sample[key] for sample in samples] for key in samples[0]}
    with torch.inference_mode():
        inputs = network.data_preprocessor(together, False)
        steps: dict[str, Callable[[], Any]] = {
            "all": lambda: find(batch),
            "pipeline": lambda: [find.prepare(tile) for tile in batch],
            "preprocessor": lambda: network.data_preprocessor(together, False),
            "backbone and neck": lambda: network.extract_feat(inputs["inputs"]),
        }
        took: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(repeats + 1):
            for name, step in steps.items():
                begin = time.perf_counter()
                step()
                took[name].append(time.perf_counter() - begin)
    shares = {name: 1000 * statistics.median(times[1:]) / len(batch) for name, times in took.items()}
    shares["head and suppression"] = shares["all"] - sum(list(shares.values())[1:])
    return shares


def outside(folder: Path, paths: list[Path], root: Path) -> tuple[float, float]:
    """Seconds of a whole search of the photographs, and the share of it outside the detector."""
    names = [f"{number}" for number in range(len(paths))]
    places = [str(path.resolve()) for path in paths]
    index = pd.DataFrame({"image_id": names, "path": places, "subset": "grading", "status": "ok"})
    write_table(index.reindex(columns=list(INDEX)), root / "index.parquet", INDEX)
    crops = pd.DataFrame({"image_id": names, "x0": 0, "y0": 0, "x1": 9999, "y1": 9999, "status": "ok"})
    write_table(crops.reindex(columns=list(CROPS)), root / "crops.parquet", CROPS)
    os.environ["DRGRADE_TIMED_ROOT"] = str(paths[0].parent)
    inside, begin = [0.0], [0.0]

    class Timed(TileDetector):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            begin[0] = time.perf_counter()

        def detect(self, samples: Any) -> list[Found]:
            entered = time.perf_counter()
            found = super().detect(samples)
            inside[0] += time.perf_counter() - entered
            return found

    predict.TileDetector = Timed  # type: ignore[misc]
    tables = (root / "index.parquet", root / "crops.parquet")
    predict.detect_lesions("timed", *tables, folder, CUT, PARAMS, root / "lesions.parquet")
    total = time.perf_counter() - begin[0]
    return total, 1 - inside[0] / total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--photographs", type=int, default=1)
    parser.add_argument("--tiles", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--detector", type=Path, help="folder of a trained detector")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as name:
        work_folder = Path(name)
        folder = arguments.detector or untrained(work_folder / "detector")
        paths, kind = photographs(arguments.photographs, work_folder / "demo")
        tiles = tiles_of(paths, arguments.tiles)
        took, differ, boxes = race(folder, tiles, arguments.repeats)
        shares = profile(folder, tiles, arguments.repeats)
        total, share = outside(folder, paths, work_folder)
    megapixels = len(tiles) * CUT.tile**2 / 1e6 if CUT.tile else 0.0
    rate = {way: megapixels / seconds for way, seconds in took.items()}
    print(f"{len(tiles)} tiles of {len(paths)} {kind} photographs, {boxes:.0f} boxes a tile above {SCORE}")
    for way, label in (("ours", "batches"), ("list", "inference_detector, list"), ("each", "one by one")):
        print(f"{label:26s}{rate[way]:7.2f} megapixels/s{1000 * took[way] / len(tiles):8.1f} ms a tile")
    print(f"{differ} boxes differ")
    for step, each in shares.items():
        print(f"  {step:24s}{each:8.1f} ms a tile{each / shares['all']:8.0%}")
    print(f"search of the photographs: {total:.1f} s, {share:.0%} of it outside the detector")
    baseline = max(rate["list"], rate["each"])
    result = {
        "name": "detect_tiles",
        "value": round(rate["ours"], 2),
        "unit": f"megapixels/s, batches of {PARAMS.batch_size} tiles of {CUT.tile} px, "
        f"{torch_threads()} cores",
        "baseline": round(baseline, 2),
        "ratio": round(rate["ours"] / baseline, 2),
        "target": FASTER,
        "holds": rate["ours"] / baseline >= FASTER and differ <= 0.01 * boxes * len(tiles),
        "outside_detector": round(share, 3),
        "ms_a_tile": {step: round(each, 1) for step, each in shares.items()},
        "boxes_that_differ": differ,
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "photographs": kind,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
