"""What the operators return."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Reduction = Literal["mean", "sum"]


@dataclass(frozen=True)
class HybridEulerStep:
    """Result of :func:`vampo_core.ops.hybrid_euler_step`."""

    prev_sample: Tensor  # [N, F, C, H, W], or [B, G, F, C, H, W] where the step drew noise
    log_prob: Tensor | None  # [B, G, F], mean over C, H, W; None for the deterministic step


@dataclass(frozen=True)
class LatentReward:
    """Result of :func:`vampo_core.ops.latent_reward`."""

    reward: Tensor  # [B, G, F]
    l1: Tensor  # [B, G, F]
    cosine: Tensor  # [B, G, F]
