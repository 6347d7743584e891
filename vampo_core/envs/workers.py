"""Worker processes that step simulators and record episodes; one that dies or hangs is replaced and its work repeated.

A worker obeys commands. Closed loops send :class:`Reset` and :class:`Step` to slots, each of which holds one simulator
in the middle of an episode; recording sends a :class:`Run` per episode (:func:`run_each`).
"""

import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection
from typing import Any

import torch

from vampo_core import envs
from vampo_core.envs.idle import close_envs
from vampo_core.envs.slots import Failure, Lost, Reset, Slots, Step

MAX_SILENCE_S = 300.0
"""Time after which a worker that owes a reply is taken to hang; making a simulator and resetting it takes seconds."""
MAX_ATTEMPTS = 3
"""Number of times that work is begun before the loss of its worker is taken to be its own fault."""
HEARTBEAT_S = 5.0
"""Time between the signs of life of a command that takes long."""


@dataclass(frozen=True)
class Run:
    """Call a function and reply with what it returns."""

    function: Callable[[Callable[[], None]], Any]
    """A function that can be pickled. Its argument is a function to call now and then as a sign of life."""


@dataclass(frozen=True)
class _Alive:
    """A sign of life from a command that takes long."""


class _RemoteError(Exception):
    """Traceback of an error in a worker."""


class Workers:
    """Worker processes with slots for work: slot i belongs to worker i modulo their number.

    Args:
        num_workers: number of processes.
        num_slots: number of slots, at least ``num_workers``.
        env_kwargs: arguments of every environment of a :class:`Reset`.
    """

    def __init__(self, num_workers: int, num_slots: int, env_kwargs: Mapping[str, Any] | None = None) -> None:
        self._context = multiprocessing.get_context("spawn")  # forking a process with torch's threads can hang
        self._env_kwargs = dict(env_kwargs or {})
        self._slots = [[slot for slot in range(num_slots) if slot % num_workers == i] for i in range(num_workers)]
        self._waiting: dict[int, set[int]] = {i: set() for i in range(num_workers)}  # worker -> slots that owe a reply
        self._silent_since = [0.0] * num_workers  # time of the last message, or of the first command after a rest
        self._warned: set[str] = set()
        self._pipes: list[connection.Connection] = []
        self._processes: list[Any] = []
        for i in range(num_workers):
            assert self._slots[i], "a worker without a slot"
            pipe, process = self._start()
            self._pipes.append(pipe)
            self._processes.append(process)

    def send(self, slot: int, command: Reset | Step | Run) -> None:
        """Give a command to a slot; :meth:`receive` returns its reply."""
        worker = slot % len(self._pipes)
        if not self._waiting[worker]:
            self._silent_since[worker] = time.monotonic()
        self._waiting[worker].add(slot)
        with suppress(BrokenPipeError, ConnectionResetError):  # receive notices and reports a worker's death
            self._pipes[worker].send((slot, command))

    def receive(self, *, every: bool) -> dict[int, Any]:
        """Replies by slot, in the order of slots.

        A worker that is dead or hangs is replaced. All of its slots are :class:`~vampo_core.envs.slots.Lost`, including
        those that had replied already.

        Args:
            every: whether to wait for all replies that are due, instead of for at least one.

        Raises:
            ImportError: a simulator cannot be loaded or cannot render.
            SimulatorError: a simulator raised an error.
        """
        replies: dict[int, Any] = {}
        while any(self._waiting.values()) and (every or not replies):
            owing = {self._pipes[i]: i for i, slots in self._waiting.items() if slots}
            deadline = MAX_SILENCE_S + min(self._silent_since[worker] for worker in owing.values())
            ready = connection.wait(list(owing), timeout=max(0.0, deadline - time.monotonic()))
            for pipe, worker in owing.items():
                if pipe in ready:
                    replies |= self._reply_of(worker)
                elif time.monotonic() >= self._silent_since[worker] + MAX_SILENCE_S:
                    self._processes[worker].kill()
                    replies |= self._replace(worker, f"it hung: no reply in {MAX_SILENCE_S:g} s")
        return dict(sorted(replies.items()))

    def close(self) -> None:
        """End the workers; one in the middle of something gets 5 s to finish it."""
        for pipe in self._pipes:
            pipe.close()
        deadline = time.monotonic() + 5
        for process in self._processes:
            process.join(timeout=max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()

    def _reply_of(self, worker: int) -> dict[int, Any]:
        try:
            slot, reply, warned = self._pipes[worker].recv()
        except (EOFError, OSError):  # dead, perhaps in the middle of a message
            return self._replace(worker)
        self._silent_since[worker] = time.monotonic()
        for message in warned:
            if message not in self._warned:  # one line, however many workers say it
                self._warned.add(message)
                warnings.warn(message, envs.SimulatorWarning, stacklevel=4)
        if isinstance(reply, _Alive):
            return {}
        self._waiting[worker].discard(slot)
        return {slot: _checked(reply)}

    def _start(self) -> tuple[connection.Connection, Any]:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_work, args=(theirs, self._env_kwargs, HEARTBEAT_S), daemon=True)
        process.start()
        theirs.close()  # else the end of the pipe would never be noticed
        return ours, process

    def _replace(self, worker: int, reason: str = "") -> dict[int, Any]:
        self._pipes[worker].close()
        self._processes[worker].join()
        lost = Lost(reason or f"it died: exit code {self._processes[worker].exitcode}")
        self._waiting[worker].clear()
        self._pipes[worker], self._processes[worker] = self._start()
        return dict.fromkeys(self._slots[worker], lost)


class InProcess:
    """Slots in this process, with the methods of :class:`Workers`; a command is finished when ``send`` returns."""

    def __init__(self, env_kwargs: Mapping[str, Any] | None = None) -> None:
        self._slots = Slots(dict(env_kwargs or {}))
        self._replies: dict[int, Any] = {}

    def send(self, slot: int, command: Reset | Step | Run) -> None:
        """Execute a command."""
        reply = _called(command, lambda: None) if isinstance(command, Run) else self._slots.obey(slot, command)
        self._replies[slot] = _checked(reply)

    def receive(self, *, every: bool) -> dict[int, Any]:
        """All replies by slot, in the order of slots."""
        replies, self._replies = self._replies, {}
        return dict(sorted(replies.items()))

    def close(self) -> None:
        """Close the simulators that are not in an episode."""
        close_envs()


def run_each(runs: Sequence[tuple[str, Run]], num_workers: int) -> Iterator[Any]:
    """Results of many runs, as they finish.

    Args:
        runs: name and command of each; one whose worker is lost is begun again.
        num_workers: number of processes; at most 1 to work in this one.

    Raises:
        ImportError: a simulator cannot be loaded or cannot render.
        SimulatorError: a run raised an error, or its worker was lost three times.
    """
    num_slots = max(1, min(num_workers, len(runs)))
    pool: Workers | InProcess = Workers(num_slots, num_slots) if num_slots > 1 else InProcess()
    pending = deque((name, run, 1) for name, run in runs)
    running: dict[int, tuple[str, Run, int]] = {}
    try:
        while pending or running:
            for slot in range(num_slots):
                if pending and slot not in running:
                    running[slot] = pending.popleft()
                    pool.send(slot, running[slot][1])
            for slot, reply in pool.receive(every=False).items():
                name, run, attempt = running.pop(slot)
                if not isinstance(reply, Lost):
                    yield reply
                elif attempt < MAX_ATTEMPTS:
                    pending.appendleft((name, run, attempt + 1))
                else:
                    raise envs.SimulatorError(f"{name}: its worker was lost {attempt} times ({reply.reason})")
    finally:
        pool.close()


def _checked(reply: Any) -> Any:
    if isinstance(reply, Failure):
        error_class = ImportError if reply.is_import_error else envs.SimulatorError
        raise error_class(reply.message) from _RemoteError(reply.traceback)
    return reply


def _called(run: Run, heartbeat: Callable[[], None]) -> Any:
    try:
        return run.function(heartbeat)
    except Exception as error:  # the parent raises it with this message
        return Failure.of(error)


def _work(pipe: connection.Connection, env_kwargs: dict[str, Any], heartbeat_s: float) -> None:
    """Body of a worker process."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C the parent stops handing out work
    threading.Thread(target=_follow_parent, daemon=True).start()
    warned = _collect_warnings()
    slots = Slots(env_kwargs)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the parent is done
        while True:
            slot, command = pipe.recv()
            is_run = isinstance(command, Run)
            reply = _called(command, _heartbeat(pipe, slot, heartbeat_s)) if is_run else slots.obey(slot, command)
            pipe.send((slot, reply, tuple(warned)))
            warned.clear()
    close_envs()


def _heartbeat(pipe: connection.Connection, slot: int, period_s: float) -> Callable[[], None]:
    last = time.monotonic()

    def heartbeat() -> None:
        nonlocal last
        if time.monotonic() >= last + period_s:
            last = time.monotonic()
            pipe.send((slot, _Alive(), ()))

    return heartbeat


def _collect_warnings() -> list[str]:
    """Collect texts of simulator warnings in a list instead of printing them: every worker has the same ones."""
    found: list[str] = []
    show = warnings.showwarning

    def collect(message: Any, category: type[Warning], *where: Any) -> None:
        if issubclass(category, envs.SimulatorWarning):
            found.append(str(message))
        else:
            show(message, category, *where)

    warnings.showwarning = collect  # type: ignore[assignment]
    return found


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()  # the workers of a killed parent would wait forever
    os._exit(1)
