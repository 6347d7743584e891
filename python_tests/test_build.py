"""The package can be built from its source archive, without a C++ compiler, and beside an nvcc that does not work.

What it builds needs torch's stable ABI and the system's libraries, nothing else.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from vampo_core import _extension

REPOSITORY = Path(__file__).parents[1]
TOOLS = ("setuptools", "pybind11", "cmake", "ninja")
SYSTEM = r"(lib(c|m|dl|pthread|rt|gcc_s|stdc\+\+)|ld-linux-.+)\.so\.\d"

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in TOOLS) or not (REPOSITORY / "setup.py").exists(),
    reason=f"building needs a checkout, {', '.join(TOOLS)}",
)


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """The source archive, made from a copy of the checkout."""
    copy, output = tmp_path_factory.mktemp("checkout") / "copy", tmp_path_factory.mktemp("dist")
    copy.mkdir()
    for name in ("csrc", "configs", "vampo_core"):
        shutil.copytree(REPOSITORY / name, copy / name, ignore=shutil.ignore_patterns("_C*.so", "__pycache__"))
    for path in REPOSITORY.iterdir():
        if path.is_file():
            shutil.copy(path, copy)
    build("sdist", copy, output)
    return next(output.glob("*.tar.gz"))


@pytest.fixture
def source(archive, tmp_path):
    """The unpacked archive."""
    with tarfile.open(archive) as file:
        file.extractall(tmp_path, filter="data")
    return next(path for path in tmp_path.iterdir() if path.is_dir())


def build(kind: str, source: Path, output: Path, **environment: str) -> str:
    """Call the build backend as ``python -m build --no-isolation`` does; gives what was printed."""
    code = f"import sys; sys.path.insert(0, '.'); import build_backend; build_backend.build_{kind}({str(output)!r})"
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=source, env=os.environ | environment, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    return process.stdout + process.stderr


def test_the_archive_holds_what_a_build_needs(source):
    def names(folder):
        return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}

    assert names(source / "csrc") == names(REPOSITORY / "csrc")
    assert names(source / "configs") == names(REPOSITORY / "configs")
    package = {name for name in names(REPOSITORY / "vampo_core") if "__pycache__" not in name and ".so" not in name}
    assert names(source / "vampo_core") == package
    assert all((source / name).is_file() for name in ("CMakeLists.txt", "build_backend.py", "setup.py", "LICENSE"))


def test_without_a_compiler_the_package_runs_its_reference(source, tmp_path):
    (tmp_path / "no_compiler").mkdir()
    environment = {"PATH": str(tmp_path / "no_compiler")}
    printed = build("wheel", source, tmp_path, **environment)
    assert "vampo_core: there is no C++ compiler; installing without the compiled operators" in printed
    assert "Package would be ignored" not in printed
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        assert {"vampo_core/configs/pusht.yaml", "vampo_core/py.typed"} <= set(wheel.namelist())
        templates = {path.name for path in (REPOSITORY / "vampo_core" / "report" / "templates").iterdir()}
        assert {f"vampo_core/report/templates/{name}" for name in templates} <= set(wheel.namelist())
        wheel.extractall(tmp_path / "installed")
    code = (
        "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in str(f)]; "  # of the checkout
        "import torch, vampo_core; assert not vampo_core.build_info()['compiled']; vampo_core.load_config('pusht'); "
        "print(vampo_core.__file__, vampo_core.ops.group_advantages(torch.tensor([[1.0, 2.0, 3.0]])).tolist())"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path / "installed")},
        capture_output=True, text=True,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert str(tmp_path / "installed") in process.stdout and "[[-1.0, 0.0, 1.0]]" in process.stdout
    assert "pure-PyTorch reference: there are no compiled operators" in process.stderr


def test_an_nvcc_that_refuses_the_compiler_leaves_the_cpu_operators(source, tmp_path):
    nvcc = tmp_path / "cuda" / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text("#!/bin/sh\necho '#error -- unsupported GNU version!' >&2\nexit 1\n")
    nvcc.chmod(0o755)
    command = [
        "cmake", "-S", source, "-B", tmp_path / "build", "-G", "Ninja", f"-DPython_EXECUTABLE={sys.executable}",
        f"-DCMAKE_MAKE_PROGRAM={Path(sys.executable).parent / 'ninja'}",
    ]  # fmt: skip
    environment = {
        "CUDA_HOME": str(tmp_path / "cuda"), "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip
    process = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert "vampo_core: CPU operators against torch" in process.stdout
    warning = " ".join(process.stderr.split())
    assert f"{nvcc} does not work" in warning and "building only the CPU operators" in warning
    process = subprocess.run([*command, "-DVAMPO_CUDA=1"], env=os.environ | environment, capture_output=True, text=True)
    assert process.returncode != 0


def test_another_environments_torch_can_be_named(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY))
    import build_backend

    monkeypatch.delenv("VAMPO_TORCH_DIR", raising=False)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(build_backend.site, "getsitepackages", list)
    assert build_backend.installed_torch() is None
    assert build_backend.FALLBACK_TORCH in build_backend.get_requires_for_build_wheel()
    monkeypatch.setenv("VAMPO_TORCH_DIR", "/elsewhere/torch")
    assert build_backend.installed_torch() == Path("/elsewhere/torch")
    assert build_backend.FALLBACK_TORCH not in build_backend.get_requires_for_build_wheel()


@pytest.mark.requires_kernels
@pytest.mark.skipif(shutil.which("readelf") is None, reason="needs readelf")
def test_the_library_needs_only_torchs_stable_abi_and_the_system():
    """A second OpenMP would compete with torch's; CPU-only torch has no CUDA runtime; only C symbols are stable."""
    output = subprocess.run(
        ["readelf", "-W", "--dynamic", "--dyn-syms", _extension._C.__file__], capture_output=True, text=True, check=True
    ).stdout
    needed = re.findall(r"Shared library: \[(.+)\]", output)
    assert {name for name in needed if not re.fullmatch(SYSTEM, name)} == {"libtorch_cpu.so", "libc10.so"}
    missing = re.findall(r" UND (\w+)", output)
    assert "aoti_torch_library_init_impl" in missing
    assert not [name for name in missing if re.search("2at|3c10|5torch", name)]
