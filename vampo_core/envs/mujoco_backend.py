"""What environments need to import MuJoCo for rendering without a screen."""

import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ctypes.util import find_library

_BACKENDS = "`apt-get install libegl1 libgl1` for MUJOCO_GL=egl, or `apt-get install libosmesa6` for MUJOCO_GL=osmesa"


def no_backend(environment: str, reason: object) -> ImportError:
    """Return the error that nothing can be rendered, with the remedy."""
    setting = os.environ.get("MUJOCO_GL", "unset")
    early = "" if "MUJOCO_GL" in os.environ or "mujoco" not in sys.modules else "; set it before mujoco is imported"
    return ImportError(
        f"environment {environment!r} cannot render (MUJOCO_GL is {setting}{early}: {reason}): {_BACKENDS}"
    )


@contextmanager
def rendering(environment: str, packages: Sequence[str]) -> Iterator[None]:
    """Import ``mujoco`` in this context, before anything else imports it.

    Args:
        environment: name of the environment, which is also the extra that installs it.
        packages: packages that it needs.

    Raises:
        ImportError: a package is missing, or nothing can be rendered; the message names what to install.
    """
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ImportError(f"environment {environment!r} needs {package}: `pip install vampo_core[{environment}]`")
    _choose_backend(environment)
    try:
        yield
    except (ImportError, AttributeError, RuntimeError) as error:  # what PyOpenGL and MuJoCo raise without the library
        raise no_backend(environment, error) from error


def _choose_backend(environment: str) -> None:
    """Set ``MUJOCO_GL`` to what is installed: MuJoCo reads it once, on import, and needs a screen by default."""
    if "MUJOCO_GL" in os.environ or "mujoco" in sys.modules or not sys.platform.startswith("linux"):
        return
    found = [name for name, library in (("egl", "EGL"), ("osmesa", "OSMesa")) if find_library(library)]
    if found:
        os.environ["MUJOCO_GL"] = found[0]
    elif "DISPLAY" not in os.environ:
        raise no_backend(environment, "neither libEGL nor libOSMesa is installed, and there is no screen")
