"""Wan's causal video autoencoder as a codec."""

from pathlib import Path

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


class WanVAECodec(nn.Module):
    """Wan's ``AutoencoderKLWan``: the posterior's mode, normalized per channel with the VAE's own statistics.

    Time is compressed, too: ``temporal_ratio * n + 1`` frames give ``n + 1`` latent frames, the first of which is the
    first frame's own. Single images are videos of one frame.

    Args:
        vae: Wan's VAE; it is frozen, and runs in its own dtype.
    """

    can_decode = True
    takes_published_latents = False
    scaling_factor = 1.0
    _mean: Tensor
    _std: Tensor

    def __init__(self, vae: AutoencoderKLWan) -> None:
        super().__init__()
        self.vae = vae.eval().requires_grad_(False)
        self.latent_channels: int = vae.config["z_dim"]
        self.spatial_ratio: int = vae.config["scale_factor_spatial"]
        self.temporal_ratio: int = vae.config["scale_factor_temporal"]
        for name in ("mean", "std"):
            values = torch.tensor(vae.config[f"latents_{name}"], dtype=torch.float32)
            self.register_buffer(f"_{name}", values.view(-1, 1, 1, 1), persistent=False)  # [C, 1, 1, 1]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.vae.device

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
        pixels = 2 * unit_float(video).to(self.vae.device, self.vae.dtype).transpose(0, 1).unsqueeze(0) - 1
        mode = self.vae.encode(pixels).latent_dist.mode()[0].float()  # [C, F, h, w]
        return ((mode - self._mean) / self._std).transpose(0, 1)

    @gradient_of_latents
    def decode(self, latents: Tensor) -> Tensor:
        """Latent videos ``[..., n + 1, C, h, w]`` to frames ``[..., 4 n + 1, 3, h * ratio, w * ratio]`` in [0, 1]."""
        check_latents(latents, self.latent_channels)
        videos = latents.reshape(-1, *latents.shape[-4:])
        frames = torch.stack([self._decode(video) for video in videos])
        return frames.view(*latents.shape[:-4], *frames.shape[1:])

    def _decode(self, video: Tensor) -> Tensor:  # [F, C, h, w] -> [T, 3, H, W]
        latents = video.float().transpose(0, 1) * self._std + self._mean
        pixels = self.vae.decode(latents.unsqueeze(0).to(self.vae.dtype)).sample[0].float()
        return (pixels / 2 + 0.5).clamp(0, 1).transpose(0, 1)

    def fingerprint(self) -> str:
        """Changes with any weight or setting."""
        return model_fingerprint(self.vae)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the VAE as a diffusers model folder."""
        self.vae.save_pretrained(folder)
