"""The key ``start`` of ``params.yaml``: a network's initial weights."""

import re
from collections.abc import Collection
from typing import Literal, NamedTuple

WORDS = ("random", "imagenet")
EXPERIMENT = "experiment:"
"""Prefix of a ``start`` that names another experiment."""


class StartFrom(NamedTuple):
    """A parsed ``start``: what kind of weights, and which.

    Attributes:
        kind: ``random``, ``imagenet``, ``pretrain`` (an encoder of the block ``pretrain``), ``experiment``
            (the model of another experiment with the same seed and fold) or ``file``.
        name: name of the encoder or experiment, or path of the file; for the other kinds same as ``kind``.
    """

    kind: Literal["random", "imagenet", "pretrain", "experiment", "file"]
    name: str


def parse_start(text: str, pretrained: Collection[str] = ()) -> StartFrom:
    """Parse a ``start``.

    Args:
        text: ``random``, ``imagenet``, a name in ``pretrained``, ``experiment:NAME``, or a file: a path with
            a slash or a suffix.
        pretrained: names in the block ``pretrain``.

    Raises:
        ValueError: ``text`` is none of these.
    """
    if text in WORDS:
        return StartFrom(text, text)  # type: ignore[arg-type]
    if text in pretrained:
        return StartFrom("pretrain", text)
    if text.startswith(EXPERIMENT):
        return StartFrom("experiment", text.removeprefix(EXPERIMENT))
    if re.search(r"[/.]", text):
        return StartFrom("file", text)
    known = ", ".join([*WORDS, *pretrained])
    raise ValueError(
        f"start: {text!r} is none of {known}, experiment:NAME or a weights file "
        "(write ./NAME for a file in this folder)"
    )
