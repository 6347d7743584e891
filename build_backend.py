"""Build backend: setuptools, with requirements that depend on what the environment already has.

A plain ``requires = ["torch"]`` would make pip download the newest torch with gigabytes of CUDA packages into the
isolated build environment. pip hides the environment's site-packages from ``sys.path`` but not from ``sysconfig``, so
an isolated build can use the headers of the torch that is installed there. ``VAMPO_TORCH_DIR`` names the torch folder
of another environment instead, which may have another Python.
"""

import os
import shutil
import site
import sysconfig
from pathlib import Path

from setuptools.build_meta import *  # noqa: F403
from setuptools.build_meta import __legacy__  # noqa: F401

FALLBACK_TORCH = "torch==2.13.0"


def installed_torch() -> Path | None:
    """Folder of the torch package to build against: the named one, else that of this environment."""
    if named := os.environ.get("VAMPO_TORCH_DIR"):
        return Path(named)
    paths = [sysconfig.get_path("platlib"), sysconfig.get_path("purelib"), *site.getsitepackages()]
    folders = (Path(path) / "torch" for path in paths)
    return next((folder for folder in folders if (folder / "lib" / "libtorch_cpu.so").exists()), None)


def has_compiler() -> bool:
    """Whether there is a C++ compiler, as CMake looks for one; without one the package is installed without _C."""
    return "CXX" in os.environ or any(map(shutil.which, ("c++", "g++", "clang++")))


def _requirements() -> list[str]:
    if not has_compiler():
        return []
    requirements = ["pybind11>=2.13", "ninja"]
    if shutil.which("cmake") is None:
        requirements.append("cmake>=3.24")
    if installed_torch() is None:
        requirements.append(FALLBACK_TORCH)
    return requirements


def get_requires_for_build_wheel(config_settings: dict | None = None) -> list[str]:
    """What a wheel needs beside setuptools."""
    return _requirements()


def get_requires_for_build_editable(config_settings: dict | None = None) -> list[str]:
    """What an editable install needs beside setuptools."""
    return _requirements()
