"""The current frame to a token, place by place."""

from torch import Tensor, nn

_CHANNELS = 64, 32
_MAX_SIZE = 16
"""Largest height and width that are told apart; larger frames are averaged to it behind the convolutions."""


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
        size = min(height, _MAX_SIZE), min(columns, _MAX_SIZE)
        hidden, last = _CHANNELS
        self.layers = nn.Sequential(
            nn.Conv2d(channels, hidden, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(hidden, last, 3, padding=1),
            nn.GELU(),
            nn.AdaptiveAvgPool2d(size),
            nn.Flatten(),
            nn.Linear(last * size[0] * size[1], width),
            nn.LayerNorm(width),
        )

    def forward(self, latents: Tensor) -> Tensor:  # [B, C, h, w] -> [B, 1, width]
        """A token of each clip."""
        return self.layers(latents).unsqueeze(1)
