"""Read tables written by users: CSV as saved by spreadsheets, R and pandas."""

import csv
import io
from collections import Counter
from pathlib import Path

from drgrade.errors import UserError
from drgrade.messages import quoted, reason

_DELIMITERS = ",;\t"
MOST_COLUMNS = 1000
"""Tables with more columns are refused: they are other files, or the lines have lost their ends."""


def read_csv(path: Path, missing: str) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Read a table separated by commas, semicolons or tabs, in UTF-8, or in UTF-16 with a byte-order mark.

    Args:
        path: the table.
        missing: what to do if there is no such file, for the message.

    Returns:
        The names of the columns, stripped and in lower case, and for each line that is not empty its number
        in the file (from 1) and its cells by column, stripped.

    Raises:
        UserError: the file is missing or in another format, or two columns have the same name.
    """
    try:
        data = path.read_bytes()
        text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
        start = text.splitlines()[0] if text.strip() else ""
        delimiter = max(_DELIMITERS, key=start.count)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        header = [name.strip().lower() for name in next(reader, [])]
        lines = [(reader.line_num, [cell.strip() for cell in line]) for line in reader]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; {missing}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a CSV text file ({reason(error)}); save it as UTF-8 CSV") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); correct its permissions") from None
    if len(header) > MOST_COLUMNS:
        raise UserError(f"{path}: line 1: {len(header)} columns; a table has {MOST_COLUMNS} at most")
    twice = [name for name, count in Counter(filter(None, header)).items() if count > 1]
    if twice:
        raise UserError(f"{path}: line 1: two columns are called {quoted(twice[0])}; rename or remove one")
    return header, [(number, dict(zip(header, line, strict=False))) for number, line in lines if any(line)]
