"""Idle environments of a process, kept for its next episode: making one takes seconds."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vampo_core import envs

MAX_ENVS = 8
"""Number of idle environments that a process keeps; one of MetaWorld takes 150 MB.

An environment that takes more says in ``idle_weight`` for how many it counts; the last one is always kept.
"""

_idle: dict[tuple[str, str], list[envs.TaskEnv]] = {}


def borrow_env(name: str, env_kwargs: dict[str, Any]) -> envs.TaskEnv:
    """Take an environment that nobody else in this process uses; give it back with :func:`return_env`."""
    idle = _idle.get(_key(name, env_kwargs))
    return idle.pop() if idle else envs.make(name, **env_kwargs)


def return_env(env: envs.TaskEnv, name: str, env_kwargs: dict[str, Any]) -> None:
    """Keep an environment for the next episode; while there are too many, close the one that has been idle longest."""
    key = _key(name, env_kwargs)
    _idle[key] = [*_idle.pop(key, []), env]  # to the end of the order
    while len(kept := [env for idle in _idle.values() for env in idle]) > 1 and sum(map(_weight, kept)) > MAX_ENVS:
        next(idle for idle in _idle.values() if idle).pop(0).close()


@contextmanager
def borrowed_env(name: str, env_kwargs: dict[str, Any]) -> Iterator[envs.TaskEnv]:
    """An environment for one episode; it is closed after an error, because its state is unknown then."""
    env = borrow_env(name, env_kwargs)
    try:
        yield env
    except BaseException:
        env.close()
        raise
    return_env(env, name, env_kwargs)


def close_envs() -> None:
    """Close all idle environments."""
    for idle in _idle.values():
        for env in idle:
            env.close()
    _idle.clear()


def _key(name: str, env_kwargs: dict[str, Any]) -> tuple[str, str]:
    return name, json.dumps(env_kwargs, sort_keys=True)


def _weight(env: envs.TaskEnv) -> int:
    return int(getattr(env, "idle_weight", 1))
