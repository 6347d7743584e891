"""Encodes the current frame as a token."""

import math

from torch import Tensor, nn

_CHANNELS = 64, 32
_MAX_SIZE = 16
"""Largest height and width after the convolutions; larger frames are averaged over squares."""


class FrameEncoder(nn.Module):
    """Convolutions over the latents of the observed frame, then one linear layer with separate weights for every place.

    The policy needs it for two reasons. Predictive features do not have to show what stands still, such as a goal. And
    the Video Former's queries, which begin as means over all places, learn late where a small object is.

    Args:
        latent_size: channels, height and width of the latents (C, h, w).
        width: channels of the token.
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
        """One token for each clip."""
        return self.layers(latents).unsqueeze(1)
