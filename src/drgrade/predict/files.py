"""Grade new photographs with a trained model, from the file to a row of a CSV."""

import logging
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain, count
from pathlib import Path

import cv2
from tqdm import tqdm

from drgrade.data.listing import PHOTOGRAPHS, escaped, walk
from drgrade.errors import UserError
from drgrade.files import atomic_write, check_writable
from drgrade.predict.model import Graded, Model
from drgrade.predict.table import COLUMNS, QUALITY

log = logging.getLogger(__name__)


def photographs_in(paths: Sequence[Path]) -> list[Path]:
    """Return the given files, and the photographs in given folders (found by :func:`walk`), sorted.

    Logs how many files of a folder are not read as photographs.

    Raises:
        UserError: a path does not exist or cannot be read, or there are no photographs.
    """
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise UserError(f"{path}: no such file or folder")
        if not path.is_dir():
            found.append(path)
            continue
        try:
            inside = [Path(entry.path) for _, entry in walk(path)]
        except OSError as error:
            raise UserError(
                f"{error.filename}: cannot be read ({error.strerror}); correct its permissions"
            ) from None
        photographs = [file for file in inside if file.suffix.lower() in PHOTOGRAPHS]
        others = [file for file in inside if file.suffix.lower() not in PHOTOGRAPHS]
        found += photographs
        if others:
            told = path, len(others), escaped(str(others[0])), ", ".join(PHOTOGRAPHS)
            log.warning("%s: files that are not read: %d, such as %s; photographs end in %s", *told)
    if not found:
        raise UserError(f"{paths[0]}: holds no photographs ({', '.join(PHOTOGRAPHS)})")
    return found


def predict_files(
    paths: Sequence[Path],
    model: str | Path,
    out: Path,
    *,
    explain: str | None = None,
    point: str | None = None,
    force: bool = False,
    workers: int = 1,
) -> None:
    """Write a CSV with a row for each photograph: the columns of :data:`.table.COLUMNS`, and heat_map.

    Rows are in the order of the photographs, but those of a patient stand together. The CSV and the heat maps
    appear when all is done; an interrupted run leaves nothing, and memory does not grow with the photographs.

    Args:
        paths: photographs, and folders of them.
        model: see :meth:`drgrade.predict.model.Model.load`.
        out: the CSV.
        explain: method of the heat maps, ``auto`` for the one that suits the network; they are written to
            ``<stem of out>_heat_maps/`` beside the CSV, in place of what was there. None: no heat maps.
        point: operating point of the column referable; None: the one of the stage calibrate.
        force: grade photographs without a retina too; their status stays.
        workers: processes that read photographs.

    Raises:
        UserError: there is no such model, one that it builds on is missing, or ``out`` cannot be written.
    """
    loaded = Model.load(model)
    if out.is_dir():
        raise UserError(f"{out}: is a folder; name a file with --out")
    check_writable(out, "file")
    files = photographs_in(paths)
    folder, names = out.with_name(f"{out.stem}_heat_maps"), unique_names(files) if explain else []
    graded = loaded.batches(files, explain=explain, force=force, workers=workers, point=point)
    statuses: Counter[str] = Counter()
    with ExitStack() as stack:
        unfinished = stack.enter_context(atomic_write(out))
        drawings = stack.enter_context(_replaced(folder)) if explain else None
        csv = stack.enter_context(unfinished.open("w", encoding="utf-8", newline=""))
        bar = stack.enter_context(tqdm(total=len(files), unit="photograph", disable=not sys.stderr.isatty()))
        for batch in graded:
            table = batch.table
            maps = [""] * len(table) if drawings is None else _write_maps(batch, names, drawings)
            cells = [f"{folder.name}/{name}" if name else "" for name in maps]
            table.insert(list(COLUMNS).index(QUALITY[0]), "heat_map", cells)
            table.to_csv(csv, header=not statuses, index=False, float_format="%.4f")
            statuses.update(table["status"])
            bar.update(len(table))
            if bar.disable:
                log.info("%d of %d photographs", statuses.total(), len(files))
    log.info("%s: %s", out, ", ".join(f"{number} {status}" for status, number in statuses.most_common()))


def unique_names(files: Sequence[Path]) -> list[str]:
    """Return a different PNG file name for each photograph: its own stem, numbered where it is taken."""
    taken: set[str] = set()
    names = []
    for file in files:
        stem = escaped(file.stem)
        candidates = chain([stem], (f"{stem}_{number}" for number in count(2)))
        name = next(name for name in candidates if name.lower() not in taken)  # some disks ignore the case
        taken.add(name.lower())
        names.append(f"{name}.png")
    return names


def _write_maps(batch: Graded, names: Sequence[str], folder: Path) -> list[str]:
    """Write the heat maps of a batch; return their file names, empty for a photograph without one."""
    written = []
    for place, drawing in zip(batch.places, batch.heat_maps, strict=True):
        written.append("" if drawing is None else names[place])
        if drawing is not None:
            _, content = cv2.imencode(".png", cv2.cvtColor(drawing, cv2.COLOR_RGB2BGR))
            (folder / names[place]).write_bytes(content.tobytes())
    return written


@contextmanager
def _replaced(folder: Path) -> Iterator[Path]:
    """Context manager with an empty folder, which replaces ``folder`` if the block ends without error."""
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}_", dir=folder.parent) as temporary:
        new = Path(temporary) / folder.name
        new.mkdir()
        yield new
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(new, folder)
