"""SIGTERM and Ctrl-C ask a loop to stop at its next safe point."""

import signal
import threading
from types import FrameType
from typing import Any


class GracefulStop:
    """Context in which the first SIGTERM or SIGINT sets :attr:`requested` and the second one interrupts at once.

    ::

        with GracefulStop() as stop:
            for iteration in iterations:
                ...
                if stop.requested:
                    save()
                    break

    Python delivers signals to the main thread only; in another one nothing is ever requested.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        """The signal that came."""
        self._previous: dict[signal.Signals, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether the loop shall stop."""
        return self.signal is not None

    def __enter__(self) -> "GracefulStop":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt(f"{signal.Signals(number).name} while stopping after {self.signal.name}")
        self.signal = signal.Signals(number)
