"""A stand-in for the codec of data that came as latents."""

from pathlib import Path

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor


class LatentCodec(ConfigMixin):
    """Stands for a codec that is not at hand: the data came as its latents, and no frame is encoded or decoded here.

    ``data`` names the latents, because two such codecs may be equal in everything else.
    """

    config_name = "config.json"  # type: ignore[assignment]
    temporal_ratio = 1
    can_decode = False
    takes_published_latents = True
    device = torch.device("cpu")

    @register_to_config
    def __init__(self, latent_channels: int, spatial_ratio: int = 8, scaling_factor: float = 1.0, data: str = ""):
        self.latent_channels, self.spatial_ratio = latent_channels, spatial_ratio
        self.scaling_factor, self.data = scaling_factor, data

    def encode(self, frames: Tensor) -> Tensor:
        """Not possible: there is no codec.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "this predictor was trained on published latents and has no codec to encode frames with, expected latents"
        )

    def decode(self, latents: Tensor) -> Tensor:
        """Not possible: there is no codec.

        Raises:
            ValueError: always.
        """
        raise ValueError("this predictor was trained on published latents and has no codec to decode latents with")

    def fingerprint(self) -> str:
        """Changes with any setting."""
        return f"latents-{self.latent_channels}" + (f"-{self.data}" if self.data else "")

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the settings."""
        self.save_config(folder)
