"""A linear codec that is fitted to frames in seconds."""

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from vampo_core.models.codecs.base import (
    check_frames,
    check_latents,
    gradient_of_latents,
    model_fingerprint,
    unit_float,
)
from vampo_core.models.codecs.patch_fit import fit_patch_transform
from vampo_core.ops._checks import check_int


class PatchCodec(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Linear codec: patches to their principal components, whitened; decoded from each latent and its neighbors.

    Fitted in seconds by :meth:`fit`. Encoder: one strided convolution whose filters are the principal components of
    the patches, each divided by its standard deviation. Decoder: the least-squares linear map from the 3x3 latents
    around a patch to its pixels, which removes most block edges.
    """

    scaling_factor = 1.0
    temporal_ratio = 1
    can_decode = True
    takes_published_latents = False

    @register_to_config
    def __init__(self, patch_size: int = 8, latent_channels: int = 16):
        super().__init__()
        patch_size = check_int("patch_size", patch_size, minimum=1)
        latent_channels = check_int("latent_channels", latent_channels, minimum=1, maximum=3 * patch_size**2)
        self.spatial_ratio, self.latent_channels = patch_size, latent_channels
        pixels = 3 * patch_size**2
        self.encoder = nn.Conv2d(3, latent_channels, patch_size, stride=patch_size)
        self.decoder = nn.Conv2d(latent_channels, pixels, 3, padding=1)
        self.requires_grad_(False)

    @classmethod
    def fit(
        cls,
        frames: Tensor,  # [N, 3, H, W], float in [0, 1] or uint8
        *,
        patch_size: int = 8,
        latent_channels: int = 16,
        max_frames: int = 2000,
    ) -> "PatchCodec":
        """Fit to frames; deterministic.

        Args:
            frames: frames that the codec should represent well.
            patch_size: number of pixels per latent along each side.
            latent_channels: number of principal components kept.
            max_frames: largest number of frames used; of more frames, an evenly spaced subset.

        Raises:
            ValueError: a shape does not fit, or the frames vary in fewer directions than ``latent_channels``.
        """
        codec = cls(patch_size=patch_size, latent_channels=latent_channels)
        codec._check(frames)
        stride = -(-frames.shape[0] // check_int("max_frames", max_frames, minimum=1))
        transform = fit_patch_transform(frames[::stride], patch_size, latent_channels)
        codec.encoder.weight.copy_(transform.encoder_weight.view_as(codec.encoder.weight))
        codec.encoder.bias.copy_(transform.encoder_bias)
        codec.decoder.weight.copy_(transform.decoder_weight.view_as(codec.decoder.weight))
        codec.decoder.bias.copy_(transform.decoder_bias)
        return codec

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """``[..., 3, H, W]`` in [0, 1] (or uint8) to latents ``[..., C, H / patch, W / patch]``.

        Raises:
            ValueError: H or W is no multiple of the patch size, or there are not 3 channels.
        """
        self._check(frames)
        flat = frames.reshape(-1, *frames.shape[-3:])
        latents = self.encoder(unit_float(flat).to(self.encoder.weight))
        return latents.view(*frames.shape[:-3], *latents.shape[1:])

    @gradient_of_latents
    def decode(self, latents: Tensor) -> Tensor:
        """``[..., C, h, w]`` to frames ``[..., 3, h * patch, w * patch]`` in [0, 1]."""
        check_latents(latents, self.latent_channels)
        patches = self.decoder(latents.reshape(-1, *latents.shape[-3:]).to(self.decoder.weight))
        frames = F.pixel_shuffle(patches, self.spatial_ratio).clamp(0, 1)
        return frames.view(*latents.shape[:-3], *frames.shape[1:])

    def fingerprint(self) -> str:
        """Changes with any weight or setting."""
        return model_fingerprint(self)

    def _check(self, frames: Tensor) -> None:
        check_frames(frames, self.spatial_ratio)
