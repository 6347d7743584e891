"""``metrics.jsonl``: one line per iteration, on disk before the next one begins.

Iterations count from 1, so that the checkpoint ``step-N`` belongs to line N; 0 is the state before the first one.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from vampo_core.files.jsonl import append_row, read_rows, write_rows


class MetricsLog:
    """Appends rows to a file of JSON lines.

    Args:
        path: file to write to.
        resume_at: last iteration whose row is kept; later rows, and a half-written last line, are dropped. None for a
            new file, which must not exist yet.

    Raises:
        ValueError: a line before the last one is damaged.
    """

    def __init__(self, path: str | Path, *, resume_at: int | None = None) -> None:
        self.path = Path(path)
        self.rows: list[dict[str, Any]] = []
        """Every row so far, including those before a resume."""
        if resume_at is not None:
            self.rows = [row for row in read_metrics(self.path) if row["iteration"] <= resume_at]
            write_rows(self.path, self.rows)
        self._file: IO[str] = self.path.open("a" if resume_at is not None else "x", encoding="utf-8")

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row, which has an ``iteration``; numbers that are not finite become null."""
        assert "iteration" in row
        values = {key: _plain(value) for key, value in row.items()}
        append_row(self._file, values)
        self.rows.append(values)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Rows of a file of metrics; a half-written last line is left out.

    Raises:
        ValueError: another line is damaged.
    """
    return read_rows(Path(path), _check, expected="a JSON object with an iteration")


def _check(row: Any) -> dict[str, Any]:
    if not isinstance(row, dict) or not isinstance(row.get("iteration"), int):
        raise ValueError
    return row


def _plain(value: Any) -> Any:
    """Tensors and NumPy scalars as Python numbers."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
