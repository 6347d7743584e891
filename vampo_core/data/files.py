"""Files that are either whole or absent: written aside, flushed, renamed."""

import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any


def temporary_beside(path: Path) -> Path:
    """Return a new hidden name in the same folder, so that a rename to ``path`` is atomic."""
    return path.parent / f".{path.name}.{uuid.uuid4().hex[:12]}.tmp"


def flush(path: Path) -> None:
    """Have the operating system write a file or folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(temporary: Path, path: Path) -> None:
    """Rename a finished file, or a folder of finished files, into place; whatever stood there is replaced."""
    for file in temporary.iterdir() if temporary.is_dir() else [temporary]:
        flush(file)
    if path.is_dir():  # a folder cannot be renamed over another
        old = temporary_beside(path)
        os.rename(path, old)
        os.rename(temporary, path)
        shutil.rmtree(old)
    else:
        os.replace(temporary, path)
    flush(path.parent)


def remove_leftovers(folder: Path) -> None:
    """Remove what interrupted writes left in ``folder`` and below."""
    for leftover in list(folder.rglob(".*.tmp")):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    temporary = temporary_beside(path)
    temporary.write_text(json.dumps(value, indent=2) + "\n")
    publish(temporary, path)
