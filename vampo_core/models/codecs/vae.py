"""SVD's variational autoencoder as a codec."""

from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl_temporal_decoder import AutoencoderKLTemporalDecoder
from torch import Tensor, nn

from vampo_core.models.codecs.base import (
    check_frames,
    check_latents,
    gradient_of_latents,
    model_fingerprint,
    unit_float,
)
from vampo_core.ops._checks import check_int


class VAECodec(nn.Module):
    """SVD's ``AutoencoderKLTemporalDecoder``: latents are the posterior's mode times the scaling factor."""

    temporal_ratio = 1
    can_decode = True
    takes_published_latents = True

    def __init__(self, vae: AutoencoderKLTemporalDecoder, *, encode_chunk_size: int = 8, decode_chunk_size: int = 14):
        """Wrap a VAE.

        Args:
            vae: SVD's VAE; it is frozen, and runs in its own dtype (float32 if it is float16 and asks for upcasting).
            encode_chunk_size: number of frames encoded at once.
            decode_chunk_size: number of frames of one clip decoded at once; fewer need less memory and flicker more.
        """
        super().__init__()
        if vae.dtype == torch.float16 and vae.config["force_upcast"]:
            vae = vae.float()
        self.vae = vae.eval().requires_grad_(False)
        self.latent_channels = vae.config["latent_channels"]
        self.spatial_ratio = 2 ** (len(vae.config["block_out_channels"]) - 1)
        self.scaling_factor = vae.config["scaling_factor"]
        self.encode_chunk_size = check_int("encode_chunk_size", encode_chunk_size, minimum=1)
        self.decode_chunk_size = check_int("decode_chunk_size", decode_chunk_size, minimum=1)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.vae.device

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """``[..., 3, H, W]`` in [0, 1] (or uint8) to latents ``[..., C, H / ratio, W / ratio]``.

        Raises:
            ValueError: H or W is no multiple of the ratio, or there are not 3 channels.
        """
        check_frames(frames, self.spatial_ratio)
        parts = frames.reshape(-1, *frames.shape[-3:]).split(self.encode_chunk_size)
        modes = [self.vae.encode(2 * unit_float(part).to(self.vae.dtype) - 1).latent_dist.mode() for part in parts]
        latents = torch.cat(modes).float() * self.scaling_factor
        return latents.view(*frames.shape[:-3], *latents.shape[1:])

    @gradient_of_latents
    def decode(self, latents: Tensor) -> Tensor:
        """``[..., F, C, h, w]`` to frames ``[..., F, 3, h * ratio, w * ratio]`` in [0, 1]; F frames are one clip."""
        check_latents(latents, self.latent_channels)
        clips = latents.reshape(-1, *latents.shape[-4:])
        parts = [part for clip in clips for part in clip.split(self.decode_chunk_size)]
        decoded = [
            self.vae.decode(part.to(self.vae.dtype) / self.scaling_factor, num_frames=part.shape[0]).sample
            for part in parts
        ]
        frames = (torch.cat(decoded).float() / 2 + 0.5).clamp(0, 1)
        return frames.view(*latents.shape[:-3], *frames.shape[1:])

    def fingerprint(self) -> str:
        """Changes with any weight or setting."""
        return model_fingerprint(self.vae)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the VAE as a diffusers model folder."""
        self.vae.save_pretrained(folder)
