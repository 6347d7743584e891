"""Simulators with an expert and an instruction, made by name; they know nothing of the rest of the library.

A new simulator is one file with a class that satisfies :class:`TaskEnv`, and one line in ``_ENVIRONMENTS``. One that
lives elsewhere needs no line: ``make("my_module:my_factory")`` imports it; see
:mod:`vampo_core.envs.gymnasium_env` for environments that were not written for this.
"""

import difflib
import importlib
import inspect
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

_ENVIRONMENTS = {
    "metaworld": "vampo_core.envs.metaworld:MetaWorld",
    "pusht": "vampo_core.envs.pusht:PushT",
}


class SimulatorError(RuntimeError):
    """A simulator, or the process it runs in, failed; the message names it and the episode."""


class TaskEnv(Protocol):
    """A gymnasium environment that shows pixels and brings its own expert.

    The ``info`` of ``reset`` and ``step`` holds ``state`` float32 [S] (what the robot's own sensors tell),
    ``privileged_state`` float32 [P] (the whole simulator state) and ``success`` (bool).
    """

    action_space: Any
    """A ``gymnasium.spaces.Box`` of shape [A]."""
    fps: float
    """Control steps, and so frames, per second."""
    instruction: str
    max_steps: int
    """Steps after which an episode is truncated."""

    def reset(self, *, seed: int | None = None) -> tuple[np.ndarray, dict[str, Any]]:  # [H, W, 3] uint8, info
        """Begin the episode that ``seed`` stands for."""
        ...

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Return pixels, reward, terminated, truncated and info."""
        ...

    def expert(self) -> Callable[[], np.ndarray]:
        """Make an expert for the episode just begun; each call returns the action for the present state."""
        ...

    def close(self) -> None: ...


def make(name: str, **kwargs: Any) -> TaskEnv:
    """Make an environment by name.

    Args:
        name: ``"pusht"``; a family of tasks takes the task after a slash (``"metaworld/reach"``); a factory outside of
            the library goes by module and name (``"my_module:my_factory"``), also with a task.
        kwargs: passed to the environment, e.g. ``image_size=64``.

    Raises:
        ValueError: there is no such environment, or it does not take these arguments.
        ImportError: the simulator is not installed; the message names the extra to install.
        SimulatorError: it cannot be made.
    """
    family, _, task = name.partition("/")
    if ":" not in family and family not in _ENVIRONMENTS:
        near = difflib.get_close_matches(family, _ENVIRONMENTS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"env is {name!r}, expected one of {', '.join(sorted(_ENVIRONMENTS))} or 'module:factory'{hint}"
        )
    module, _, attribute = _ENVIRONMENTS.get(family, family).partition(":")
    try:
        factory = getattr(importlib.import_module(module), attribute, None)
    except ModuleNotFoundError as error:
        if error.name != module:  # a module that it needs: says more than we can
            raise
        message = f"env is {name!r}, but there is no module {module!r}: its folder has to be on PYTHONPATH"
        raise ModuleNotFoundError(message, name=module) from None
    if factory is None:
        raise ValueError(f"env is {name!r}, expected {attribute!r} in module {module!r}")
    given = (task,) if task else ()
    try:
        inspect.signature(factory).bind(*given, **kwargs)
    except TypeError as error:
        arguments = ", ".join([*map(repr, given), *(f"{key}={value!r}" for key, value in kwargs.items())])
        raise ValueError(f"env is {name!r}, but {attribute}({arguments}) cannot be called: {error}") from None
    try:
        return factory(*given, **kwargs)
    except (ImportError, ValueError):  # say what is wrong
        raise
    except Exception as error:
        raise SimulatorError(f"env {name!r} cannot be made: {type(error).__name__}: {error}") from error


def split_names(env: str) -> list[str]:
    """The environments of a comma-separated list, such as ``"metaworld/reach,metaworld/drawer-open"``.

    Raises:
        ValueError: one is empty or repeated.
    """
    names = [name.strip() for name in env.split(",")]
    if not all(names) or len(set(names)) < len(names):
        raise ValueError(f"env is {env!r}, expected a name, or different names with commas between them")
    return names


def available() -> list[str]:
    """Names that :func:`make` knows; their simulators may still have to be installed."""
    return sorted(_ENVIRONMENTS)
