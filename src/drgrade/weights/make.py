"""Make files in ``data/weights`` from installed packages, and list what can be made: ``drgrade weights``."""

from pathlib import Path

from drgrade.encoders import WEIGHTS, placed_file
from drgrade.errors import UserError
from drgrade.files import atomic_write
from drgrade.weights.sources import SOURCES, Source, convert, is_installed

SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt")
"""Suffixes of weights files."""


def make(name: str) -> str:
    """Write ``data/weights/<name>.safetensors`` from its package, unless weights of this backbone are there.

    Args:
        name: timm name of the backbone.

    Returns:
        One line for the user: the file, and what was done.

    Raises:
        UserError: no package is known for this backbone, it is not installed, or its file is another.
    """
    from safetensors.torch import save_file

    if name not in SOURCES:
        raise UserError(
            f"{name}: no package with its weights is known (there are some of {', '.join(SOURCES)}); "
            f"put {file_of(name)} there yourself"
        )
    if placed := placed_file(name):
        return f"{placed}: kept, as it is there already"
    source, path = SOURCES[name], file_of(name)
    tensors = {key: value.contiguous() for key, value in convert(name).items()}
    with atomic_write(path) as partial:
        # a single entry, as the order of several would differ from run to run, and with it the digest
        save_file(tensors, partial, metadata={"source": provenance(source)})
    return f"{path}: {len(tensors)} tensors from {source.package} ({source.licence})"


def file_of(name: str) -> Path:
    """The file that :func:`make` writes for a backbone."""
    return WEIGHTS / f"{name}.safetensors"


def awaited_file(name: str) -> Path | None:
    """The file with ImageNet weights that jobs wait for: the one that is there, or one that can be made.

    None for other backbones, among them the one whose weights drgrade installs.
    """
    return placed_file(name) or (file_of(name) if name in SOURCES else None)


def provenance(source: Source) -> str:
    """Package, file, digest and licence in one line."""
    return f"{source.package}: {source.file}, SHA-256 {source.sha256}, licence {source.licence}"


def listing() -> list[tuple[str, str]]:
    """What can be made and what is in ``data/weights``: pairs of a name and a text."""
    files = sorted(path.name for path in WEIGHTS.glob("[!.]*") if path.suffix in SUFFIXES)
    hint = f"missing: none needed; put <timm name>.safetensors into {WEIGHTS} for other encoders"
    return [*((name, _state(name)) for name in SOURCES), (str(WEIGHTS), ", ".join(files) or hint)]


def _state(name: str) -> str:
    source = SOURCES[name]
    about = f"{source.package}, {source.licence}, {source.megabytes} MB: {source.training}"
    if placed := placed_file(name):
        return f"here: {placed}; could be made from {about}"
    if is_installed(source):
        return f"made when a run needs it, or by drgrade weights {name}, from {about}"
    return f"missing: optional; uv sync --extra weights installs {about}"
