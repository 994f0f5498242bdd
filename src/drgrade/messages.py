"""Quote in a message what a file contains: on one line, printable, and not too long for a table."""

from typing import Any

LONGEST = 200
"""Maximum number of characters of a quotation."""


def quoted(value: Any) -> str:
    """Return a value as Python writes it, text in quotes; cut off if it is long."""
    return _cut(repr(value))


def reason(error: Exception) -> str:
    """Return the message of an error, which may quote a file; the name of its type if it has none."""
    return printable(str(error)) or type(error).__name__


def printable(text: str) -> str:
    """Return text on one line, without control characters; cut off if it is long."""
    return _cut(" ".join("".join(letter if letter.isprintable() else " " for letter in text).split()))


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
