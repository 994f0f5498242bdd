"""Files that a user pins by their digest, in a list as ``sha256sum`` writes it."""

from pathlib import Path

from drgrade.errors import UserError
from drgrade.files import sha256

LIST = "SHA256SUMS"
"""Name of the list; it holds for the files beside it."""


def check_pin(path: Path) -> None:
    """Compare a file with its line in ``SHA256SUMS`` beside it; without list or line, any content will do.

    Lines are ``<64 hexadecimal digits>  <file name>``, as ``sha256sum FILE... > SHA256SUMS`` writes them. A
    ``*`` before the name is what it writes for ``--binary``.

    Raises:
        UserError: the file is another, or the list cannot be read.
    """
    listed = path.with_name(LIST)
    if not listed.is_file():
        return
    try:
        lines = [line.split(maxsplit=1) for line in listed.read_text().splitlines() if line.strip()]
        pins = {name.removeprefix("*"): digest.lower() for digest, name in lines}
    except ValueError:  # not text, or a line without a name
        raise UserError(f"{listed}: not a list of digests; write it with sha256sum") from None
    pinned = pins.get(path.name)
    if pinned is not None and (actual := sha256(path)) != pinned:
        raise UserError(
            f"{path}: its SHA-256 is {actual[:12]}..., {listed} says {pinned[:12]}...; bring the file that "
            "was pinned, or change its line"
        )
