"""Networks of action decoders: the latents of two frames to a row of numbers."""

import math

import torch
from torch import Tensor, nn

from vampo_core.policy.inverse_dynamics.settings import DecoderSettings

_SIDE = 8
"""Larger latents are first brought near this size, so that a decoder costs the same for every codec."""


class DifferenceNetwork(nn.Module):
    """Convolutions over both frames and their difference, then two linear layers."""

    def __init__(self, settings: DecoderSettings) -> None:
        super().__init__()
        (channels, height, columns), width = settings.latent_size, settings.width
        step = _step(height, columns)
        self.layers = nn.Sequential(
            nn.Conv2d(3 * channels, width, kernel_size=max(3, step), stride=step, padding=1 if step == 1 else 0),
            nn.SiLU(),
            nn.Conv2d(width, width, kernel_size=3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, 16, kernel_size=1),
            nn.Flatten(),
            nn.LazyLinear(4 * width),
            nn.SiLU(),
            nn.Linear(4 * width, settings.num_actions * settings.action_dim),
        )
        _materialize(self, settings)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:  # [N, C, h, w] each -> [N, n * A]
        return self.layers(torch.cat([first, second, second - first], dim=1))


class JudgeNetwork(nn.Module):
    """Channels are mixed before places, the difference is not given, and dropout takes part: other mistakes."""

    def __init__(self, settings: DecoderSettings) -> None:
        super().__init__()
        (channels, height, columns), width = settings.latent_size, settings.width
        step = _step(height, columns)
        self.layers = nn.Sequential(
            nn.Conv2d(2 * channels, width * 3 // 2, kernel_size=step, stride=step),
            nn.SiLU(),
            nn.Conv2d(width * 3 // 2, 32, kernel_size=3, padding=1),
            nn.SiLU(),
            nn.Flatten(),
            nn.Dropout(0.1),
            nn.LazyLinear(6 * width),
            nn.SiLU(),
            nn.Linear(6 * width, settings.num_actions * settings.action_dim),
        )
        _materialize(self, settings)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:  # [N, C, h, w] each -> [N, n * A]
        return self.layers(torch.cat([first, second], dim=1))


NETWORKS = {"difference": DifferenceNetwork, "judge": JudgeNetwork}
"""Architectures by name."""


def _step(height: int, columns: int) -> int:
    """Stride of the first convolution."""
    return max(1, math.ceil(min(height, columns) / _SIDE))


def _materialize(network: nn.Module, settings: DecoderSettings) -> None:
    """Give lazy layers their size."""
    frame = torch.zeros(1, *settings.latent_size)
    with torch.no_grad():
        network(frame, frame)
