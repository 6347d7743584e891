"""Finds the compiled operators and says what they serve."""

import functools
import importlib.metadata
import warnings
from pathlib import Path

import torch

try:
    from vampo_core import _C  # registers torch.ops.vampo_core.*
except ImportError as error:
    _C = None  # type: ignore[assignment]
    _built = any(Path(__file__).parent.glob("_C*.so"))
    _missing = f"the compiled operators do not load ({error})" if _built else "there are no compiled operators"

LOADED: bool = _C is not None
_CUDA: bool = LOADED and bool(_C.build_info()["cuda"])
_MIN_CUDA_CAPABILITY = (8, 0)


def build_info() -> dict[str, object]:
    """What this installation was built with.

    Returns:
        dict with ``version``, ``compiled`` (bool), ``torch_built`` (version the library was compiled against),
        ``torch_running``, ``cuda`` (bool), ``cuda_archs`` (list of str) and ``compiler``; entries that only a
        compiled library has are None or empty without one.
    """
    info: dict[str, object] = {
        "version": version(),
        "compiled": LOADED,
        "torch_running": torch.__version__,
        "torch_built": None,
        "cuda": False,
        "cuda_archs": [],
        "compiler": None,
    }
    return info | (_C.build_info() if LOADED else {})


def missing_reason() -> str:
    """Why there are no compiled operators; empty where there are."""
    return "" if LOADED else _missing


def version() -> str:
    """Version of the installed package; a source tree that was never installed has none."""
    try:
        return importlib.metadata.version("vampo_core")
    except importlib.metadata.PackageNotFoundError:
        return "0+source"


def has_kernel(tensor: torch.Tensor) -> bool:
    """Whether a compiled kernel serves this tensor's device and dtype; warns once for each reason it does not."""
    if LOADED and tensor.is_cpu:  # the commonest answer, without asking for the device's name
        return True
    device = tensor.device.type
    if not LOADED:
        reason = f"{_missing}; build them with `pip install .` and a C++ compiler"
    elif device == "meta":
        return True
    elif device != "cuda":
        reason = f"there are no compiled operators for {device!r} devices"
    elif not _CUDA:
        reason = "this build has no CUDA operators; install a CUDA wheel, or build with an nvcc that works"
    elif tensor.dtype == torch.float64:
        reason = "float64 has compiled operators only on CPU"
    elif _capability(tensor.get_device()) < _MIN_CUDA_CAPABILITY:
        reason = "the CUDA operators need compute capability 8.0 or newer"
    else:
        return True
    if not torch.compiler.is_compiling():
        _warn_once(reason)
    return False


@functools.cache
def _capability(device_index: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device_index)


@functools.cache
def _warn_once(reason: str) -> None:
    warnings.warn(f"vampo_core runs its pure-PyTorch reference: {reason}", RuntimeWarning, stacklevel=4)
