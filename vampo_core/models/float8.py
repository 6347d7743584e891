"""A predictor whose denoiser runs its linear layers in float8 (E4M3), through torchao: for the tail of a rollout.

Weights have one scale per output channel, inputs one per row as they come, so what happens to a row does not depend on
the rows beside it. Everything else runs in bfloat16. Nothing here has a derivative.
"""

import copy
import importlib.util
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vampo_core.models import lora
from vampo_core.models.predictor import VideoPredictor

CAPABILITY = (8, 9)  # the first GPUs with float8: Ada and Hopper
DTYPE = torch.bfloat16
"""Precision around the linear layers, of their inputs and outputs."""
_MULTIPLE = 16  # that the sizes of a layer have to be of
_SMALLEST = 1e-12  # for rows of zeros, whose scale would be 0


def check_float8(device: torch.device) -> None:
    """Refuse a device or an installation without float8 before any work.

    Raises:
        ValueError: the device is no GPU that has float8.
        ImportError: torchao is not installed.
    """
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    if capability is None or capability < CAPABILITY:
        name = f"the device {device.type}" if capability is None else torch.cuda.get_device_name(device)
        given = "" if capability is None else f", compute capability {capability[0]}.{capability[1]}"
        raise ValueError(
            f"sampler.tail_dtype is 'float8' on {name}{given}, expected a GPU with compute capability 8.9 or higher"
        )
    if importlib.util.find_spec("torchao") is None:
        raise ImportError("sampler.tail_dtype is 'float8', which needs torchao: `pip install vampo_core[float8]`")


class Float8Copy:
    """A copy of a predictor in float8, which follows its training.

    The copy shares every weight with the original except those of linear layers. Adapters are merged into the layers
    they belong to. The original, its state and its optimizer do not notice.

    Args:
        model: the predictor, on the device where it runs.
    """

    def __init__(self, model: VideoPredictor) -> None:
        network = model.denoiser_network
        layers = {id(layer): Float8Linear(layer) for layer in _linear_layers(network)}
        shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
        self._layers = list(layers.values())
        # what deepcopy finds among these it takes instead of a copy
        self._model = model.frozen_network(copy.deepcopy(network, {**shared, **layers}))
        if model.is_compiled:
            self._model.compile_denoiser()

    def updated(self) -> VideoPredictor:
        """The copy, after layers whose weights have changed since the last call were quantized again."""
        for layer in self._layers:
            layer.update()
        return self._model


class Float8Linear(nn.Module):
    """Computes what a linear layer with its adapters computes, in float8, without gradient.

    Args:
        layer: the layer, which stays as it is.
    """

    weight: Tensor  # [out, in], a torchao tensor
    bias: Tensor | None  # [out]

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self._source = (layer,)  # in a tuple, or it would be registered
        self._seen = self._versions()
        weight, bias = self._quantized()
        # buffers, because CUDA graphs expect these, and nothing else, to stay where they are
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, rows: Tensor) -> Tensor:  # [..., in] -> [..., out]
        return nn.functional.linear(rows.to(DTYPE), self.weight, self.bias)

    @torch.no_grad()
    def update(self) -> None:
        """Quantize again, in place, if a weight of the layer was written to since the last time."""
        seen = self._versions()
        if seen == self._seen:
            return
        weight, bias = self._quantized()
        self.weight.copy_(weight)
        if self.bias is not None:
            self.bias.copy_(bias)
        self._seen = seen

    def _versions(self) -> list[tuple[int, int]]:
        return [(parameter.data_ptr(), parameter._version) for parameter in self._source[0].parameters()]

    @torch.no_grad()
    def _quantized(self) -> tuple[Any, Any]:
        from torchao.quantization import Float8MMConfig, Float8Tensor, PerRow
        from torchao.quantization.quantize_.workflows.float8.float8_tensor import QuantizeTensorToFloat8Kwargs

        (layer,) = self._source
        values = lora.merged(layer) if hasattr(layer, "base_layer") else layer.state_dict()
        bias = values.get("bias")
        scaling: dict[str, Any] = {"granularity": PerRow(), "hp_value_lb": _SMALLEST}
        weight = Float8Tensor.from_hp(
            values["weight"].to(DTYPE),
            mm_config=Float8MMConfig(use_fast_accum=True),
            act_quant_kwargs=QuantizeTensorToFloat8Kwargs(**scaling),
            **scaling,
        )
        return weight, None if bias is None else bias.to(DTYPE, copy=True)


def _linear_layers(module: nn.Module) -> Iterator[nn.Module]:
    """Linear layers of sizes that float8 takes, with the adapters around them."""
    for child in module.children():
        is_adapted = hasattr(child, "base_layer")
        layer: Any = child.base_layer if is_adapted else child
        if isinstance(layer, nn.Linear) and not (layer.in_features % _MULTIPLE or layer.out_features % _MULTIPLE):
            yield child
        elif not is_adapted:  # adapters on other layers keep their precision
            yield from _linear_layers(child)
