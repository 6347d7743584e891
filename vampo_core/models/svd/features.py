"""Predictive features: what the denoiser's decoder computes in the one forward pass that VAMPO trains."""

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vampo_core.models.svd.condition import Condition

if TYPE_CHECKING:
    from vampo_core.models.svd.predictor import VideoPredictor

DEFAULT_LAYERS = (0, 1)


class FeatureExtractor:
    """Up-block activations of a denoiser's forward pass at the largest noise level (VPP, arXiv 2412.14803, section 4).

    The input is what the sampler starts from, pure noise, without guidance. The noise is that of clip 0 for ``seed``,
    the same for every clip of every batch: a policy that sees an observation again sees the same features again. (Zeros
    would do so too, but the denoiser has only ever seen noise of unit variance there.) Blocks behind the last chosen
    one are not run, and nothing is decoded.

    Args:
        model: the predictor; its weights are shared, not copied, and gradient flows to those that require it.
        layers: indices of the UNet's up blocks; outputs of the earlier ones are enlarged (nearest neighbour) to the
            size of the last one's and all stand side by side on channels.
        seed: of the noise.
        compiled: run the UNet through ``torch.compile``; the first call of each batch size is slow.

    Raises:
        ValueError: there is no such up block, or ``layers`` is empty or not in ascending order.
    """

    def __init__(
        self,
        model: "VideoPredictor",
        *,
        layers: Sequence[int] = DEFAULT_LAYERS,
        seed: int = 0,
        compiled: bool = False,
    ) -> None:
        blocks: Any = model.unet.up_blocks
        layers = tuple(layers)
        if not layers or list(layers) != sorted(set(layers)) or layers[0] < 0 or layers[-1] >= len(blocks):
            raise ValueError(f"layers is {layers}, expected ascending indices of the UNet's {len(blocks)} up blocks")
        self.model, self.seed = model, seed
        self._outputs: list[Tensor] = []
        # a second UNet of the same modules whose decoder ends early: no weight is copied
        unet: Any = copy.copy(model.unet)
        unet._modules = dict(model.unet._modules)
        unet.up_blocks = nn.ModuleList(
            [
                _Tap(block, self._outputs) if i in layers else block if i < layers[-1] else _Skip(block)
                for i, block in enumerate(blocks)
            ]
        )
        unet.conv_norm_out = unet.conv_act = unet.conv_out = nn.Identity()
        self.unet: nn.Module = unet
        self._run: Callable[..., Any] = torch.compile(unet) if compiled else unet
        self._noise: Tensor | None = None

    def __call__(self, condition: Condition) -> Tensor:  # [B, F, D, h, w], in the autocast dtype
        """Features of B clips; h and w are those of the last chosen block's output."""
        num_clips, shape = condition.num_clips, condition.image_latents.shape[1:]
        noise, sigma = self._start(shape, condition.image_latents.device)
        sample = noise.expand(num_clips, -1, -1, -1, -1)
        with self.model.autocast(sample.device):
            self._run(*self.model.unet_inputs(sample, sigma, condition), return_dict=False)
        outputs = self._outputs.copy()  # each [B * F, D_i, h_i, w_i]
        self._outputs.clear()  # or the graph would live until the next call
        size = outputs[-1].shape[-2:]
        outputs = [x if x.shape[-2:] == size else functional.interpolate(x, size=size) for x in outputs]
        return torch.cat(outputs, dim=1).unflatten(0, (num_clips, -1))

    def _start(self, shape: torch.Size, device: torch.device) -> tuple[Tensor, float]:
        """The sampler's starting latents of one clip ``[1, F, C, h, w]`` and their noise level."""
        sampler = self.model.sampler()
        if self._noise is None or self._noise.shape[2:] != shape or self._noise.device != device:
            num_frames = self.model.settings.num_frames
            self._noise = sampler.initial_noise((1, num_frames, *shape), seed=self.seed, device=device)
        return self._noise, sampler.sigmas[0]


class _Tap(nn.Module):
    """Runs a block and notes its output."""

    def __init__(self, block: nn.Module, outputs: list[Tensor]) -> None:
        super().__init__()
        self.block, self.outputs = block, outputs
        self.has_cross_attention = getattr(block, "has_cross_attention", False)
        self.resnets = list(block.resnets)  # type: ignore[arg-type]  # the UNet counts them to hand out skips

    def forward(self, **inputs: Any) -> Tensor:
        self.outputs.append(self.block(**inputs))
        return self.outputs[-1]


class _Skip(nn.Module):
    """Stands for a block behind the last one that is needed; takes its skips and does nothing."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.resnets = list(block.resnets)  # type: ignore[arg-type]

    def forward(self, hidden_states: Tensor, **_: Any) -> Tensor:
        return hidden_states
