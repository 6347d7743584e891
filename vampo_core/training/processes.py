"""The processes of a run: how they are set up, and what they tell each other."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

from vampo_core.config import ConfigError

T = TypeVar("T")
_UNSUPPORTED = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
}
"""What ``accelerate launch`` sets in the environment for plugins that are not supported."""
_USE_FSDP = "ACCELERATE_USE_FSDP"
_FSDP = {
    "FSDP_VERSION": ("2", "1", "start the run with `accelerate launch --use_fsdp --fsdp_version 2`"),
    "FSDP_RESHARD_AFTER_FORWARD": ("true", "true", "blocks are always given back after they ran"),
    "FSDP_OFFLOAD_PARAMS": ("false", "false", "shares always stay on the device"),
    "FSDP_ACTIVATION_CHECKPOINTING": ("false", "false", "set model.gradient_checkpointing=true instead"),
}
"""What it sets for FSDP: the supported value, the one that stands for none, and what to do."""


def new_accelerator() -> Accelerator:
    """The accelerator of this process.

    Precision is ``model.dtype`` and gradients are accumulated as the configuration says; accelerate's own settings for
    both are ignored. FSDP is not accelerate's either: see :mod:`vampo_core.training.sharding`.

    Raises:
        ConfigError: the launcher asks for a plugin, or for a setting of FSDP, that is not supported.
    """
    for variable, plugin in _UNSUPPORTED.items():
        if _is_set(variable):
            raise ConfigError(
                f"the launcher asks for {plugin} ({variable}=true), expected plain data parallelism or FSDP 2: start "
                "the run with `accelerate launch --multi_gpu`, or with `--use_fsdp --fsdp_version 2`"
            )
    if not launcher_shards():
        return Accelerator(mixed_precision="no", gradient_accumulation_steps=1)
    for variable, (supported, default, advice) in _FSDP.items():
        value = os.environ.get(variable, default).lower()
        if value != supported:
            raise ConfigError(f"the launcher asks for FSDP with {variable}={value}, expected {supported}: {advice}")
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"  # transformers would load text encoders without weights
    with _without(_USE_FSDP):
        return Accelerator(mixed_precision="no", gradient_accumulation_steps=1)


def launcher_shards() -> bool:
    """Whether the launcher asks for FSDP."""
    return _is_set(_USE_FSDP)


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() in ("1", "true", "yes")


@contextlib.contextmanager
def _without(variable: str) -> Iterator[None]:
    """The environment without a variable."""
    value = os.environ.pop(variable)
    try:
        yield
    finally:
        os.environ[variable] = value


def from_main(value: T) -> T:
    """The main process's value, on every process."""
    values = [value]
    broadcast_object_list(values)
    return values[0]


def gathered(value: T) -> list[T]:
    """Every process's value, in the order of their ranks."""
    return gather_object([value])


def average(tensors: list[Tensor], accelerator: Accelerator) -> None:
    """Replace tensors of one device by their means over processes, in place and with one all-reduce per dtype.

    One flat buffer instead of ``DistributedDataParallel``'s hooks: the gradient of an update comes from several forward
    and backward passes (accumulated parts, stochastic steps, the anchor), some outside of the model's own ``forward``,
    and is still averaged exactly once.
    """
    if accelerator.num_processes == 1:
        return
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        alike = [tensor for tensor in tensors if tensor.dtype == dtype]
        flat = torch.cat([tensor.flatten() for tensor in alike])
        torch.distributed.all_reduce(flat)
        flat /= accelerator.num_processes
        for tensor, mean in zip(alike, flat.split([tensor.numel() for tensor in alike]), strict=True):
            tensor.copy_(mean.view_as(tensor))


def total(count: Tensor, accelerator: Accelerator) -> Tensor:
    """The sum of a number over processes."""
    if accelerator.num_processes > 1:
        torch.distributed.all_reduce(count)
    return count


def copy_from_main(tensors: list[Tensor], accelerator: Accelerator) -> None:
    """Replace tensors by those of the main process, in place."""
    if accelerator.num_processes > 1:
        for tensor in tensors:
            torch.distributed.broadcast(tensor, src=0)


def reduced(values: dict[str, Tensor], accelerator: Accelerator) -> dict[str, Any]:
    """Means of scalars over processes, as Python numbers."""
    means = accelerator.reduce(torch.stack([value.float() for value in values.values()]), reduction="mean")
    return dict(zip(values, means.tolist(), strict=True))
