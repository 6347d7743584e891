"""Files and folders that are either whole or absent: written under a temporary name, flushed, renamed."""

import os
import re
import shutil
import uuid
from collections.abc import Collection
from pathlib import Path

_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<pid>\d+)-[0-9a-f]{12}\.vampo-tmp")
"""Temporary names: hidden, with the writing process's id, and a suffix that nobody else uses."""


def temporary_beside(path: Path) -> Path:
    """Return a new hidden name in the same folder, so that a rename to ``path`` is atomic."""
    return path.parent / f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:12]}.vampo-tmp"


def flush(path: Path) -> None:
    """Make the operating system write a file, or a folder's list of names, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(temporary: Path, path: Path) -> None:
    """Rename a finished file, or a folder with its contents, to ``path``; what was there before is replaced."""
    for entry in temporary.rglob("*"):
        if not entry.is_symlink():
            flush(entry)
    flush(temporary)
    if path.is_dir() and not path.is_symlink():  # a folder cannot be renamed over another
        old = temporary_beside(path)
        os.rename(path, old)
        os.rename(temporary, path)
        shutil.rmtree(old)
    else:
        os.replace(temporary, path)
    flush(path.parent)


def write_text(path: Path, text: str) -> None:
    """Replace a text file in one step."""
    temporary = temporary_beside(path)
    try:
        temporary.write_text(text, encoding="utf-8")
        publish(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def point(link: Path, target: str) -> None:
    """Make ``link`` a symbolic link to its sibling ``target``, in one step."""
    temporary = temporary_beside(link)
    os.symlink(target, temporary)
    os.replace(temporary, link)
    flush(link.parent)


def discard(path: Path) -> None:
    """Delete a folder; if that is interrupted, what is left has a temporary name."""
    temporary = temporary_beside(path)
    os.rename(path, temporary)
    shutil.rmtree(temporary)


def remove_leftovers(folder: Path, *, recursive: bool = False, of: Collection[str] | None = None) -> None:
    """Remove what interrupted writes and deletions of this library left in a folder that this process has locked.

    Other people's files stay, even hidden ones, and so does what another living process is writing.

    Args:
        folder: folder to look in; it may be missing.
        recursive: whether to look in its subfolders too, which must then be covered by the same lock.
        of: names of the files that leftovers may be of, where a lock covers only these; None for all.
    """
    for path in sorted(folder.rglob(".*.vampo-tmp") if recursive else folder.glob(".*.vampo-tmp")):
        found = _TEMPORARY.fullmatch(path.name)
        if found is None or (of is not None and found["name"] not in of):
            continue
        if _is_another_living_process(int(found["pid"])):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _is_another_living_process(pid: int) -> bool:
    if pid == os.getpid():  # what this process left earlier; or a container's process that had the same id
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it lives, under another user
        return True
    return not _is_zombie(pid)


def _is_zombie(pid: int) -> bool:
    """Whether a process has ended and only waits for its parent to notice."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):  # it is gone, or this system has no /proc
        return False
    return state == "Z"
