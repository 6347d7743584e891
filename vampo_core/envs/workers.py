"""Processes that step simulators on command; one that dies or hangs is replaced, its episodes are reported as lost."""

import math
import multiprocessing
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection
from typing import Any

import numpy as np

from vampo_core import envs
from vampo_core.envs.pool import borrow_env, close_envs, return_env, start_worker

MAX_SILENCE_S = 300.0
"""After which a worker that owes a reply is taken to hang; making a simulator and resetting it takes seconds."""


@dataclass(frozen=True)
class Reset:
    """Begin the episode of ``env`` that ``seed`` stands for."""

    env: str
    seed: int


@dataclass(frozen=True)
class Step:
    """Take an action, the expert's where it is None."""

    action: np.ndarray | None  # [A]


@dataclass(frozen=True)
class Reply:
    """What a simulator shows after a reset or a step."""

    pixels: np.ndarray  # [H, W, 3] uint8
    state: np.ndarray  # [S] float32
    reward: float
    done: bool
    success: bool
    coverage: float | None


@dataclass(frozen=True)
class Lost:
    """The slot's worker is gone, and with it the episode."""

    reason: str


@dataclass(frozen=True)
class _Failure:
    message: str
    is_import_error: bool


class Workers:
    """Worker processes, and slots that each hold one simulator in one of them: slot i in worker i modulo their number.

    Args:
        num_workers: processes.
        num_slots: simulators, at least ``num_workers``.
        env_kwargs: passed to every environment.
    """

    def __init__(self, num_workers: int, num_slots: int, env_kwargs: Mapping[str, Any]) -> None:
        self._context = multiprocessing.get_context("spawn")  # forking a process with torch's threads can hang
        self._env_kwargs = dict(env_kwargs)
        self._slots = [[slot for slot in range(num_slots) if slot % num_workers == i] for i in range(num_workers)]
        self._waiting: dict[int, set[int]] = {i: set() for i in range(num_workers)}  # worker -> slots that owe a reply
        self._silent_since = [0.0] * num_workers  # time of the last reply, or of what was sent to a worker at rest
        self._pipes: list[connection.Connection] = []
        self._processes: list[Any] = []
        for i in range(num_workers):
            pipe, process = self._start()
            self._pipes.append(pipe)
            self._processes.append(process)
            assert self._slots[i], "a worker without a slot"

    def send(self, slot: int, command: Reset | Step) -> None:
        """Have a slot reset or step; its reply comes with :meth:`receive`."""
        worker = slot % len(self._pipes)
        if not self._waiting[worker]:
            self._silent_since[worker] = time.monotonic()
        self._waiting[worker].add(slot)
        with suppress(BrokenPipeError, ConnectionResetError):  # a worker's death is noticed, and told, on receiving
            self._pipes[worker].send((slot, command))

    def receive(self, *, every: bool) -> dict[int, Reply | Lost]:
        """Replies by slot, in the order of slots.

        A worker that is dead or hangs is replaced, and all of its slots are lost, also those that had replied already.

        Args:
            every: wait for all that was sent, instead of for at least one.

        Raises:
            ImportError: a simulator cannot be loaded or cannot render.
            SimulatorError: a simulator raised an error.
        """
        replies: dict[int, Reply | Lost] = {}
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
        """End the workers."""
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            pipe.close()
            process.join(timeout=5)
            if process.is_alive():  # in the middle of a long step
                process.kill()
                process.join()

    def _reply_of(self, worker: int) -> dict[int, Reply | Lost]:
        try:
            slot, reply = self._pipes[worker].recv()
        except (EOFError, OSError):  # dead, perhaps in the middle of a message
            return self._replace(worker)
        self._silent_since[worker] = time.monotonic()
        self._waiting[worker].discard(slot)
        return {slot: _checked(reply)}

    def _start(self) -> tuple[connection.Connection, Any]:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_work, args=(theirs, self._env_kwargs), daemon=True)
        process.start()
        theirs.close()  # else its end would never be seen
        return ours, process

    def _replace(self, worker: int, reason: str = "") -> dict[int, Reply | Lost]:
        self._pipes[worker].close()
        self._processes[worker].join()
        lost = Lost(reason or f"it died: exit code {self._processes[worker].exitcode}")
        self._waiting[worker].clear()
        self._pipes[worker], self._processes[worker] = self._start()
        return dict.fromkeys(self._slots[worker], lost)


class InProcess:
    """Slots in this process, with the methods of :class:`Workers`; each has stepped when ``send`` returns."""

    def __init__(self, env_kwargs: Mapping[str, Any]) -> None:
        self._env_kwargs = dict(env_kwargs)
        self._slots: dict[int, _Slot] = {}
        self._replies: dict[int, Reply | Lost] = {}

    def send(self, slot: int, command: Reset | Step) -> None:
        """Reset or step."""
        self._replies[slot] = _checked(_obey(self._slots, slot, command, self._env_kwargs))

    def receive(self, *, every: bool) -> dict[int, Reply | Lost]:
        """All replies by slot, in the order of slots."""
        replies, self._replies = self._replies, {}
        return dict(sorted(replies.items()))

    def close(self) -> None:
        """Close the simulators that are not in an episode."""
        close_envs()


def _checked(reply: Reply | _Failure) -> Reply:
    if isinstance(reply, _Failure):
        raise (ImportError if reply.is_import_error else envs.SimulatorError)(reply.message)
    return reply


def _work(pipe: connection.Connection, env_kwargs: dict[str, Any]) -> None:
    start_worker()
    slots: dict[int, _Slot] = {}
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the parent is done
        while True:
            slot, command = pipe.recv()
            pipe.send((slot, _obey(slots, slot, command, env_kwargs)))
    close_envs()


def _obey(slots: dict[int, "_Slot"], slot: int, command: Reset | Step, env_kwargs: dict[str, Any]) -> Reply | _Failure:
    reset = command if isinstance(command, Reset) else slots[slot].begun
    try:
        if isinstance(command, Reset):
            slots[slot] = _Slot(command, env_kwargs)
            return slots[slot].reset()
        return slots[slot].step(command)
    except Exception as error:  # the parent stops the evaluation with this message
        if isinstance(error, ImportError):
            return _Failure(str(error), is_import_error=True)
        return _Failure(f"episode of {reset.env!r} with seed {reset.seed} failed: {error}", is_import_error=False)


class _Slot:
    """A simulator in the middle of an episode."""

    def __init__(self, begun: Reset, env_kwargs: dict[str, Any]) -> None:
        self.begun, self._env_kwargs = begun, env_kwargs
        self._env: envs.TaskEnv = borrow_env(begun.env, env_kwargs)
        self._expert: Any = None

    def reset(self) -> Reply:
        pixels, info = self._env.reset(seed=self.begun.seed)
        return _reply(pixels, info, reward=0.0, done=False)

    def step(self, command: Step) -> Reply:
        action = command.action
        if action is None:
            self._expert = self._expert or self._env.expert()
            action = self._expert()
        pixels, reward, terminated, truncated, info = self._env.step(action)
        done = terminated or truncated
        if done:
            return_env(self._env, self.begun.env, self._env_kwargs)
        return _reply(pixels, info, reward=float(reward), done=done)


def _reply(pixels: np.ndarray, info: Mapping[str, Any], *, reward: float, done: bool) -> Reply:
    coverage = info.get("coverage")
    coverage = None if coverage is None else float(coverage)
    for name, value in (("reward", reward), ("coverage", coverage)):
        if value is not None and not math.isfinite(value):
            raise ValueError(f"{name} is {value}, expected a finite number")
    return Reply(pixels, info["state"], reward, done, bool(info["success"]), coverage)
