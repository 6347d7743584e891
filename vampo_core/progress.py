"""Progress of long work: a bar on a terminal, elsewhere a line every so many seconds."""

import sys
from collections.abc import Callable, Iterable
from typing import Any

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 30.0
"""Off a terminal a bar that redraws itself would fill a log file with one line per step."""


class _Lines(tqdm):
    """A bar whose states are lines."""

    is_open = False
    """Whether the last line has no end yet."""

    @staticmethod
    def status_printer(file: Any) -> Callable[[str], None]:
        """Write each state below the last one, instead of over it; closing the bar ends the last line."""
        _Lines.is_open = False

        def write(text: str) -> None:
            if text.strip():
                file.write(f"{_Lines.end()}{text.strip()}")
                file.flush()
                _Lines.is_open = True

        return write

    @staticmethod
    def end() -> str:
        """What ends the last line."""
        end, _Lines.is_open = "\n" if _Lines.is_open else "", False
        return end

    def close(self) -> None:
        """End the last line."""
        super().close()
        _Lines.is_open = False

    def set_postfix(self, *args: Any, refresh: bool = False, **values: Any) -> None:
        """Note values for the next line; a bar on a terminal shows them at once."""
        super().set_postfix(*args, refresh=refresh, **values)


def progress(iterable: Iterable[Any] | None = None, *, desc: str, disable: bool = False, **options: Any) -> "tqdm[Any]":
    """A ``tqdm`` bar on standard error, or without a terminal one that writes a line every 30 seconds and at the end.

    Args:
        iterable: what is iterated over; None for a bar that is moved by ``update``.
        desc: name of the work.
        disable: True shows nothing.
        options: further arguments of ``tqdm``, such as ``total``, ``initial``, ``unit`` and ``delay``.
    """
    if disable or sys.stderr.isatty():
        return tqdm(iterable, desc=desc, disable=disable, **options)
    seconds = SECONDS_BETWEEN_LINES
    return _Lines(iterable, desc=desc, mininterval=seconds, maxinterval=seconds, ncols=0, **options)


def note(text: str) -> None:
    """Write a line on standard error, above the bar or below its last line."""
    if sys.stderr.isatty():
        tqdm.write(text, file=sys.stderr)
    else:
        print(f"{_Lines.end()}{text}", file=sys.stderr, flush=True)
