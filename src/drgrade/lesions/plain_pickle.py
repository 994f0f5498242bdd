"""Read a pickle of numbers, text and containers from any source; runs no code and fills no memory."""

import io
import pickle
import re
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from drgrade.messages import quoted


def read_plain(data: bytes) -> Any:
    """Return the content of a pickle. The same list or dictionary may be in it many times.

    Args:
        data: the pickle, of any protocol up to 5.

    Raises:
        Exception: of many types; it is damaged, or contains something else than None, numbers (also NumPy
            scalars), text, bytes, tuples, lists, and dictionaries whose keys are text or integers.
    """
    return _NumbersOnly(io.BytesIO(data)).load()


class _Kind:
    """Stands for a NumPy dtype of plain numbers while a pickle is read."""

    def __init__(self, code: str, *_: bool) -> None:
        if not re.fullmatch("b1|[iu][1248]|f[248]", code):
            raise pickle.UnpicklingError(f"has NumPy values of the type {quoted(code)}")
        self.code, self.order = code, "<"

    def __setstate__(self, state: Sequence[Any]) -> None:
        self.order = ">" if state[1] == ">" else "<"


def _number(kind: _Kind, data: bytes) -> float:
    """A NumPy scalar as Python number."""
    return np.frombuffer(data, f"{kind.order}{kind.code}", 1).item()


def _latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"refers to the codec {quoted(encoding)}")
    return text.encode(encoding)


GLOBALS = {
    ("numpy", "dtype"): _Kind,
    ("numpy.core.multiarray", "scalar"): _number,
    ("numpy._core.multiarray", "scalar"): _number,
    ("_codecs", "encode"): _latin1,  # how protocol 2 encodes bytes
}
"""What a pickle may refer to, and what is called in its place."""
ALLOWED = (
    b"\x80\x95.("  # protocol, frame, stop, mark
    b"N\x88\x89IJKML\x8a\x8bFG"  # None, Booleans, numbers
    b"SUTVX\x8c\x8dCB\x8e"  # text, bytes
    b")t\x85\x86\x87]lae"  # tuples, lists
    b"}dsu"  # dictionaries
    b"pqr\x94ghj"  # references to what came before
    b"c\x93Rb"  # calls of what is in GLOBALS
)
"""Operations of the pickle format that plain numbers need."""
READ: dict[int, Callable[[Any], None]] = dict(pickle._Unpickler.dispatch)
"""How Python reads each operation."""


class _NumbersOnly(pickle._Unpickler):
    """Unpickler for dictionaries, lists, tuples, text and numbers, including NumPy scalars; refuses all else.

    It is the one in Python, which reads half a million boxes in a few seconds. The one in C allocates what a
    damaged file asks for, and takes any object as a key: the hash of tuples within tuples may take years, or
    overflow the stack.
    """

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in GLOBALS:
            raise pickle.UnpicklingError(f"refers to {quoted(f'{module}.{name}')}")
        return GLOBALS[module, name]

    def _refuse(self) -> None:
        raise pickle.UnpicklingError("has objects other than numbers, text and containers")

    def _call(self) -> None:
        if self.stack[-2] not in GLOBALS.values():
            self._refuse()
        READ[pickle.REDUCE[0]](self)

    def _set_state(self) -> None:
        if not isinstance(self.stack[-2], _Kind):
            self._refuse()
        READ[pickle.BUILD[0]](self)

    def _set_item(self) -> None:
        self._check_keys(self.stack[-2:])
        READ[pickle.SETITEM[0]](self)

    def _set_items(self) -> None:
        self._check_keys(self.stack)  # which is that since the last mark
        READ[pickle.SETITEMS[0]](self)

    def _make_dictionary(self) -> None:
        self._check_keys(self.stack)
        READ[pickle.DICT[0]](self)

    def _check_keys(self, items: list[Any]) -> None:
        if not all(isinstance(key, (str, int)) for key in items[::2]):
            raise pickle.UnpicklingError("has keys other than text and integers")

    stack: list[Any]
    dispatch: ClassVar[Any] = (
        dict.fromkeys(range(256), _refuse)
        | {code: READ[code] for code in ALLOWED}
        | {
            pickle.REDUCE[0]: _call,
            pickle.BUILD[0]: _set_state,
            pickle.SETITEM[0]: _set_item,
            pickle.SETITEMS[0]: _set_items,
            pickle.DICT[0]: _make_dictionary,
        }
    )
