"""Whether rewards of a group differ by more than rounding."""

import torch
from torch import Tensor

SPREAD_ULPS = 4
"""Units in the last place of the largest reward within which rewards count as equal; ``kSpreadUlps`` in the kernels."""

ROUNDING_ULPS = 256
"""Units within which rewards differ, but a sum of thousands of latents rounds by a sizable part of that."""


def is_flat(
    rewards: Tensor,  # [B, G, ...]
    *,
    ulps: int = SPREAD_ULPS,
) -> Tensor:  # [B, ...] bool
    """Whether the rewards of each group differ by rounding only, so that their advantages are 0.

    Divided by its own standard deviation, one unit in the last place would become an advantage of about 1.

    Args:
        rewards: rewards of each group.
        ulps: units in the last place of the largest reward that count as rounding.
    """
    lowest, highest = torch.aminmax(rewards, dim=1)
    magnitude = torch.maximum(lowest.abs(), highest.abs()).double()
    return highest.double() - lowest.double() <= ulps * torch.finfo(rewards.dtype).eps * magnitude
