"""Prepares MuJoCo for rendering without a screen: import ``mujoco`` inside :func:`rendering`, before anything else."""

import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes.util import find_library

_BACKENDS = "`apt-get install libegl1 libgl1` for MUJOCO_GL=egl, or `apt-get install libosmesa6` for MUJOCO_GL=osmesa"


def no_backend(env: str, reason: object) -> ImportError:
    """Return the error that an environment cannot render, with the remedy."""
    setting = os.environ.get("MUJOCO_GL", "unset")
    early = "" if "MUJOCO_GL" in os.environ or "mujoco" not in sys.modules else "; set it before mujoco is imported"
    return ImportError(f"environment {env!r} cannot render (MUJOCO_GL is {setting}{early}: {reason}): {_BACKENDS}")


@contextmanager
def rendering(env: str, *packages: str) -> Iterator[None]:
    """Choose a renderer for the import of ``mujoco`` in the block.

    Args:
        env: name of the environment, which is also that of the extra.
        packages: modules that the environment needs.

    Raises:
        ImportError: a package or a renderer is missing; the message says how to install it.
    """
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ImportError(f"environment {env!r} needs {package}: `pip install vampo_core[{env}]`")
    _choose_backend(env)
    try:
        yield
    except (ImportError, AttributeError, RuntimeError) as error:  # what PyOpenGL and MuJoCo raise without the library
        raise no_backend(env, error) from error


def _choose_backend(env: str) -> None:
    """Set ``MUJOCO_GL`` to what is installed: MuJoCo reads it once, on import, and needs a screen by default."""
    if "MUJOCO_GL" in os.environ or "mujoco" in sys.modules or not sys.platform.startswith("linux"):
        return
    found = [name for name, library in (("egl", "EGL"), ("osmesa", "OSMesa")) if find_library(library)]
    if found:
        os.environ["MUJOCO_GL"] = found[0]
    elif "DISPLAY" not in os.environ:
        raise no_backend(env, "neither libEGL nor libOSMesa is installed, and there is no screen")
