"""Partial results of the stage ``crop``: some crops each, joined to the shards of the store.

A part is a table of results and a file of encoded images. A shard of the store is written when all its parts
are there, which are then deleted: the disk holds each image once. An interrupted run resumes from what it
finds, in cropping and in joining.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from drgrade import params, schema
from drgrade.files import atomic_write
from drgrade.images.crop import crop_photograph
from drgrade.images.read import ReadError
from drgrade.images.shards import encode, finish_store, shard_path, write_shard


class Part(NamedTuple):
    """Photographs of one part: neighbouring rows of one shard of the store."""

    shard: int
    first: int
    """Row of the first photograph in the shard."""
    paths: list[str]


class Cropped(NamedTuple):
    """Result for one photograph: columns of ``crops.parquet``."""

    x0: int | None = None
    y0: int | None = None
    x1: int | None = None
    y1: int | None = None
    scale: float | None = None
    rule: str = ""
    status: str = "failed"
    reason: str = ""


RESULTS = {name: schema.CROPS[name] for name in Cropped._fields}
PART = RESULTS | {"bytes": "Int64"}
"""Columns of a part: results, and the length of the image in the part's file; 0 if cropping failed."""


def crop_part(folder: Path, options: params.Crop, part: Part) -> None:
    """Crop the photographs of a part, and write its images and its table to ``folder``."""
    cropped, images = [], []
    for path in part.paths:
        try:
            crop, geometry, rule = crop_photograph(Path(path), options)
        except ReadError as error:
            cropped.append(Cropped(reason=str(error)))
            images.append(b"")
        else:
            cropped.append(Cropped(*geometry.box, geometry.scale, rule, "ok", ""))
            images.append(encode(crop, options.format, options.quality))
    file = _part_file(folder, part)
    with atomic_write(_images_of(file)) as partial, partial.open("wb") as opened:
        opened.writelines(images)
    table = pd.DataFrame(cropped, columns=Cropped._fields).assign(bytes=[len(image) for image in images])
    schema.write_table(table, file, PART)  # last: it says that the part is there


class CropParts:
    """The parts of a crop run, and the shards that they are joined to.

    Args:
        folder: holds the parts, the shards and a table of results for each shard.
        shards: number of rows of each shard.
        parts: all parts, in the order of the store.
        options: size, format and quality of the crops.
    """

    def __init__(
        self, folder: Path, shards: Sequence[int], parts: Sequence[Part], options: params.Crop
    ) -> None:
        self.folder, self.shards, self.options = folder, shards, options
        self._parts: list[list[Part]] = [[] for _ in shards]
        for part in parts:
            self._parts[part.shard].append(part)

    def exists(self, part: Part) -> bool:
        """Whether a part is there, as its table or within a finished shard."""
        return _part_file(self.folder, part).exists() or self._is_joined(part.shard)

    def results(self) -> pd.DataFrame:
        """Return the results of all photographs in the order of the store; all parts must be there."""
        return pd.concat([_read_results(file) for file in self._tables()], ignore_index=True)

    def forget_failures(self) -> None:
        """Delete each part, or table of a shard, that has a failure: the next run crops it again."""
        for file in list(self._tables()):
            if (_read_results(file)["status"] == "failed").any():
                file.unlink()

    def join(self) -> None:
        """Write all shards that are not there yet, and delete their parts."""
        for number, parts in enumerate(self._parts):
            if not self._is_joined(number):
                self._join_shard(number, [_part_file(self.folder, part) for part in parts])

    def finish(self, manifest: Path) -> None:
        """Make the shards the store of ``manifest``."""
        options = self.options
        finish_store(self._store, manifest, self.shards, options.size, options.format, options.quality)

    @property
    def _store(self) -> Path:
        return self.folder / "store"

    def _join_shard(self, number: int, files: list[Path]) -> None:
        results = pd.concat([_read_results(file) for file in files])
        images = (image for file in files for image in _read_images(file))
        write_shard(self._store, number, images, self.shards[number], self.options.size, self.options.format)
        schema.write_table(results, self._table(number), RESULTS)
        for file in files:
            file.unlink()
            _images_of(file).unlink()

    def _is_joined(self, number: int) -> bool:
        """Whether a shard is finished: its table of results is written last."""
        shard = shard_path(self._store, number, self.options.format)
        return self._table(number).exists() and shard.exists()

    def _table(self, number: int) -> Path:
        return self.folder / f"{number:05d}.parquet"

    def _tables(self) -> Iterator[Path]:
        """The files with the results, in the order of the store."""
        for number, parts in enumerate(self._parts):
            if self._is_joined(number):
                yield self._table(number)
            else:
                yield from (_part_file(self.folder, part) for part in parts)


def _part_file(folder: Path, part: Part) -> Path:
    """The table of a part."""
    return folder / f"{part.shard:05d}-{part.first:06d}.parquet"


def _images_of(file: Path) -> Path:
    """The images beside the table of a part, one after the other."""
    return file.with_suffix(".images")


def _read_images(file: Path) -> Iterator[memoryview]:
    """The images of a part; empty for a photograph that failed."""
    images = memoryview(_images_of(file).read_bytes())
    first = 0
    for length in schema.read_table(file, PART)["bytes"]:
        yield images[first : first + length]
        first += length


def _read_results(file: Path) -> pd.DataFrame:
    return schema.read_table(file, RESULTS)
