"""Read weights files of other programs, and name their tensors as timm does."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from drgrade.checkpoints import read_tensors
from drgrade.encoders import in_timm_order

if TYPE_CHECKING:
    import torch
    from onnx import GraphProto

    from drgrade.checkpoints import Tensors

BACKBONE = "backbone."
"""Prefix of the encoder's tensors in an exported graph; the others are of a decoder."""
ANONYMOUS = "onnx::"
"""Prefix of tensors that the exporter changed, and therefore gave names of its own."""
TIMM_NAMES = {
    r"^embeddings\.cls_token": "cls_token",
    r"^embeddings\.patch_embeddings\.projection": "patch_embed.proj",
    r"^encoder\.layer\.": "blocks.",
    r"^layernorm\.": "norm.",
    r"\.attention\.output\.dense\.": ".attn.proj.",
    r"\.layer_scale(\d)\.lambda1$": r".ls\1.gamma",
}
"""Patterns in names of transformers' ``Dinov2Model``, and timm's names."""
QUERY, KEY, VALUE = (f".attention.attention.{part}." for part in ("query", "key", "value"))


def read_in_timm_order(path: Path, name: str) -> "Tensors":
    """Tensors of a checkpoint in timm's order but with other names; see :func:`.encoders.in_timm_order`."""
    return in_timm_order(read_tensors(path), name, path)


def read_dinov2_onnx(path: Path, name: str) -> "Tensors":
    """Tensors of the encoder in an ONNX graph that was exported from transformers' ``Dinov2Model``.

    Args:
        path: the ONNX file.
        name: not used; readers have the same arguments.

    Returns:
        Tensors by timm's names; ``pos_embed`` (1, 1 + patches, width) on the grid of the training.
    """
    import onnx
    import torch
    from onnx import numpy_helper

    graph = onnx.load(path).graph
    # a copy: the arrays are views of the file's bytes, which may not be written
    arrays = {one.name: torch.tensor(numpy_helper.to_array(one)) for one in graph.initializer}
    named = {key: value for key, value in arrays.items() if key.startswith(BACKBONE)}
    named |= _linear_weights(graph, arrays)
    tensors = {_timm_name(key.removeprefix(BACKBONE)): value for key, value in named.items()}
    tensors["pos_embed"] = _positions(arrays)
    for query in [key for key in tensors if QUERY in key]:  # timm has one layer for the three
        parts = [tensors.pop(query.replace(QUERY, part)) for part in (QUERY, KEY, VALUE)]
        tensors[query.replace(QUERY, ".attn.qkv.")] = torch.cat(parts)
    return tensors


def _linear_weights(graph: "GraphProto", arrays: "Tensors") -> "Tensors":
    """Weights of linear layers by transformers' names.

    The exporter transposes them and drops their names. Each is an operand of the MatMul that is named after
    its layer, such as ``/backbone/encoder/layer.0/mlp/fc1/MatMul``.
    """
    found: dict[str, torch.Tensor] = {}
    for node in graph.node:
        weights = [arrays[operand] for operand in node.input if operand in arrays]
        if node.op_type == "MatMul" and weights:
            layer = node.name.removeprefix("/").removesuffix("/MatMul").replace("/", ".")
            found[f"{layer}.weight"] = weights[0].T.contiguous()
    return found


def _positions(arrays: "Tensors") -> "torch.Tensor":
    """Position embedding: the exporter splits it into that of the class token and those of the patches.

    They are the only anonymous tensors with three dimensions, (1, tokens, width).
    """
    import torch

    parts = [value for key, value in arrays.items() if key.startswith(ANONYMOUS) and value.ndim == 3]
    return torch.cat(sorted(parts, key=lambda part: part.shape[1]), dim=1)


def _timm_name(name: str) -> str:
    for pattern, other in TIMM_NAMES.items():
        name = re.sub(pattern, other, name)
    return name
