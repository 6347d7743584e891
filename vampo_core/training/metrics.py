"""``metrics.jsonl``: one line per iteration, on disk before the next one begins.

Iterations count from 1, so that the checkpoint ``step-N`` belongs to line N; 0 is the state before the first.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from vampo_core.files import write_text


class MetricsLog:
    """Appends rows to a file of JSON lines.

    Args:
        path: of the file.
        resume_at: keep the rows up to this iteration and drop what comes after, a half-written last line included;
            None for a new file, which must not exist yet.

    Raises:
        ValueError: a line before the last one is damaged.
    """

    def __init__(self, path: str | Path, *, resume_at: int | None = None) -> None:
        self.path = Path(path)
        self.rows: list[dict[str, Any]] = []
        """Every row so far, those of before the resume included."""
        if resume_at is not None:
            self.rows = [row for row in read_metrics(self.path) if row["iteration"] <= resume_at]
            write_text(self.path, "".join(_line(row) for row in self.rows))
        self._file: IO[str] = self.path.open("a" if resume_at is not None else "x", encoding="utf-8")

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row, which has an ``iteration``; what is not finite becomes null."""
        assert "iteration" in row
        values = {key: _plain(value) for key, value in row.items()}
        self._file.write(_line(values))
        self._file.flush()
        os.fsync(self._file.fileno())
        self.rows.append(values)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a file of metrics; a half-written last line is left out.

    Raises:
        ValueError: another line is damaged.
    """
    path = Path(path)
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else [""]
    rows = []
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last newline was never finished
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or not isinstance(row.get("iteration"), int):
            raise ValueError(f"{path}, line {number} is {line[:80]!r}, expected a JSON object with an iteration")
        rows.append(row)
    return rows


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    """Tensors and NumPy scalars as Python numbers."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
