"""Simulators with an expert and an instruction, made by name; they know nothing about the rest of the library.

A new simulator is one file with a class that satisfies :class:`TaskEnv`, and one line in ``_ENVIRONMENTS``. A simulator
outside the library needs no line: ``make("my_module:my_factory")`` imports it;
:mod:`vampo_core.envs.gymnasium_env` adapts environments that were not written for this library.
"""

import difflib
import importlib
import inspect
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

_ENVIRONMENTS = {
    "libero": "vampo_core.envs.libero:Libero",
    "libero-lerobot": "vampo_core.envs.libero:lerobot_view",
    "metaworld": "vampo_core.envs.metaworld:MetaWorld",
    "ogbench": "vampo_core.envs.ogbench:OGBench",
    "pusht": "vampo_core.envs.pusht:PushT",
}
_MEMBERS = {
    **dict.fromkeys(("libero", "libero-lerobot"), "vampo_core.envs.libero_tasks:members"),
    "ogbench": "vampo_core.envs.ogbench_tasks:members",
}
"""Families with names for several tasks: a function from such a name to its tasks, which needs no simulator."""


class SimulatorError(RuntimeError):
    """A simulator, or the process it runs in, failed; the message names it and the episode."""


class SimulatorWarning(UserWarning):
    """A simulator does something that is probably not wanted; shown once, for any number of worker processes."""


class TaskEnv(Protocol):
    """A gymnasium environment that shows pixels and has its own expert; see :func:`has_expert` for one without.

    The ``info`` of ``reset`` and ``step`` holds ``state`` float32 [S] (readings of the robot's own sensors),
    ``privileged_state`` float32 [P] (complete simulator state) and ``success`` (see :func:`is_success`).
    """

    action_space: Any
    """A ``gymnasium.spaces.Box`` of shape [A]."""
    fps: float
    """Control steps, and therefore frames, per second."""
    instruction: str
    """The task in words."""
    max_steps: int
    """Steps after which an episode is truncated."""

    def reset(self, *, seed: int | None = None) -> tuple[np.ndarray, dict[str, Any]]:  # [H, W, 3] uint8, info
        """Begin the episode of ``seed``."""
        ...

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Return pixels, reward, terminated, truncated and info."""
        ...

    def expert(self) -> Callable[[], np.ndarray]:
        """Make an expert for the episode that just began; each call returns the action for the current state."""
        ...

    def close(self) -> None: ...


def make(name: str, **kwargs: Any) -> TaskEnv:
    """Make an environment by name.

    Args:
        name: name of the environment: ``"pusht"``, a family and a task (``"metaworld/reach"``), or the module and name
            of a factory outside the library (``"my_module:my_factory"``), which may also be followed by a task.
        kwargs: arguments of the environment, e.g. ``image_size=64``.

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
        if error.name != module:  # a module that it imports: the error says more than we can
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
    except (ImportError, ValueError):  # their messages say what is wrong
        raise
    except Exception as error:
        raise SimulatorError(f"env {name!r} cannot be made: {type(error).__name__}: {error}") from error


def has_expert(env: TaskEnv) -> bool:
    """Whether an environment brings an expert; one that does not says so in an attribute ``has_expert``."""
    return bool(getattr(env, "has_expert", True))


def is_success(value: Any) -> bool:
    """Read a ``success`` entry: a bool, or the number 0 or 1, also as an array of one element.

    Raises:
        ValueError: it is something else, such as the text ``"False"``, which would count as true.
    """
    array = np.asarray(value)
    if array.size != 1 or array.item() not in (0, 1):
        raise ValueError(f"success is {value!r}, expected True or False")
    return bool(array.item())


def expand_names(env: str) -> list[str]:
    """Names of the environments in a list such as ``"metaworld/reach,libero/libero_object"``.

    A name that stands for several tasks, as that of one of LIBERO's suites does, becomes their names. No simulator has
    to be installed.

    Raises:
        ValueError: a name is empty or repeated, or what it stands for does not exist.
    """
    names = [member for name in env.split(",") for member in _members(name.strip())]
    if not all(names) or len(set(names)) < len(names):
        raise ValueError(f"env is {env!r}, expected a name, or different names with commas between them")
    return names


def _members(name: str) -> list[str]:
    family, _, task = name.partition("/")
    if family not in _MEMBERS:
        return [name]
    module, _, attribute = _MEMBERS[family].partition(":")
    return [f"{family}/{member}" for member in getattr(importlib.import_module(module), attribute)(task)]
