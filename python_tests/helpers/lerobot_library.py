"""LeRobotDataset's own library (``lerobot`` or PyPI's ``lerobot-dataset``), the judge of what we read and write."""

import contextlib
import importlib
import importlib.util
import sys
import types
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

_MODULES = ("lerobot", "ledataset")


def library() -> Any:
    """The module that defines ``LeRobotDataset``; skips the test where it is not installed."""
    name = next((name for name in _MODULES if importlib.util.find_spec(name)), None)
    if name is None:
        pytest.skip("neither lerobot nor lerobot-dataset is installed")
    with _stand_in_for_torchvision():
        return importlib.import_module(f"{name}.datasets.lerobot_dataset")


def open_with_library(root: Path, **options: Any) -> Any:
    """The dataset at ``root``, opened by its own library."""
    return library().LeRobotDataset("local/dataset", root=root, **options)


def needs_decoder() -> None:
    """Skip the test where the library cannot decode videos."""
    try:
        from torchcodec.decoders import VideoDecoder  # noqa: F401
    except Exception as error:
        pytest.skip(f"torchcodec cannot be used here ({type(error).__name__})")


@contextlib.contextmanager
def _stand_in_for_torchvision() -> Iterator[None]:
    """The one class of torchvision that the library uses, where torchvision is missing or another torch's."""
    try:
        importlib.import_module("torchvision")
    except Exception:
        pass
    else:
        yield
        return

    class ToTensor:
        def __call__(self, image: Any) -> torch.Tensor:  # [3, H, W] float32
            return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255

    names = ("torchvision", "torchvision.transforms", "torchvision.transforms.v2")
    package, transforms, v2 = modules = [types.ModuleType(name) for name in names]
    transforms.ToTensor, transforms.v2, package.transforms = ToTensor, v2, transforms  # type: ignore[attr-defined]
    v2.Transform = v2.functional = object  # type: ignore[attr-defined]
    for name, module in zip(names, modules, strict=True):
        module.__path__, module.__spec__ = [], ModuleSpec(name, None, is_package=True)  # type: ignore[attr-defined]
        sys.modules[name] = module
    try:
        yield
    finally:  # others ask whether torchvision is there
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
