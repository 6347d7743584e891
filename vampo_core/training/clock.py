"""Seconds of the phases of an iteration."""

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator

import torch


class PhaseClock:
    """Adds up how long each phase takes, the device's work included.

    ::

        with clock("rollout_s"):
            ...

    On a GPU phases are marked on its stream, and it is waited for only when :attr:`seconds` is read: work of one phase
    may be queued while the one before still runs.

    Args:
        device: where the work is done.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._seconds: dict[str, float] = defaultdict(float)

    @contextlib.contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        if self._device.type == "cuda":
            begin = self._mark()
            yield
            self._events.append((phase, begin, self._mark()))
        else:
            start = time.perf_counter()
            yield
            self._seconds[phase] += time.perf_counter() - start

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by phase so far."""
        if self._events:
            torch.cuda.synchronize(self._device)
        for phase, begin, end in self._events:
            self._seconds[phase] += begin.elapsed_time(end) / 1e3
        self._events.clear()
        return dict(self._seconds)

    def _mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
