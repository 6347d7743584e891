"""Whether rewards of a group differ by more than rounding."""

import torch
from torch import Tensor

SPREAD_ULPS = 4
"""Units in the last place of the largest reward within which rewards count as equal; ``kSpreadUlps`` in the kernels."""


def is_flat(
    rewards: Tensor,  # [B, G, ...]
) -> Tensor:  # [B, ...] bool
    """Whether the rewards of each group differ by rounding only, so that their advantages are 0.

    Divided by its own standard deviation, one unit in the last place would become an advantage of about 1.
    """
    lowest, highest = torch.aminmax(rewards, dim=1)
    magnitude = torch.maximum(lowest.abs(), highest.abs()).double()
    return highest.double() - lowest.double() <= SPREAD_ULPS * torch.finfo(rewards.dtype).eps * magnitude
