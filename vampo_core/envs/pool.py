"""What processes that step simulators share: one thread, an end with their parent, environments kept for the next."""

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from vampo_core import envs

MAX_ENVS = 8
"""Idle environments that a process keeps; one of MetaWorld's takes seconds to make and 150 MB."""

_idle: dict[tuple[str, str], list[envs.TaskEnv]] = {}


def start_worker() -> None:
    """Prepare a process that a parent has spawned."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C: the parent stops handing out work
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()  # a killed parent would leave its workers waiting for ever
    os._exit(1)


def borrow_env(name: str, env_kwargs: dict[str, Any]) -> envs.TaskEnv:
    """An environment of this process that nobody else uses; give it back with :func:`return_env`."""
    idle = _idle.get(_key(name, env_kwargs))
    return idle.pop() if idle else envs.make(name, **env_kwargs)


def return_env(env: envs.TaskEnv, name: str, env_kwargs: dict[str, Any]) -> None:
    """Keep an environment for the next episode; the one that was idle longest makes room."""
    key = _key(name, env_kwargs)
    _idle[key] = [*_idle.pop(key, []), env]  # to the end of the order
    if sum(map(len, _idle.values())) > MAX_ENVS:
        next(idle for idle in _idle.values() if idle).pop(0).close()


@contextmanager
def borrowed_env(name: str, env_kwargs: dict[str, Any]) -> Iterator[envs.TaskEnv]:
    """An environment for one episode; after an error it is closed, as its state is unknown."""
    env = borrow_env(name, env_kwargs)
    try:
        yield env
    except BaseException:
        env.close()
        raise
    return_env(env, name, env_kwargs)


def close_envs() -> None:
    """Close all that is idle."""
    for idle in _idle.values():
        for env in idle:
            env.close()
    _idle.clear()


def _key(name: str, env_kwargs: dict[str, Any]) -> tuple[str, str]:
    return name, json.dumps(env_kwargs, sort_keys=True)
