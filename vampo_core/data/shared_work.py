"""Work on many items that several processes share: each takes a part that no other has."""

import contextlib
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import TypeVar

from vampo_core.files import LockedError, lock

T = TypeVar("T")
NUM_PARTS = 64
"""Number of parts: enough for a dozen processes to end at about the same time, and few enough for a lock each."""


def shared_parts(items: Sequence[T], locks: Path) -> Generator[tuple[Sequence[T], Callable[[], None]], None, None]:
    """Parts of ``items``, each locked against other processes until its function is called, or this generator closed.

    Parts that others work on come last, once they are released: then most of their items are done.

    Args:
        items: the work, in the same order in every process.
        locks: folder for the locks, made if it is missing.
    """
    waiting = []
    with contextlib.ExitStack() as at_the_end:
        for number in range(min(NUM_PARTS, len(items))):
            place, part = locks / f"{number:02d}", items[number::NUM_PARTS]
            place.mkdir(parents=True, exist_ok=True)
            try:
                held = lock(place)
            except LockedError:
                waiting.append((place, part))
                continue
            at_the_end.callback(held.release)
            yield part, held.release
        for place, part in waiting:
            held = lock(place, wait=True)
            at_the_end.callback(held.release)
            yield part, held.release
