"""How far perceptual hashes of copies and of different photographs lie apart, on real photographs.

    uv run python benchmarks/fingerprint.py [--folder IMAGES] [--every 3]

Photographs are IDRiD's (DRGRADE_IDRID_ROOT) or all below --folder. All pairs of different photographs are
compared; every third photograph is copied, from half its resolution, in each of the ways of COPIES, through
a file that is read as the index stage reads it. The baseline is ImageHash's plain ``phash`` of the whole
image. Prints tables; the last line is one JSON object.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import imagehash
import numpy as np
from PIL import Image

from drgrade.data.labels import PHOTOGRAPHS
from drgrade.images.fingerprint import BITS, distance, perceptual_hash
from drgrade.images.read import read_reduced
from drgrade.images.rules import RGBImage, fit_disc

SIDE, HALF, LIMIT, HELD = 384, 1400, 10, 0.98
"""What the index reads; what copies are made of; the default of index.duplicate_bits; copies to find."""


def curve(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[RGBImage], RGBImage]:
    """A tone curve over grey values 0-1."""
    table = np.clip(np.round(255 * change(np.arange(256) / 255)), 0, 255).astype(np.uint8)
    return lambda picture: table[picture]


def sized(factor: float) -> Callable[[RGBImage], RGBImage]:
    """A resized image."""
    return lambda picture: cv2.resize(picture, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)


def framed(top: float, bottom: float, left: float, right: float) -> Callable[[RGBImage], RGBImage]:
    """Black margins, as shares of the height."""
    shares = (top, bottom, left, right)
    return lambda picture: cv2.copyMakeBorder(
        picture, *(round(share * len(picture)) for share in shares), cv2.BORDER_CONSTANT, value=(0, 0, 0)
    )


def cropped(margin: float) -> Callable[[RGBImage], RGBImage]:
    """Cut to the field of view and a margin, as a share of the radius; black where there is no image."""

    def cut(picture: RGBImage) -> RGBImage:
        circle = fit_disc(picture)
        if circle is None:
            return picture
        reach = circle.radius * (1 + margin)
        x0, x1 = max(round(circle.x - reach), 0), min(round(circle.x + reach), picture.shape[1])
        y0, y1 = max(round(circle.y - reach), 0), min(round(circle.y + reach), picture.shape[0])
        return np.ascontiguousarray(picture[y0:y1, x0:x1])

    return cut


def same(picture: RGBImage) -> RGBImage:
    """The image."""
    return picture


COPIES: dict[str, tuple[Callable[[RGBImage], RGBImage], int | None]] = {
    "PNG": (same, None),
    "JPEG 95": (same, 95),
    "JPEG 75": (same, 75),
    "JPEG 60": (same, 60),
    "size 0.9": (sized(0.9), 95),
    "size 0.5": (sized(0.5), 95),
    "size 0.25": (sized(0.25), 95),
    "brightness +10 %": (curve(lambda x: 1.1 * x), 95),
    "brightness -10 %": (curve(lambda x: 0.9 * x), 95),
    "contrast +15 %": (curve(lambda x: (x - 0.3) * 1.15 + 0.3), 95),
    "gamma 0.85": (curve(lambda x: x**0.85), 95),
    "gamma 1.2": (curve(lambda x: x**1.2), 95),
    "cut to the field": (cropped(0.0), 95),
    "cut 3 % inside": (cropped(-0.03), 95),
    "wider margins": (framed(0.1, 0.05, 0.2, 0.0), 95),
    "size 0.25, gamma 0.9, JPEG 75": (lambda p: curve(lambda x: x**0.9)(sized(0.25)(p)), 75),
}
"""Ways a photograph is copied: a change, and the JPEG quality it is saved at (None: PNG)."""


def fingerprints(path: Path) -> tuple[str | None, str]:
    """Our hash of a file, and the plain one."""
    picture = read_reduced(path, SIDE)[0]
    plain = imagehash.phash(Image.fromarray(picture), hash_size=16)
    return perceptual_hash(picture, fit_disc(picture)), str(plain)


def copy_distances(paths: list[Path], originals: dict[Path, tuple[str | None, str]]) -> dict[str, np.ndarray]:
    """Bits by which copies of each kind differ from their originals: (photographs, ours and plain)."""
    apart: dict[str, list[list[int]]] = {name: [] for name in COPIES}
    with tempfile.TemporaryDirectory() as folder:
        for path in paths:
            picture = read_reduced(path, HALF)[0]
            for name, (change, quality) in COPIES.items():
                file = Path(folder) / ("copy.png" if quality is None else "copy.jpg")
                options = {} if quality is None else {"quality": quality}
                Image.fromarray(change(picture)).save(file, **options)
                pairs = zip(fingerprints(file), originals[path], strict=True)
                apart[name].append([distance(a, b) if a and b else BITS for a, b in pairs])
    return {name: np.array(rows) for name, rows in apart.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--folder", type=Path, default=os.environ.get("DRGRADE_IDRID_ROOT"))
    parser.add_argument("--every", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.folder is None:
        parser.error("name a folder of photographs with --folder, or set DRGRADE_IDRID_ROOT")
    endings = set(PHOTOGRAPHS) - {".tif", ".tiff"}  # masks
    paths = sorted(path for path in arguments.folder.rglob("*") if path.suffix.lower() in endings)
    originals = {path: fingerprints(path) for path in paths}
    print(
        f"{len(paths)} photographs, {sum(ours is None for ours, _ in originals.values())} without structure"
    )
    between = {}
    for kind, name in enumerate(("ours", "plain")):
        found = [pair[kind] for pair in originals.values() if pair[kind] is not None]
        between[name] = np.array([distance(a, b) for n, a in enumerate(found) for b in found[:n]])
        low, middle = np.percentile(between[name], [0.1, 50])
        print(f"different photographs, {name}: {len(between[name])} pairs; least {between[name].min()} bits,"
              f" 0.1 % below {low:.0f}, median {middle:.0f}")  # fmt: skip
    copies = copy_distances(paths[:: arguments.every], originals)
    print(
        f"copies of {len(paths[:: arguments.every])} photographs: median, 95th percentile, most bits; plain"
    )
    for name, rows in copies.items():
        print(
            f"  {name:30s}",
            "   ".join(f"{np.median(r):.0f} {np.percentile(r, 95):.0f} {r.max()}" for r in rows.T),
        )
    every = np.concatenate(list(copies.values()))
    share, plain = (every <= LIMIT).mean(axis=0)
    print(f"within {LIMIT} bits: {share:.4f} of the copies (plain {plain:.4f})")
    result = {
        "name": "fingerprint",
        "value": round(float(share), 4),
        "unit": f"share of {len(every)} copies within {LIMIT} bits",
        "baseline": round(float(plain), 4),
        "least_between": int(between["ours"].min()),
        "least_between_baseline": int(between["plain"].min()),
        "most_copies": int(every[:, 0].max()),
        "target": HELD,
        "holds": bool(share >= HELD and between["ours"].min() > 2 * LIMIT),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
