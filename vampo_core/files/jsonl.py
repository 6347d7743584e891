"""Files of JSON lines: one row a line, on disk before the next one is written."""

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any, TypeVar

from vampo_core.files import write_text

Row = TypeVar("Row")


def read_rows(path: Path, parse: Callable[[Any], Row], *, expected: str) -> list[Row]:
    """Rows of a file, none where there is no file. A half-written last line, left by a killed process, is left out.

    Args:
        path: file to read.
        parse: function from a line's value to a row; it raises ValueError, TypeError or KeyError for a wrong value.
        expected: what a line should hold, in words, for the error message.

    Raises:
        ValueError: a line before the last one is damaged; the message names it.
    """
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else [""]

    def row(number: int, line: str) -> Row:
        try:
            return parse(json.loads(line))
        except (ValueError, TypeError, KeyError):
            raise ValueError(f"{path}, line {number} is {line[:80]!r}, expected {expected}") from None

    # what follows the last newline was never finished
    return [row(number, line) for number, line in enumerate(lines[:-1], start=1)]


def write_rows(path: Path, rows: Iterable[Any]) -> None:
    """Replace a file in one step."""
    write_text(path, "".join(map(_line, rows)))


def append_row(file: IO[str], row: Any) -> None:
    """Append a row to an open file; it is on disk on return.

    Raises:
        ValueError: the row holds a number that is not finite.
    """
    file.write(_line(row))
    file.flush()
    os.fsync(file.fileno())


def _line(row: Any) -> str:
    return json.dumps(row, allow_nan=False) + "\n"
