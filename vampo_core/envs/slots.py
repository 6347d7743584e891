"""Commands to simulators in the middle of their episodes, and what they reply."""

from collections.abc import Mapping
from dataclasses import dataclass
from traceback import format_exception
from typing import Any

import numpy as np

from vampo_core import envs
from vampo_core.envs.idle import borrow_env, return_env


@dataclass(frozen=True)
class Reset:
    """Begin an episode."""

    env: str
    """Name of the environment."""
    seed: int
    """Seed of the episode."""


@dataclass(frozen=True)
class Step:
    """Take an action."""

    action: np.ndarray | None  # [A]
    """The action; None for the expert's."""


@dataclass(frozen=True)
class Reply:
    """Observation after a reset or a step."""

    pixels: np.ndarray  # [H, W, 3] uint8
    state: np.ndarray  # [S] float32
    reward: float
    done: bool
    success: bool
    coverage: float | None


@dataclass(frozen=True)
class Lost:
    """The slot's worker is gone, and its episode with it."""

    reason: str


@dataclass(frozen=True)
class Failure:
    """A command raised an error."""

    message: str
    is_import_error: bool
    traceback: str
    """Where the error was raised, perhaps in another process."""

    @classmethod
    def of(cls, error: Exception, name: str = "") -> "Failure":
        """The failure of what is called ``name``; an ImportError says enough without the name."""
        is_import_error = isinstance(error, ImportError)
        text = str(error) or type(error).__name__
        message = f"{name} failed: {text}" if name and not is_import_error else text
        return cls(message, is_import_error, "".join(format_exception(error)))


class Slots:
    """Simulators in the middle of an episode, by number.

    Args:
        env_kwargs: arguments of every environment.
    """

    def __init__(self, env_kwargs: dict[str, Any]) -> None:
        self._env_kwargs = env_kwargs
        self._slots: dict[int, _Slot] = {}

    def obey(self, slot: int, command: Reset | Step) -> Reply | Failure:
        """Execute a command; an error becomes a failure that names the episode."""
        reset = command if isinstance(command, Reset) else self._slots[slot].begun
        try:
            if isinstance(command, Reset):
                self._slots[slot] = _Slot(command, self._env_kwargs)
                return self._slots[slot].reset()
            return self._slots[slot].step(command)
        except Exception as error:  # the parent ends the evaluation with this message
            return Failure.of(error, f"episode of {reset.env!r} with seed {reset.seed}")


class _Slot:
    """One simulator."""

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
        if value is not None and not np.isfinite(value):
            raise ValueError(f"{name} is {value}, expected a finite number")
    return Reply(pixels, info["state"], reward, done, envs.is_success(info["success"]), coverage)
