"""What a network's weights start from, as one word of ``params.yaml``."""

import re
from collections.abc import Collection
from typing import Literal, NamedTuple

WORDS = ("random", "imagenet")
EXPERIMENT = "experiment:"
"""Prefix of a start from another experiment's model."""


class StartFrom(NamedTuple):
    """A parsed ``start``: what kind of weights, and which.

    Attributes:
        kind: ``random``, ``imagenet``, ``pretrain`` (an encoder of the block ``pretrain``), ``experiment``
            (the model of another experiment with the same seed and fold) or ``file``.
        name: of the encoder or experiment, or the file's path; else the word itself.
    """

    kind: Literal["random", "imagenet", "pretrain", "experiment", "file"]
    name: str


def parse_start(text: str, pretrained: Collection[str] = ()) -> StartFrom:
    """Read a ``start``.

    Args:
        text: ``random``, ``imagenet``, a name in ``pretrained``, ``experiment:NAME``, or a file: a path with
            a slash or a suffix.
        pretrained: names of the block ``pretrain``.

    Raises:
        ValueError: none of these.
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
