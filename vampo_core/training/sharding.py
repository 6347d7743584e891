"""FSDP2: every process keeps a share of a predictor's weights, gradients and optimizer state.

Only the denoiser network is sharded, block by block. The optimizer sees plain tensors: a share is a parameter of its
own, which AdamW, clipping and the running mean treat like any other.
"""

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from vampo_core.config import ConfigError, VampoConfig
from vampo_core.models.predictor import Reference, VideoPredictor
from vampo_core.training.processes import copy_from_main, launcher_shards


def is_sharding(accelerator: Accelerator) -> bool:
    """Whether this run's predictors are to be sharded: the launcher asks for it, and there is more than one process."""
    return accelerator.num_processes > 1 and launcher_shards()


def is_sharded(network: nn.Module) -> bool:
    """Whether every forward of a network is collective: all processes have to make the same number of them."""
    return isinstance(network, FSDPModule)


def check_sharding(config: VampoConfig, accelerator: Accelerator) -> None:
    """Refuse settings that need whole weights.

    Raises:
        ConfigError: there is one, and the predictor is to be sharded.
    """
    if not is_sharding(accelerator):
        return
    if config.sampler.tail_dtype == "float8":
        raise ConfigError(
            "sampler.tail_dtype is 'float8' with FSDP, expected another precision: it copies whole weights"
        )
    if config.model.compile:
        raise ConfigError("model.compile is True with FSDP, expected False: weights are gathered between the blocks")


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """The blocks that a diffusers network runs one after the other; each is gathered when it runs."""
    blocks: list[nn.Module] = []
    for name, child in network.named_children():  # blocks; down_blocks, mid_block, up_blocks
        if "block" in name:
            blocks += child if isinstance(child, nn.ModuleList) else [child]
    return blocks


def shard_predictor(model: VideoPredictor, config: VampoConfig, accelerator: Accelerator) -> None:
    """Leave this process its share of a predictor's denoiser, if the run is sharded.

    Raises:
        ConfigError: a setting needs whole weights.
    """
    check_sharding(config, accelerator)
    if is_sharding(accelerator):
        _shard(model.denoiser_network, model.dtype, accelerator)


def frozen_reference(model: VideoPredictor, accelerator: Accelerator) -> Reference:
    """:meth:`VideoPredictor.frozen_reference`, sharded where the predictor will be; to be called before that."""
    if not is_sharding(accelerator):
        return model.to(accelerator.device).frozen_reference()
    reference = model.frozen_reference()
    if isinstance(reference, VideoPredictor):
        _shard(reference.denoiser_network, model.dtype, accelerator)
    return reference


def _shard(network: nn.Module, dtype: torch.dtype, accelerator: Accelerator) -> None:
    """Shard blocks and the rest of a network; only one of them is whole on the device at a time.

    Weights are gathered in the precision of autocast, which would cast them anyway; gradients are added up in float32.
    """
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    half = None if dtype == torch.float32 else dtype
    # autocast casts inputs, where it casts at all: times must keep their precision
    policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for unit in (*blocks_of(network), network):
        whole = [parameter for parameter in unit.parameters() if not isinstance(parameter, DTensor)]
        unit.to(accelerator.device)
        copy_from_main([parameter.data for parameter in whole if parameter.requires_grad], accelerator)
        kind = type(unit)
        fully_shard(unit, mesh=mesh, reshard_after_forward=True, mp_policy=policy)
        # diffusers and PEFT write these into their configurations
        type(unit).__name__, type(unit).__module__ = kind.__name__, kind.__module__
    for module in network.modules():
        if isinstance(module, FSDPModule):
            # what the first gathering allocates must not belong to the rollout's inference mode
            module.unshard()
            module.reshard()
    # outputs are views, which nothing here changes in place
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")


def own_share(parameter: nn.Parameter) -> nn.Parameter:
    """The part of a sharded parameter that this process keeps, in the same memory; a whole parameter as it is."""
    if not isinstance(parameter, DTensor):
        return parameter
    share: Any = parameter.detach()
    return nn.Parameter(share.to_local(), requires_grad=parameter.requires_grad)


def take_gradients(parameters: Sequence[nn.Parameter], shares: Sequence[nn.Parameter]) -> None:
    """Move gradients from sharded parameters to this process's shares; they are means over processes already."""
    for parameter, share in zip(parameters, shares, strict=True):
        if isinstance(parameter, DTensor):
            gradient: Any = parameter.grad
            share.grad, parameter.grad = None if gradient is None else gradient.to_local(), None


def whole_norms(
    norms: Tensor,  # [N], of this process's shares, or of whole tensors
    is_share: Sequence[bool],
) -> Tensor:  # [N]
    """Norms of whole tensors, the same on every process."""
    mask = torch.tensor(is_share, device=norms.device)
    squares = torch.where(mask, norms.double().square(), 0.0)
    torch.distributed.all_reduce(squares)
    return torch.where(mask, squares.sqrt().to(norms.dtype), norms)


def share_overflow(scaler: Any, optimizer: torch.optim.Optimizer) -> None:
    """Have every process's gradient scaler know of an overflow in any share."""
    if not scaler.is_enabled():
        return
    for found in scaler._found_inf_per_device(optimizer).values():
        torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)


def part_of(
    whole: Tensor,  # of the parameter's shape, or another, such as a count of steps
    parameter: Tensor,
) -> Tensor:
    """The share of this process in a tensor that belongs to a parameter; all of it where the parameter is whole."""
    if not isinstance(parameter, DTensor) or whole.shape != parameter.shape:
        return whole
    mesh = parameter.device_mesh
    parts = whole.chunk(mesh.size(), dim=0)
    rank = mesh.get_local_rank()
    return parts[rank] if rank < len(parts) else whole[:0]


def as_distributed(share: Tensor, parameter: nn.Parameter) -> Tensor:
    """A share as the tensor that it is a part of, in the same memory; what belongs to a whole parameter as it is."""
    if not isinstance(parameter, DTensor) or not share.ndim:
        return share
    return DTensor.from_local(
        share,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


@contextlib.contextmanager
def whole_weights(model: nn.Module, accelerator: Accelerator) -> Iterator[None]:
    """Give the main process a model's whole weights, on the CPU, gathered tensor by tensor. Every process enters."""
    swapped: list[tuple[nn.Module, str, nn.Parameter]] = []
    try:
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        for module in model.modules():
            for name, parameter in list(module._parameters.items()):
                if isinstance(parameter, DTensor):
                    whole = parameter.detach().full_tensor()  # collective
                    if accelerator.is_main_process:
                        swapped.append((module, name, parameter))
                        module._parameters[name] = nn.Parameter(whole.cpu(), requires_grad=parameter.requires_grad)
        yield
    finally:
        for module, name, parameter in swapped:
            module._parameters[name] = parameter
