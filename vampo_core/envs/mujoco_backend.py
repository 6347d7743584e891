"""Imports MuJoCo for rendering without a screen: import ``mujoco`` from here before anything else imports it."""

import importlib.util
import os
import sys
from ctypes.util import find_library

_BACKENDS = "`apt-get install libegl1 libgl1` for MUJOCO_GL=egl, or `apt-get install libosmesa6` for MUJOCO_GL=osmesa"


def no_backend(reason: object) -> ImportError:
    """Return the error that nothing can be rendered, with the remedy."""
    setting = os.environ.get("MUJOCO_GL", "unset")
    early = "" if "MUJOCO_GL" in os.environ or "mujoco" not in sys.modules else "; set it before mujoco is imported"
    return ImportError(f"environment 'metaworld' cannot render (MUJOCO_GL is {setting}{early}: {reason}): {_BACKENDS}")


def _choose_backend() -> None:
    """Set ``MUJOCO_GL`` to what is installed: MuJoCo reads it once, on import, and needs a screen by default."""
    if "MUJOCO_GL" in os.environ or "mujoco" in sys.modules or not sys.platform.startswith("linux"):
        return
    found = [name for name, library in (("egl", "EGL"), ("osmesa", "OSMesa")) if find_library(library)]
    if found:
        os.environ["MUJOCO_GL"] = found[0]
    elif "DISPLAY" not in os.environ:
        raise no_backend("neither libEGL nor libOSMesa is installed, and there is no screen")


for _package in ("metaworld", "packaging", "gymnasium"):  # metaworld does not declare packaging
    if importlib.util.find_spec(_package) is None:
        raise ImportError(f"environment 'metaworld' needs {_package}: `pip install vampo_core[metaworld]`")
_choose_backend()
try:
    import mujoco
except (ImportError, AttributeError, RuntimeError) as error:  # what PyOpenGL and MuJoCo raise without the library
    raise no_backend(error) from error

__all__ = ["mujoco", "no_backend"]
