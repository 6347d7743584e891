"""The current frame to a token, place by place."""

import math

from torch import Tensor, nn

_CHANNELS = 64, 32
_MAX_SIZE = 16
"""Largest height and width behind the convolutions; larger frames are averaged over squares."""


class FrameEncoder(nn.Module):
    """Convolutions over the latents of the frame that is observed, then one layer with weights for every place.

    Predictive features need not tell what stands still, a goal for example; and where a small thing lies the Video
    Former's queries would learn late, which from scratch give means over all places.

    Args:
        latent_size: (C, h, w) of the latents.
        width: of the token.
    """

    def __init__(self, latent_size: tuple[int, int, int], *, width: int) -> None:
        super().__init__()
        channels, height, columns = latent_size
        stride = math.ceil(max(height, columns) / _MAX_SIZE)
        num_places = math.ceil(height / stride) * math.ceil(columns / stride)
        hidden, last = _CHANNELS
        self.layers = nn.Sequential(
            nn.Conv2d(channels, hidden, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(hidden, last, 3, padding=1),
            nn.GELU(),
            nn.AvgPool2d(stride, ceil_mode=True),
            nn.Flatten(),
            nn.Linear(last * num_places, width),
            nn.LayerNorm(width),
        )

    def forward(self, latents: Tensor) -> Tensor:  # [B, C, h, w] -> [B, 1, width]
        """A token of each clip."""
        return self.layers(latents).unsqueeze(1)
