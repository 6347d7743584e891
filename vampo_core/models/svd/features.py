"""Predictive features: outputs of the UNet's up blocks in the one forward pass that VAMPO trains."""

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vampo_core.models.condition import Condition


class UpBlockFeatures:
    """Outputs of a UNet's up blocks at the largest noise level (VPP, arXiv 2412.14803, section 4).

    The input is what the sampler starts from, pure noise, without guidance. The noise is the same for every clip of
    every batch: a policy that sees an observation again sees the same features again. (Zeros would do so too, but the
    denoiser has only seen noise of unit variance there.) Blocks after the last chosen one are not run, and nothing is
    decoded.

    Args:
        unet: SVD's UNet; its weights are shared, not copied, and gradient flows to those that require it.
        layers: indices of the up blocks; outputs of the earlier ones are enlarged (nearest neighbor) to the size of the
            last one's, and all stand side by side on channels.
        inputs: function from noisy latents, noise level and condition to the UNet's arguments.
        start: function from the shape ``(C, h, w)`` and the device to the sampler's starting latents of one clip
            ``[1, F, C, h, w]`` and their noise level.
        autocast: function from the device to the context of the forward pass.
        seed: seed of the noise, which ``start`` draws.
        compiled: True runs the UNet through ``torch.compile``; the first call of each batch size is slow.

    Raises:
        ValueError: there is no such up block, or ``layers`` is empty or not in ascending order.
    """

    def __init__(
        self,
        unet: nn.Module,
        layers: Sequence[int],
        *,
        inputs: Callable[[Tensor, float, Condition], tuple[Tensor, ...]],
        start: Callable[[torch.Size, torch.device], tuple[Tensor, float]],
        autocast: Callable[[torch.device], AbstractContextManager],
        seed: int,
        compiled: bool,
    ) -> None:
        self.seed = seed
        self._outputs: list[Tensor] = []
        self._inputs, self._new_start, self._autocast = inputs, start, autocast
        unet = feature_unet(unet, layers, self._outputs)
        self._run: Callable[..., Any] = torch.compile(unet) if compiled else unet
        self._start: tuple[Tensor, float] | None = None

    def __call__(self, condition: Condition) -> Tensor:  # [B, F, D, h, w], in the autocast dtype
        """Features of B clips; h and w are those of the last chosen block's output."""
        shape, device = condition.image_latents.shape[1:], condition.image_latents.device
        if self._start is None or self._start[0].shape[2:] != shape or self._start[0].device != device:
            self._start = self._new_start(shape, device)
        noise, sigma = self._start
        sample = noise.expand(condition.num_clips, -1, -1, -1, -1)
        with self._autocast(device):
            self._run(*self._inputs(sample, sigma, condition), return_dict=False)
        outputs = self._outputs.copy()  # each [B * F, D_i, h_i, w_i]
        self._outputs.clear()  # otherwise the graph would live until the next call
        size = outputs[-1].shape[-2:]
        outputs = [x if x.shape[-2:] == size else functional.interpolate(x, size=size) for x in outputs]
        return torch.cat(outputs, dim=1).unflatten(0, (condition.num_clips, -1))


def feature_unet(unet: nn.Module, layers: Sequence[int], outputs: list[Tensor]) -> nn.Module:
    """A second UNet of the same modules whose decoder ends early; no weight is copied.

    Args:
        unet: SVD's UNet.
        layers: indices of up blocks.
        outputs: list to which each of these blocks appends its output.

    Raises:
        ValueError: there is no such up block, or ``layers`` is empty or not in ascending order.
    """
    blocks: Any = unet.up_blocks
    layers = tuple(layers)
    if not layers or list(layers) != sorted(set(layers)) or layers[0] < 0 or layers[-1] >= len(blocks):
        raise ValueError(f"layers is {layers}, expected ascending indices of the UNet's {len(blocks)} up blocks")
    short: Any = copy.copy(unet)
    short._modules = dict(unet._modules)
    short.up_blocks = nn.ModuleList(
        [
            _Tap(block, outputs) if i in layers else block if i < layers[-1] else _Skip(block)
            for i, block in enumerate(blocks)
        ]
    )
    short.conv_norm_out = short.conv_act = short.conv_out = nn.Identity()
    return short


class _Tap(nn.Module):
    """Runs a block and notes its output."""

    def __init__(self, block: nn.Module, outputs: list[Tensor]) -> None:
        super().__init__()
        self.block, self.outputs = block, outputs
        self.has_cross_attention = getattr(block, "has_cross_attention", False)
        self.resnets = list(block.resnets)  # type: ignore[arg-type]  # the UNet counts them to give each block its skips

    def forward(self, **inputs: Any) -> Tensor:
        self.outputs.append(self.block(**inputs))
        return self.outputs[-1]


class _Skip(nn.Module):
    """Replaces a block after the last chosen one: takes its skips and does nothing."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.resnets = list(block.resnets)  # type: ignore[arg-type]

    def forward(self, hidden_states: Tensor, **_: Any) -> Tensor:
        return hidden_states
