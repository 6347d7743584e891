"""Files and folders that are either whole or absent: written aside, flushed, renamed."""

import contextlib
import errno
import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

LOCK = ".lock"
"""File in a folder that one process at a time writes to."""


def temporary_beside(path: Path) -> Path:
    """Return a new hidden name in the same folder, so that a rename to ``path`` is atomic."""
    return path.parent / f".{path.name}.{uuid.uuid4().hex[:12]}.tmp"


def flush(path: Path) -> None:
    """Have the operating system write a file, or a folder's list of names, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(temporary: Path, path: Path) -> None:
    """Rename a finished file, or a folder with all it holds, into place; whatever stood there is replaced."""
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
    """Delete a folder; a half-deleted one is left under a temporary name, never under its own."""
    temporary = temporary_beside(path)
    os.rename(path, temporary)
    shutil.rmtree(temporary)


def lock(folder: Path, *, wait: bool = False) -> int:
    """A lock that the process holds until it closes it or dies; children of a fork do not inherit it.

    Raises:
        OSError: another process holds it and ``wait`` is not set, or the folder cannot be locked.
    """
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def is_held(error: OSError) -> bool:
    """Whether that is why :func:`lock` failed."""
    return error.errno in (errno.EACCES, errno.EAGAIN)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Have a folder, made where it does not exist, to this process alone; while another one has it, wait."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = lock(folder)
    except OSError as error:
        if not is_held(error):
            raise
        print(f"{folder}: waiting for another process that writes there", flush=True)
        descriptor = lock(folder, wait=True)
    try:
        yield
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Remove what interrupted writes and deletions left in ``folder`` and below."""
    for leftover in list(folder.rglob(".*.tmp")):
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)
