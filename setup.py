"""Builds vampo_core/_C by calling CMake, which holds the list of sources."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
sys.path.insert(0, str(ROOT))
from build_backend import has_compiler, installed_torch  # noqa: E402


def torch_folder() -> Path:
    """The torch to build against: VAMPO_TORCH_DIR, the importable one, or the one that an isolated build hides."""
    spec = None if os.environ.get("VAMPO_TORCH_DIR") else importlib.util.find_spec("torch")
    folder = Path(spec.submodule_search_locations[0]) if spec else installed_torch()
    if folder is None:
        sys.exit("vampo_core: there is no torch to build against; install torch>=2.11 first")
    return folder


def require(module: str) -> str:
    """Folder of an importable build requirement."""
    spec = importlib.util.find_spec(module)
    if spec is None:
        sys.exit(f"vampo_core: building without isolation needs {module}; run `pip install cmake ninja pybind11`")
    return spec.submodule_search_locations[0]


class CMakeBuild(build_ext):
    """Configures and builds with CMake and Ninja; unchanged files are not compiled again.

    Without a C++ compiler there is nothing to build: the package then runs its pure-PyTorch reference, and says so.
    """

    def build_extension(self, ext: Extension) -> None:
        if not has_compiler():
            print("vampo_core: there is no C++ compiler; installing without the compiled operators", file=sys.stderr)
            ext.optional = True  # nobody misses its file
            return
        output = Path(self.get_ext_fullpath(ext.name)).resolve()
        options = {
            "CMAKE_BUILD_TYPE": "Release",
            # set every time: the build folder may remember that of an environment that is gone
            "CMAKE_MAKE_PROGRAM": shutil.which("ninja") or "ninja",
            "CMAKE_LIBRARY_OUTPUT_DIRECTORY": output.parent,
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": Path(require("pybind11")) / "share" / "cmake" / "pybind11",
            "VAMPO_TORCH_DIR": torch_folder(),
            "VAMPO_CUDA": os.environ.get("VAMPO_CUDA", "AUTO"),
            "VAMPO_SANITIZE": os.environ.get("VAMPO_SANITIZE", "0"),
        }
        # An editable install keeps its build folder, so that the next one compiles only what has changed.
        build = ROOT / "build" / "editable" if self.editable_mode else Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        flags = [f"-D{name}={value}" for name, value in options.items()]
        subprocess.run(["cmake", "-S", ROOT, "-B", build, "-G", "Ninja", *flags], check=True)
        subprocess.run(["cmake", "--build", build], check=True)


setup(
    packages=[*find_packages(include=["vampo_core*"]), "vampo_core.configs", "vampo_core.report.templates"],
    # the presets are inside the package in a wheel, and beside it in a checkout
    package_dir={"vampo_core.configs": "configs"},
    package_data={
        "vampo_core": ["py.typed"],
        "vampo_core.configs": ["*.yaml"],
        "vampo_core.report.templates": ["*"],
    },
    ext_modules=[Extension("vampo_core._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
