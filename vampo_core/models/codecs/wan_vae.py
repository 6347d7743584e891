"""Wan's causal video autoencoder as a codec."""

from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from torch import Tensor, nn

from vampo_core.models.codecs.base import (
    check_frames,
    check_latents,
    gradient_of_latents,
    model_fingerprint,
    unit_float,
)
from vampo_core.models.fingerprint import files_summary, fingerprint
from vampo_core.models.loading import check_model, load_model
from vampo_core.models.weight_files import copy_weights, weights_variant


class WanVAECodec(nn.Module):
    """Wan's ``AutoencoderKLWan``: the posterior's mode, normalized per channel with the VAE's own statistics.

    Time is compressed, too: ``temporal_ratio * n + 1`` frames give ``n + 1`` latent frames, the first of which is the
    first frame's own. Single images are videos of one frame.

    Args:
        source: Wan's VAE, or a folder that holds one. From a folder it is loaded when a frame is encoded or decoded for
            the first time, because training on latents needs neither. It is frozen, and float32 from a folder.
        variant: variant of the folder's weight files.

    Raises:
        ValueError: the folder holds no such VAE.
    """

    can_decode = True
    takes_published_latents = False
    scaling_factor = 1.0
    _mean: Tensor
    _std: Tensor

    def __init__(self, source: AutoencoderKLWan | Path, *, variant: str | None = None) -> None:
        super().__init__()
        self._folder = source if isinstance(source, Path) else None
        self._variant = variant
        self._vae: tuple[AutoencoderKLWan, ...] = ()  # in a tuple, so that it is no part of the predictor's state
        if isinstance(source, Path):
            check_model(AutoencoderKLWan, source)
            config = AutoencoderKLWan.load_config(str(source), local_files_only=True)
            weights_variant(source)  # says so now if there are no weights
        else:
            self._vae, config = (source.eval().requires_grad_(False),), source.config
        self.latent_channels: int = config["z_dim"]
        self.spatial_ratio: int = config["scale_factor_spatial"]
        self.temporal_ratio: int = config["scale_factor_temporal"]
        for name in ("mean", "std"):
            values = torch.tensor(config[f"latents_{name}"], dtype=torch.float32)
            self.register_buffer(f"_{name}", values.view(-1, 1, 1, 1), persistent=False)  # [C, 1, 1, 1]

    @property
    def device(self) -> torch.device:
        """Where frames are encoded and decoded."""
        return self._mean.device

    @property
    def vae(self) -> AutoencoderKLWan:
        """The VAE, on the codec's device; loaded now if it was not."""
        if not self._vae:
            assert self._folder is not None
            vae = load_model(AutoencoderKLWan, self._folder, self._variant)
            self._vae = (vae.eval().requires_grad_(False).to(self.device),)
        return self._vae[0]

    def _apply(self, *arguments: Any, **options: Any) -> "WanVAECodec":
        """What ``to`` and its like do: the VAE moves with the statistics."""
        super()._apply(*arguments, **options)
        if self._vae:
            self._vae[0]._apply(*arguments, **options)
        return self

    def release(self) -> None:
        """Let the VAE go, where it can be loaded again."""
        if self._folder is not None:
            self._vae = ()

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """Images ``[N, 3, H, W]`` to latents ``[N, C, h, w]``, or videos to latent videos.

        Frames of a video ``[B, 4 n + 1, 3, H, W]`` become n + 1 latent frames. Values are in [0, 1], or uint8.

        Raises:
            ValueError: H or W is no multiple of the ratio, there are not 3 channels, or a video has a number of frames
                other than 4 n + 1.
        """
        check_frames(frames, self.spatial_ratio)
        if frames.ndim == 4:
            return self.encode(frames.unsqueeze(1))[:, 0]
        if frames.ndim != 5 or frames.shape[1] % self.temporal_ratio != 1:
            ratio = self.temporal_ratio
            raise ValueError(
                f"frames has shape {tuple(frames.shape)}, expected [B, T, 3, H, W] with T = {ratio} n + 1: 1, "
                f"{ratio + 1}, {2 * ratio + 1}, …"
            )
        latents = [self._encode(video) for video in frames]  # one at a time: pixels need far more memory than latents
        return torch.stack(latents)

    def _encode(self, video: Tensor) -> Tensor:  # [T, 3, H, W] -> [F, C, h, w]
        vae = self.vae
        pixels = 2 * unit_float(video).to(self.device, vae.dtype).transpose(0, 1).unsqueeze(0) - 1
        mode = vae.encode(pixels).latent_dist.mode()[0].float()  # [C, F, h, w]
        return ((mode - self._mean) / self._std).transpose(0, 1)

    @gradient_of_latents
    def decode(self, latents: Tensor) -> Tensor:
        """Latent videos ``[..., n + 1, C, h, w]`` to frames ``[..., 4 n + 1, 3, h * ratio, w * ratio]`` in [0, 1]."""
        check_latents(latents, self.latent_channels)
        videos = latents.reshape(-1, *latents.shape[-4:])
        frames = torch.stack([self._decode(video) for video in videos])
        return frames.view(*latents.shape[:-4], *frames.shape[1:])

    def _decode(self, video: Tensor) -> Tensor:  # [F, C, h, w] -> [T, 3, H, W]
        vae = self.vae
        latents = video.float().transpose(0, 1) * self._std + self._mean
        pixels = vae.decode(latents.unsqueeze(0).to(vae.dtype)).sample[0].float()
        return (pixels / 2 + 0.5).clamp(0, 1).transpose(0, 1)

    def fingerprint(self) -> str:
        """Changes with any weight or setting; that of a folder with its config, and names and sizes of weight files."""
        if self._folder is None:
            return model_fingerprint(self.vae)
        config = AutoencoderKLWan.load_config(str(self._folder), local_files_only=True)
        settings = {name: value for name, value in config.items() if not name.startswith("_")}
        return fingerprint([type(self).__name__, settings, *files_summary(self._folder)], {})

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the VAE as a diffusers model folder; what came from a folder is copied."""
        if self._folder is None:
            self.vae.save_pretrained(folder)
        elif self._folder.resolve() != Path(folder).resolve():
            copy_weights(self._folder, Path(folder))
