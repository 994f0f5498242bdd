"""Commands of docs/, for tests that run what is written there."""

import re
from collections.abc import Mapping
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def commands(page: str, heading: str, changes: Mapping[str, str]) -> list[str]:
    """The blocks of commands below a heading, with what a test must change.

    Args:
        page: file in docs/.
        heading: the line, with its ``#``.
        changes: replacements, by what is written; what is written nowhere is an error.
    """
    text = (DOCS / page).read_text()
    section = re.search(rf"^{re.escape(heading)}\n(.*?)(?=^#+ |\Z)", text, re.M | re.S)
    assert section, f"{page}: no heading {heading!r}"
    found = "\0".join(re.findall(r"^```bash\n(.*?)^```", section[1], re.M | re.S))
    for written, used in changes.items():
        assert written in found, f"{page}, {heading!r}: {written!r} is not among the commands"
        found = found.replace(written, used)
    return found.split("\0")
