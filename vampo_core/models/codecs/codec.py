"""Codecs between video frames and the latents that a predictor works on."""

from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.autoencoder_kl_temporal_decoder import AutoencoderKLTemporalDecoder
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from vampo_core.models.codecs.patch_fit import fit_patch_transform
from vampo_core.models.fingerprint import fingerprint
from vampo_core.ops._checks import check_int


class Codec(Protocol):
    """What a predictor asks of its codec. Frames are in [0, 1], RGB; leading axes may be ``[N]`` or ``[B, F]``."""

    @property
    def latent_channels(self) -> int:
        """C."""
        ...

    @property
    def spatial_ratio(self) -> int:
        """Pixels per latent along each side."""
        ...

    @property
    def can_decode(self) -> bool:
        """Whether frames can be encoded and latents decoded here."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the weights are; the CPU for a codec without any."""
        ...

    @property
    def scaling_factor(self) -> float:
        """Latents are the codec's own times this; a first-frame condition is not (SVD)."""
        ...

    def encode(self, frames: Tensor) -> Tensor:
        """``[..., 3, H, W]`` to latents ``[..., C, H / ratio, W / ratio]`` of about unit variance."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """``[..., C, h, w]`` to frames ``[..., 3, h * ratio, w * ratio]`` in [0, 1]."""
        ...

    def fingerprint(self) -> str:
        """Changes with any weight or setting: latents of equal fingerprints may be mixed."""
        ...

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the codec as a diffusers model folder."""
        ...


class PatchCodec(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Linear codec: patches to their principal components, whitened; decoded from each latent and its neighbours.

    Fitted in seconds by :meth:`fit`. Encoder: one strided convolution whose filters are the principal components of
    the patches, each divided by its standard deviation. Decoder: the least-squares linear map from the 3x3 latents
    around a patch to its pixels, which removes most block edges.
    """

    scaling_factor = 1.0
    can_decode = True

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
            frames: what the codec should represent well.
            patch_size: pixels per latent along each side.
            latent_channels: principal components kept.
            max_frames: of more, an evenly spaced subset is used.

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
        latents = self.encoder(_unit_float(flat).to(self.encoder.weight))
        return latents.view(*frames.shape[:-3], *latents.shape[1:])

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """``[..., C, h, w]`` to frames ``[..., 3, h * patch, w * patch]`` in [0, 1]."""
        _check_latents(latents, self.latent_channels)
        patches = self.decoder(latents.reshape(-1, *latents.shape[-3:]).to(self.decoder.weight))
        frames = F.pixel_shuffle(patches, self.spatial_ratio).clamp(0, 1)
        return frames.view(*latents.shape[:-3], *frames.shape[1:])

    def fingerprint(self) -> str:
        """Changes with any weight or setting."""
        return _fingerprint(self)

    def _check(self, frames: Tensor) -> None:
        _check_frames(frames, self.spatial_ratio)


class LatentCodec(ConfigMixin):
    """Stands for a codec that is not at hand: the data came as its latents, and no frame is encoded or decoded here.

    ``data`` says which latents, as nothing else tells two such codecs apart.
    """

    config_name = "config.json"  # type: ignore[assignment]
    can_decode = False
    device = torch.device("cpu")

    @register_to_config
    def __init__(self, latent_channels: int, spatial_ratio: int = 8, scaling_factor: float = 1.0, data: str = ""):
        self.latent_channels, self.spatial_ratio = latent_channels, spatial_ratio
        self.scaling_factor, self.data = scaling_factor, data

    def encode(self, frames: Tensor) -> Tensor:
        """Impossible.

        Raises:
            ValueError: always.
        """
        raise ValueError("this predictor was trained on ready-made latents and has no codec, expected latents")

    def decode(self, latents: Tensor) -> Tensor:
        """Impossible.

        Raises:
            ValueError: always.
        """
        raise ValueError("this predictor was trained on ready-made latents and has no codec to decode them with")

    def fingerprint(self) -> str:
        """Of the settings."""
        return f"latents-{self.latent_channels}" + (f"-{self.data}" if self.data else "")

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the settings."""
        self.save_config(folder)


class VAECodec(nn.Module):
    """SVD's ``AutoencoderKLTemporalDecoder``: latents are the posterior's mode times the scaling factor."""

    can_decode = True

    def __init__(self, vae: AutoencoderKLTemporalDecoder, *, encode_chunk_size: int = 8, decode_chunk_size: int = 14):
        """Wrap a VAE.

        Args:
            vae: frozen here, and run in its own dtype (float32 where it is float16 and asks for upcasting).
            encode_chunk_size: frames encoded at once.
            decode_chunk_size: frames decoded at once, of one clip; fewer need less memory and flicker more.
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
        _check_frames(frames, self.spatial_ratio)
        parts = frames.reshape(-1, *frames.shape[-3:]).split(self.encode_chunk_size)
        modes = [self.vae.encode(2 * _unit_float(part).to(self.vae.dtype) - 1).latent_dist.mode() for part in parts]
        latents = torch.cat(modes).float() * self.scaling_factor
        return latents.view(*frames.shape[:-3], *latents.shape[1:])

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """``[..., F, C, h, w]`` to frames ``[..., F, 3, h * ratio, w * ratio]`` in [0, 1]; F frames are one clip."""
        _check_latents(latents, self.latent_channels)
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
        return _fingerprint(self.vae)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the VAE as a diffusers model folder."""
        self.vae.save_pretrained(folder)


AnyCodec = PatchCodec | LatentCodec | VAECodec


def _unit_float(frames: Tensor) -> Tensor:
    return frames.float() / 255 if frames.dtype == torch.uint8 else frames


def _check_frames(frames: Tensor, ratio: int) -> None:
    if not isinstance(frames, Tensor) or not (frames.is_floating_point() or frames.dtype == torch.uint8):
        kind = frames.dtype if isinstance(frames, Tensor) else type(frames).__name__
        raise TypeError(f"frames is of {kind}, expected a float tensor in [0, 1] or uint8")
    if frames.ndim < 4 or frames.shape[-3] != 3 or frames.shape[-2] % ratio or frames.shape[-1] % ratio:
        raise ValueError(
            f"frames has shape {tuple(frames.shape)}, expected [..., 3, H, W] with H and W multiples of {ratio}"
        )


def _check_latents(latents: Tensor, channels: int) -> None:
    if latents.ndim < 4 or latents.shape[-3] != channels:
        raise ValueError(f"latents has shape {tuple(latents.shape)}, expected [..., {channels}, h, w]")


def _fingerprint(model: ModelMixin) -> str:
    settings = {name: value for name, value in dict(model.config).items() if not name.startswith("_")}
    return fingerprint([type(model).__name__, settings], model.state_dict())
