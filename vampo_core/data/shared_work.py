"""Work on many items that several processes share: each takes a part that no other has."""

import contextlib
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from vampo_core.files import LockedError, lock

T = TypeVar("T")
NUM_PARTS = 64
"""Number of parts: enough for a dozen processes to end at about the same time, and few enough for a lock each."""


class SharedWork(Generic[T]):
    """The parts of a list of items; use as a context, at whose end no part stays locked.

    Args:
        items: the work, the same in every process, whether it is done or not.
        locks: folder for the locks, made if it is missing.
    """

    def __init__(self, items: Sequence[T], locks: Path) -> None:
        numbers = range(min(NUM_PARTS, len(items)))
        self._parts = [(locks / f"{number:02d}", items[number::NUM_PARTS]) for number in numbers]
        self._locks = locks
        self._taken: list[tuple[Path, Sequence[T]]] = []  # by others
        self._at_the_end = contextlib.ExitStack()

    def __enter__(self) -> "SharedWork[T]":
        return self

    def __exit__(self, *error: object) -> None:
        self._at_the_end.close()

    def free(self) -> Generator[tuple[Sequence[T], Callable[[], None]], None, None]:
        """Parts that no other process works on, each locked until its function is called.

        It never waits, so a caller may take a part while it holds others.
        """
        for place, part in self._parts:
            place.mkdir(parents=True, exist_ok=True)
            try:
                held = lock(place)
            except LockedError:
                self._taken.append((place, part))
                continue
            self._at_the_end.callback(held.release)
            yield part, held.release

    def taken(self) -> Generator[Sequence[T], None, None]:
        """After :meth:`free`: the parts that others worked on, one at a time, each locked until the next one.

        It waits for them, and says so. The caller may hold no other part: two processes would wait for each other.
        """
        if self._taken:
            print(f"{self._locks.parent}: waiting for another process that writes there", flush=True)
        for place, part in self._taken:
            held = lock(place, wait=True)
            try:
                yield part
            finally:
                held.release()
