"""Actions and states on a scale from -1 to 1, the range of the training data."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Ranges:
    """Smallest and largest values in the training data, which normalization maps to -1 and 1."""

    action: Tensor  # [2, A]
    state: Tensor  # [2, S]


def normalize(
    values: Tensor,  # [..., D]
    limits: Tensor,  # [2, D], smallest and largest
) -> Tensor:  # [..., D]
    """Map the range of the limits to [-1, 1]; a number that never varied becomes its difference from that value."""
    center, scale = _center_scale(limits)
    return (values - center) / scale


def unnormalize(
    values: Tensor,  # [..., D]
    limits: Tensor,  # [2, D]
) -> Tensor:  # [..., D]
    """The inverse of :func:`normalize`; a number that never varied gets that value."""
    center, scale = _center_scale(limits)
    return center + values * scale * (limits[1] > limits[0])


def _center_scale(limits: Tensor) -> tuple[Tensor, Tensor]:
    scale = (limits[1] - limits[0]) / 2
    return (limits[0] + limits[1]) / 2, torch.where(scale > 0, scale, torch.ones_like(scale))
