"""Predictive features: outputs of the transformer's blocks in the one forward pass that VAMPO trains."""

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from vampo_core.models.condition import Condition


class BlockFeatures:
    """Outputs of a video transformer's blocks at the largest noise level, where the sampler starts.

    Noise, seed and sharing of weights are as in :class:`vampo_core.models.svd.features.UpBlockFeatures`: the same noise
    for every clip, no guidance, nothing decoded, and blocks after the last chosen one are not run.

    Args:
        transformer: transformer; its weights are shared, not copied.
        blocks: name of its list of blocks.
        layers: indices of blocks, whose outputs stand side by side on channels.
        inputs: function from noisy latents, noise level and condition to the transformer's arguments.
        start: function from the shape ``(C, h, w)`` and the device to the sampler's starting latents of one clip
            and their noise level.
        autocast: function from the device to the context of the forward pass.
        seed: seed of the noise, which ``start`` draws.
        compiled: True runs the transformer through ``torch.compile``; the first call of each batch size is slow.

    Raises:
        ValueError: there is no such block, or ``layers`` is empty or not in ascending order.
    """

    def __init__(
        self,
        transformer: nn.Module,
        blocks: str,
        layers: Sequence[int],
        *,
        inputs: Callable[[Tensor, float, Condition], dict[str, Tensor]],
        start: Callable[[torch.Size, torch.device], tuple[Tensor, float]],
        autocast: Callable[[torch.device], AbstractContextManager],
        seed: int,
        compiled: bool,
    ) -> None:
        self.seed = seed
        self._outputs: list[Tensor] = []
        self._inputs, self._new_start, self._autocast = inputs, start, autocast
        self._patch_size: Sequence[int] = transformer.config["patch_size"]  # type: ignore[index,assignment]
        transformer = feature_transformer(transformer, blocks, layers, self._outputs)
        self._run: Callable[..., Any] = torch.compile(transformer) if compiled else transformer
        self._start: tuple[Tensor, float] | None = None

    def __call__(self, condition: Condition) -> Tensor:  # [B, F, D, h, w], in the autocast dtype
        """Features of B clips; h and w count patches."""
        shape, device = condition.image_latents.shape[1:], condition.image_latents.device
        if self._start is None or self._start[0].shape[2:] != shape or self._start[0].device != device:
            self._start = self._new_start(shape, device)
        noise, sigma = self._start
        sample = noise.expand(condition.num_clips, -1, -1, -1, -1)
        inputs = self._inputs(sample, sigma, condition)
        with self._autocast(device):
            self._run(**inputs, return_dict=False)
        outputs = self._outputs.copy()  # each [B, F * h * w, D]
        self._outputs.clear()  # otherwise the graph would live until the next call
        sizes = zip(inputs["hidden_states"].shape[2:], self._patch_size, strict=True)
        grid = [size // patch for size, patch in sizes]  # F, h, w
        return torch.cat(outputs, dim=-1).unflatten(1, grid).permute(0, 1, 4, 2, 3)


def feature_transformer(transformer: nn.Module, blocks: str, layers: Sequence[int], outputs: list[Tensor]) -> nn.Module:
    """A second transformer of the same modules that ends early; no weight is copied.

    Args:
        transformer: transformer.
        blocks: name of its list of blocks.
        layers: indices of blocks.
        outputs: list to which each of these blocks appends its output.

    Raises:
        ValueError: there is no such block, or ``layers`` is empty or not in ascending order.
    """
    whole: Any = getattr(transformer, blocks)
    layers = tuple(layers)
    if not layers or list(layers) != sorted(set(layers)) or layers[0] < 0 or layers[-1] >= len(whole):
        raise ValueError(f"layers is {layers}, expected ascending indices of the transformer's {len(whole)} blocks")
    short: Any = copy.copy(transformer)
    short._modules = dict(transformer._modules)
    kept = [_Tap(block, outputs) if i in layers else block for i, block in enumerate(whole[: layers[-1] + 1])]
    setattr(short, blocks, nn.ModuleList(kept))
    return short


class _Tap(nn.Module):
    """Runs a block and notes its output."""

    def __init__(self, block: nn.Module, outputs: list[Tensor]) -> None:
        super().__init__()
        self.block, self.outputs = block, outputs

    def forward(self, *inputs: Any, **options: Any) -> Tensor:
        self.outputs.append(self.block(*inputs, **options))
        return self.outputs[-1]
