"""What processes that were killed while writing leave behind."""

from pathlib import Path

_NO_PROCESS = 2**22 + 1
"""A process id that no process has: Linux hands out smaller ones."""


def leftover_of(path: Path, pid: int = _NO_PROCESS) -> Path:
    """The temporary name under which process ``pid`` was writing ``path``."""
    return path.with_name(f".{path.name}.{pid}-0123456789ab.vampo-tmp")
