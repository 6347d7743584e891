"""What a codec between video frames and latents is."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from vampo_core.models.fingerprint import fingerprint

Decode = Callable[[Any, Tensor], Tensor]


class Codec(Protocol):
    """What a predictor needs of its codec. Frames are in [0, 1], RGB; leading axes may be ``[N]`` or ``[B, F]``."""

    @property
    def latent_channels(self) -> int:
        """Channels of the latents (C)."""
        ...

    @property
    def spatial_ratio(self) -> int:
        """Pixels per latent along each side."""
        ...

    @property
    def temporal_ratio(self) -> int:
        """Frames per latent frame, the first frame aside, which has its own; 1 where every frame has."""
        ...

    @property
    def can_decode(self) -> bool:
        """Whether frames can be encoded and latents decoded; False for a stand-in."""
        ...

    @property
    def takes_published_latents(self) -> bool:
        """Whether latents that came with a dataset may be this codec's, if they have as many channels."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the weights are; the CPU for a codec without any."""
        ...

    @property
    def scaling_factor(self) -> float:
        """Factor that latents are multiplied by; the latents of a first-frame condition are not (SVD)."""
        ...

    def encode(self, frames: Tensor, /) -> Tensor:
        """``[..., 3, H, W]`` to latents ``[..., C, H / ratio, W / ratio]`` of about unit variance.

        Where time is compressed, ``[B, T, 3, H, W]`` are videos and ``[N, 3, H, W]`` images.
        """
        ...

    def decode(self, latents: Tensor, /) -> Tensor:
        """``[..., C, h, w]`` to frames ``[..., 3, h * ratio, w * ratio]`` in [0, 1]; with gradient if they have one."""
        ...

    def fingerprint(self) -> str:
        """Changes with any weight or setting: latents of equal fingerprints may be mixed."""
        ...

    def save_pretrained(self, folder: str | Path, /) -> None:
        """Write the codec as a diffusers model folder."""
        ...


def gradient_of_latents(decode: Decode) -> Decode:
    """A ``decode`` that makes no graph for the codec's own weights, only where its latents have a gradient."""

    @functools.wraps(decode)
    def run(self: Any, latents: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and latents.requires_grad):
            return decode(self, latents)

    return run


def unit_float(frames: Tensor) -> Tensor:
    """Frames in [0, 1], from uint8 or float."""
    return frames.float() / 255 if frames.dtype == torch.uint8 else frames


def per_latent_frame(values: Tensor, temporal_ratio: int) -> Tensor:  # [..., T] -> [..., F]
    """Means of what is measured of video frames over those that share a latent frame."""
    if temporal_ratio == 1:
        return values
    return torch.cat([values[..., :1], values[..., 1:].unflatten(-1, (-1, temporal_ratio)).mean(-1)], dim=-1)


def check_frames(frames: Tensor, ratio: int) -> None:
    """Refuse frames that do not divide into latents."""
    if not isinstance(frames, Tensor) or not (frames.is_floating_point() or frames.dtype == torch.uint8):
        kind = frames.dtype if isinstance(frames, Tensor) else type(frames).__name__
        raise TypeError(f"frames is of {kind}, expected a float tensor in [0, 1] or uint8")
    if frames.ndim < 4 or frames.shape[-3] != 3 or frames.shape[-2] % ratio or frames.shape[-1] % ratio:
        raise ValueError(
            f"frames has shape {tuple(frames.shape)}, expected [..., 3, H, W] with H and W multiples of {ratio}"
        )


def check_latents(latents: Tensor, channels: int) -> None:
    """Refuse latents of another number of channels."""
    if latents.ndim < 4 or latents.shape[-3] != channels:
        raise ValueError(f"latents has shape {tuple(latents.shape)}, expected [..., {channels}, h, w]")


def model_fingerprint(model: ModelMixin) -> str:
    """A hash of a model's class, settings and weights."""
    settings = {name: value for name, value in dict(model.config).items() if not name.startswith("_")}
    return fingerprint([type(model).__name__, settings], model.state_dict())
