"""Locks between processes: one at a time writes to a folder."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

LOCK = ".lock"
"""Name of the lock's file, in the folder that it protects; the file stays when the lock is released."""


class LockedError(OSError):
    """Another process has locked the folder."""


def lock(folder: Path, *, wait: bool = False) -> FileLock:
    """Lock a folder until ``release()`` is called or the process ends; processes forked from it do not hold the lock.

    Args:
        folder: folder to lock.
        wait: whether to wait while another process has locked it.

    Raises:
        LockedError: another process has locked it, and ``wait`` is false.
        OSError: the folder cannot be locked, for example because it is read-only.
    """
    # without the soft fallback: a lock that outlives a killed process is worse than an error
    held = FileLock(folder / LOCK, mode=0o644, thread_local=False, fallback_to_soft=False)
    try:
        held.acquire(timeout=-1 if wait else 0)
    except Timeout:
        raise LockedError(f"{folder} is locked by another process") from None
    return held


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a folder, which is made if it is missing; wait while another process has locked it, and say so."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        held = lock(folder)
    except LockedError:
        print(f"{folder}: waiting for another process that writes there", flush=True)
        held = lock(folder, wait=True)
    try:
        yield
    finally:
        held.release()
