"""``drgrade clpi``: the released tool's command line on photographs by list.

    drgrade clpi infer -a DenseNet121 --resume-from FOLDER --infer-file LIST.csv --infer-classdim 5
    drgrade clpi cam -a DenseNet121 --resume-from FOLDER --infer-file LIST.csv --infer-classdim 5

Deviations: a photograph that cannot be read is a row with the reason, not the end of the run; weights must be
complete; a constant map is drawn black; two photographs never share a file of heat maps.
"""

import argparse
import logging
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from drgrade.bootstrap import interval
from drgrade.checkpoints import read_tensors
from drgrade.clpi.arguments import NETWORKS
from drgrade.clpi.weights import read_released
from drgrade.data.registry import DATASETS, raw_root
from drgrade.encoders import create_encoder
from drgrade.errors import UserError
from drgrade.evaluate.intervals import bootstrap
from drgrade.evaluate.metrics import qwk
from drgrade.files import atomic_write
from drgrade.grading.clpi import Clpi
from drgrade.grading.clpi_network import ActivationMaps, WithLesions
from drgrade.grading.models import MODEL, load_model
from drgrade.images.crop import centre_square_crop, crop_photograph
from drgrade.images.read import ReadError, read_photograph
from drgrade.images.rules import RGBImage
from drgrade.inference import outputs
from drgrade.networks.clpi import CELL, Encoder, load_densenet
from drgrade.params import Crop
from drgrade.schema import GRADES
from drgrade.seeding import seed_everything
from drgrade.splits.lists import read_split_list
from drgrade.training import save_tensors

log = logging.getLogger(__name__)

BATCH = 16
"""Photographs held in memory at a time."""
RESAMPLES = 1000
"""Bootstrap resamples of the patients."""
Floats = npt.NDArray[np.float64]


def run(args: argparse.Namespace) -> None:
    """Run the tool ``args.tool``; arguments as in :mod:`drgrade.clpi.arguments`.

    Raises:
        UserError: an argument or a file is wrong.
    """
    if args.tool == "convert":
        convert(args.source, NETWORKS[args.arch], args.out)
        return
    grader = grader_in(args.resume_from, NETWORKS[args.arch])
    if args.tool == "evaluate":
        table = evaluate(grader, args.split, args.part)
        if args.out is not None:
            write_csv(table, args.out)
        return
    paths = read_list(args.infer_file)
    if args.tool == "cam":
        reasons = draw_maps(grader, paths, args.out)
    else:
        table = infer(grader, paths)
        print(table.set_index("path")[["pred"]].rename_axis(None).to_string())
        write_csv(table, args.out)
        reasons = [str(reason) for reason in table["error"] if reason]
    if reasons:
        log.warning(
            "%d of %d photographs could not be read, the first: %s", len(reasons), len(paths), reasons[0]
        )
    if reasons and args.strict:
        raise UserError(f"{args.infer_file}: {len(reasons)} photographs could not be read: {reasons[0]}")


def grader_in(folder: Path, encoder: str) -> Clpi:
    """The grader in a folder: a model that the pipeline trained, or released weights of ``encoder``.

    Raises:
        UserError: it is neither.
    """
    if not (folder / MODEL).exists():
        return read_released(folder, encoder)
    grader = load_model(folder)
    if not isinstance(grader, Clpi):
        raise UserError(
            f"{folder}: a model of the grader {grader.params.grader}, not clpi; use drgrade predict"
        )
    return grader


def read_list(path: Path) -> list[str]:
    """The lines of a list of photographs, without header; blank lines are left out.

    Raises:
        UserError: there is no such file, it is not text, or it is empty.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; name a list of photographs") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not text; save it as UTF-8, a path a line") from None
    if not any(lines):
        raise UserError(f"{path}: names no photograph; a path a line is expected")
    return [line for line in lines if line]


def infer(grader: Clpi, paths: Sequence[str | Path]) -> pd.DataFrame:
    """Grade photographs.

    Returns:
        A row for each: path; pred, the most probable grade; p0-p4; score, the expected grade; for each class
        of lesion, as ``lesion_MA``, its largest probability over the cells; error, empty if it could be read.
        Where it could not, the other values are missing.
    """
    network = WithLesions(grader.network).eval()
    width = math.prod(grader.network.shape)
    lesions = ["lesion_" + "_".join(kinds) for kinds in grader.params.lesions]
    columns = [*(f"p{grade}" for grade in GRADES), "score", *lesions]
    values = np.full((len(paths), len(columns)), np.nan)
    errors = [""] * len(paths)
    for places, crops in _crops(grader.crop, paths, errors):
        found = torch.from_numpy(_outputs(network, grader, crops, (width + len(lesions),)))
        logits = found[:, :width].reshape(-1, *grader.network.shape)
        graded = [
            grader.network.probabilities(logits),
            grader.network.score(logits)[:, None],
            found[:, width:],
        ]
        values[places] = torch.cat([part.double() for part in graded], dim=1).numpy()
        log.info("%d of %d photographs", places[-1] + 1, len(paths))
    table = pd.DataFrame(values, columns=columns)
    read = table["score"].notna()
    best = values[:, : len(GRADES)].argmax(axis=1)  # 0 where all are missing
    table.insert(0, "pred", pd.array(best, "Int64"))
    table.loc[~read, "pred"] = pd.NA
    table.insert(0, "path", [str(path) for path in paths])
    return table.assign(error=errors)


def _crops(
    crop: Crop, paths: Sequence[str | Path], errors: list[str]
) -> Iterator[tuple[list[int], npt.NDArray[np.uint8]]]:
    """Yield the positions of readable photographs and their crops (n, S, S, 3); fills in ``errors``."""
    for start in range(0, len(paths), BATCH):
        ready: dict[int, RGBImage] = {}
        for place in range(start, min(start + BATCH, len(paths))):
            try:
                ready[place] = crop_photograph(Path(paths[place]), crop)[0]
            except ReadError as error:
                errors[place] = str(error)
        if ready:
            yield list(ready), np.stack(list(ready.values()))


def _outputs(
    network: torch.nn.Module, grader: Clpi, crops: npt.NDArray[np.uint8], shape: tuple[int, ...]
) -> npt.NDArray[np.float32]:
    preprocess = grader.preprocess
    images = preprocess.scaled(crops)
    rows = np.arange(len(crops))
    # maps are of the photograph as it is
    changes = None if isinstance(network, ActivationMaps) else preprocess.changes()
    return outputs(network, images, rows, preprocess.mean, preprocess.std, shape, changes)


def draw_maps(grader: Clpi, paths: Sequence[str], out: Path) -> list[str]:
    """Write ``<name>.png``, see :func:`panels`, and ``<name>.npy``, the map's values, for each photograph.

    The name is that of the photograph up to the first dot, as in the released tool.

    Returns:
        The reason for each photograph that could not be read.

    Raises:
        UserError: two photographs have the same name.
    """
    names = [Path(path).name.split(".")[0] for path in paths]
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise UserError(f"--infer-file: {count} photographs would be drawn to {out / name}.png; rename them")
    network = ActivationMaps(grader.network).eval()
    side = grader.params.input_size // CELL
    errors = [""] * len(paths)
    for places, crops in _crops(grader.crop, paths, errors):
        for place, values in zip(places, _outputs(network, grader, crops, (side, side)), strict=True):
            file = out / f"{names[place]}.png"
            with atomic_write(file) as partial:
                drawn = panels(plain_crop(Path(paths[place]), grader.crop), values)
                partial.write_bytes(cv2.imencode(".png", drawn)[1].tobytes())
            with atomic_write(file.with_suffix(".npy")) as partial:
                np.save(partial, values)
    return [reason for reason in errors if reason]


def plain_crop(path: Path, crop: Crop) -> RGBImage:
    """The crop of a photograph; for the rule ``clpi`` without subtraction of the local median."""
    if crop.rule == "clpi":
        return centre_square_crop(read_photograph(path), crop.size)[0]
    return crop_photograph(path, crop)[0]


def panels(photograph: RGBImage, values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Photograph, map, and photograph times map, side by side as in the released tool.

    Args:
        photograph: uint8 RGB (S, S, 3).
        values: the map (h, w), stretched to 0-255 and enlarged by Lanczos interpolation; a constant one is 0.

    Returns:
        uint8 BGR (S, 3 S, 3).
    """
    spread = values.max() - values.min()
    stretched = (values - values.min()) * (255 / spread) if spread > 0 else np.zeros_like(values)
    enlarged = cv2.resize(stretched, photograph.shape[1::-1], interpolation=cv2.INTER_LANCZOS4)
    heat = np.repeat(enlarged[..., None], 3, axis=2)
    plain = photograph[..., ::-1]
    whole = np.concatenate([plain, heat, plain * (heat / 255)], axis=1)
    return np.rint(whole).clip(0, 255).astype(np.uint8)


def evaluate(grader: Clpi, split: Path, part: str) -> pd.DataFrame:
    """Grade one part of Messidor-2; prints the quadratic kappa of the most probable grades.

    Args:
        grader: the model.
        split: a CSV with the columns image_id and split.
        part: train, val or test.

    Returns:
        The table of :func:`infer` with the columns image_id and grade.

    Raises:
        UserError: Messidor-2 is not there, the split cannot be read, or no photograph of the part is graded.
    """
    root = raw_root("messidor2")
    table = DATASETS.get("messidor2")().read(root)
    listed = read_split_list(split)
    table = table[table["image_id"].map(listed).eq(part) & table["grade"].notna() & table["path"].notna()]
    if table.empty:
        raise UserError(f"{split}: no graded photograph of the part {part} in {root}")
    found = infer(grader, [root / path for path in table["path"]])
    columns = ["image_id", "patient_id", "grade"]
    found = found.join(table[columns].reset_index(drop=True))
    read = found[found["pred"].notna()]
    if read.empty:
        raise UserError(f"{root}: no photograph could be read, the first: {found['error'].iloc[0]}")
    grades, predicted = (read[name].to_numpy(np.int64) for name in ("grade", "pred"))
    resampled = bootstrap(grades, predicted[None], read["patient_id"].to_numpy(str), RESAMPLES, seed=0)
    low, high = interval(resampled)
    counts = f"{len(read)} of {len(found)} photographs, {read['patient_id'].nunique()} patients"
    print(f"{part}  QWK {qwk(grades, predicted):.4f} ({low:.4f} to {high:.4f})  {counts}")
    return found


def convert(source: Path, encoder: str, out: Path) -> None:
    """Write released weights as a model of the pipeline, or a DenseNet's weights as start weights.

    With start weights the lesion network is random.

    Args:
        source: the released folder; or a file with the weights of timm's or torchvision's DenseNet.
        encoder: timm name of the network.
        out: a folder for a model; a ``.safetensors`` file for start weights, for the start ``imagenet`` in
            ``data/weights``.

    Raises:
        UserError: the weights cannot be read or do not fit.
    """
    if source.is_dir():
        read_released(source, encoder).save(out)
        return
    tensors = read_tensors(source)
    seed_everything(0, "lesions")
    network = create_encoder(encoder, None)
    assert isinstance(network, Encoder)
    try:
        load_densenet(network, tensors)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    save_tensors(network.state_dict(), out)


def write_csv(table: pd.DataFrame, out: Path) -> None:
    """Write a table with six decimals."""
    with atomic_write(out) as partial:
        table.to_csv(partial, index=False, float_format="%.6f")
    log.info("%s", out)
