"""Read checkpoints of common training programs, and match their tensors to a timm backbone.

Programs for self-supervised learning save more than a backbone, with their own names. Supported are those
of DINO, DINOv2, iBOT, MAE and RETFound, MoCo, SimSiam, Barlow Twins, BYOL, MMSelfSup, Lightning and
torch.compile.
"""

import zipfile
from argparse import Namespace
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drgrade.errors import UserError
from drgrade.messages import printable
from drgrade.pins import check_pin

if TYPE_CHECKING:
    import torch
    from torch import nn

    Tensors = dict[str, torch.Tensor]

PREFIXES = (
    "_orig_mod.", "module.", "model.", "net.", "network.", "backbone.", "encoder.",
    "encoder_q.", "base_encoder.", "online_encoder.", "online_network.", "context_encoder.",
)  # fmt: skip
"""Prefixes of a backbone's names in checkpoints, single or nested; for MoCo that of the query encoder."""
LEFT_OVER = (
    "classifier", "fc.", "head", "projector", "projection", "predictor", "decoder", "neck.", "bn.", "queue",
    "mask_token", "masked_embed", "dino_head", "ibot_head", "encoder_k.", "momentum_encoder.",
    "target_encoder.", "target_network.",
)  # fmt: skip
"""Prefixes of tensors that may be unused: heads, and other networks of the training."""
INSIDE = ("state_dict", "model", "teacher", "model_state_dict")
"""Keys of the tensors in checkpoints; of DINO's student and teacher, the teacher is used."""
NO_WEIGHTS = {
    b"version https://git-lfs": "a Git LFS pointer; fetch the file itself (git lfs pull)",
    b"<!doctype html": "a web page; download the file again, perhaps after logging in",
    b"<html": "a web page; download the file again, perhaps after logging in",
}
"""Common files that are no weights, by their first bytes in lower case."""


def read_tensors(path: Path) -> "Tensors":
    """All tensors of a ``.safetensors``, ``.pth``, ``.pt`` or ``.ckpt`` file; runs no code from it.

    A checkpoint's state dict is searched under the keys INSIDE, also nested; other content (optimiser,
    arguments, NumPy scalars) is ignored.

    Raises:
        UserError: the file is missing, is not the one that is pinned (:func:`drgrade.pins.check_pin`), is a
            whole pickled module, holds no state dict, or would take more memory than it has bytes.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise UserError(f"{path}: no such weights file")
    check_pin(path)
    try:
        with path.open("rb") as file:
            start = file.read(64).lstrip().lower()
        if other := [what for first, what in NO_WEIGHTS.items() if start.startswith(first)]:
            raise UserError(f"{path}: not a weights file but {other[0]}")
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            _check_uncompressed(path)
            with torch.serialization.safe_globals(_data_classes()):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        first = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise UserError(f"{path}: not a weights file ({printable(first)})") from None
    except UserError:
        raise
    except Exception as error:  # pickle.UnpicklingError: a whole pickled module would run code
        raise UserError(
            f"{path}: holds more than tensors ({type(error).__name__}); save a state dict"
        ) from None
    for key in INSIDE:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    content = content if isinstance(content, dict) else {}
    tensors = {
        key: value
        for key, value in content.items()
        if isinstance(key, str) and key.isprintable() and isinstance(value, torch.Tensor)
    }
    if not tensors:
        raise UserError(f"{path}: holds no tensors by name; save a state dict")
    if hollow := [key for key, value in tensors.items() if _is_hollow(value)]:
        raise UserError(f"{path}: {hollow[0]} has fewer values than its shape says; save a state dict again")
    return tensors


def _check_uncompressed(path: Path) -> None:
    """Refuse a zip archive that is larger inside than outside; PyTorch's own are not compressed.

    Raises:
        UserError: a few megabytes could fill the memory.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        inside = sum(member.file_size for member in archive.infolist())
    if inside > path.stat().st_size:
        raise UserError(f"{path}: compressed, to be unpacked to {inside} bytes; save it with torch.save")


def _is_hollow(tensor: "torch.Tensor") -> bool:
    """Whether a tensor is without a value of its own in memory for each of its elements."""
    import torch

    if tensor.layout is not torch.strided or tensor.device.type != "cpu":
        return True
    return tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes()


def _data_classes() -> list[Any]:
    """Harmless classes that checkpoints contain beside tensors: command-line arguments, NumPy scalars."""
    import numpy as np
    from numpy._core.multiarray import scalar

    kinds = {type(np.dtype(code)) for code in "?bBhHiIlLqQefd"}
    return [Namespace, np.dtype, scalar, (scalar, "numpy.core.multiarray.scalar"), *kinds]


def fitted(
    model: "nn.Module", name: str, tensors: "Tensors", path: Path, *, trunk: bool = False
) -> "Tensors":
    """Rename the tensors of a weights file to a backbone's names; all tensors of the backbone must match.

    Names may have wrappers' prefixes (PREFIXES). Tensors of heads and of other networks may be left over
    (LEFT_OVER), none of the backbone's own may be missing but BatchNorm's counters, which files from before
    torch 0.4.1 lack and nothing depends on. Position embeddings of another grid are interpolated. Where a
    vision transformer was fine-tuned on the mean of its tokens (``fc_norm``), ``model`` is made to pool in
    the same way.

    Args:
        model: the backbone; it may be on the device ``meta``.
        name: its timm name, for the messages.
        tensors: contents of the file.
        path: the file, for the messages.
        trunk: ``model`` is the first part of the backbone; tensors of the rest may be left over.

    Raises:
        UserError: tensors are missing, left over, of another shape or not finite.
    """
    elsewhere = f"these weights belong to another backbone than {name}"
    wanted = set(model.state_dict()) | {"fc_norm.weight", "fc_norm.bias"}
    found = _dinov2_in_timm_names(_without_prefixes(tensors, wanted, path))
    pool_like(model, found)
    own = model.state_dict()
    if not own.keys() & found.keys():
        raise UserError(f"{path}: no tensor matches (first: {next(iter(tensors))}); {elsewhere}")
    found = {key: own[key] for key in own if key.endswith("num_batches_tracked")} | found
    if "pos_embed" in own and "pos_embed" in found:
        found["pos_embed"] = _positions(model, found["pos_embed"], own["pos_embed"])
    missing = [key for key in own if key not in found]
    if missing:
        raise UserError(
            f"{path}: {len(missing)} of {len(own)} tensors are missing (first: {missing[0]}); {elsewhere}"
        )
    wrong = [key for key in own if found[key].shape != own[key].shape]
    if wrong:
        shapes = tuple(found[wrong[0]].shape), tuple(own[wrong[0]].shape)
        raise UserError(f"{path}: {wrong[0]} is {shapes[0]}, not {shapes[1]}; {elsewhere}")
    extra = [key for key in found if key not in own and not key.startswith(LEFT_OVER)]
    if extra and not trunk:
        raise UserError(f"{path}: {extra[0]} has no place; {elsewhere}")
    broken = [key for key in own if found[key].device.type != "meta" and not found[key].isfinite().all()]
    if broken:
        raise UserError(f"{path}: {broken[0]} has values that are not finite; the training diverged")
    return {key: found[key] for key in own}


def pool_like(network: "nn.Module", names: Collection[str]) -> None:
    """Set the pooling of the vision transformers in a network according to the names of their tensors.

    timm's normalise the tokens and take the class token (``norm``), or take the mean of the others and
    normalise that (``fc_norm``); MAE and RETFound are fine-tuned in the second way.
    """
    from torch import nn

    for place, module in network.named_modules():
        prefix = f"{place}." if place else ""
        by_mean = f"{prefix}fc_norm.weight" in names and f"{prefix}norm.weight" not in names
        if by_mean and isinstance(getattr(module, "fc_norm", None), nn.Identity):
            module.fc_norm, module.norm, module.global_pool = module.norm, nn.Identity(), "avg"


def _dinov2_in_timm_names(found: "Tensors") -> "Tensors":
    """Rename the tensors of DINOv2's own checkpoints as timm does.

    timm adds no position to the class token, so that of DINOv2 with registers is added here once for all.
    """
    names = {"register_tokens": "reg_token"}
    renamed = {names.get(key, key.replace(".mlp.w12.", ".mlp.fc1.").replace(".mlp.w3.", ".mlp.fc2.")): value
               for key, value in found.items()}  # fmt: skip
    if "register_tokens" in found:
        renamed["cls_token"] = found["cls_token"] + found["pos_embed"][:, :1]
        renamed["pos_embed"] = found["pos_embed"][:, 1:]
    return renamed


def _positions(model: Any, theirs: "torch.Tensor", own: "torch.Tensor") -> "torch.Tensor":
    """Position embeddings (1, tokens, width), interpolated to the grid of the model."""
    from timm.layers import resample_abs_pos_embed

    differ = theirs.ndim == own.ndim == 3 and theirs.shape[1] != own.shape[1]
    if not differ or theirs.shape[2] != own.shape[2] or not hasattr(model, "patch_embed"):
        return theirs
    prefix = 0 if model.no_embed_class else model.num_prefix_tokens
    if int((theirs.shape[1] - prefix) ** 0.5) ** 2 != theirs.shape[1] - prefix:
        return theirs  # not a square grid: refused later because of its shape
    return resample_abs_pos_embed(theirs, list(model.patch_embed.grid_size), num_prefix_tokens=prefix)


def _without_prefixes(tensors: "Tensors", wanted: set[str], path: Path) -> "Tensors":
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
