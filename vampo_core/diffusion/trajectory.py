"""The record of a rollout, and the denoiser that a rollout calls."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

Denoise = Callable[[Tensor, float, Tensor | None], tuple[Tensor, Tensor | None]]
"""``denoise(sample [N, F, C, H, W], sigma, clip_index [N] or None) -> (model_output, model_output_uncond or None)``.

Row n belongs to clip ``clip_index[n]``, or to clip n where ``clip_index`` is None. The unconditional output is
None without classifier-free guidance.
"""


@dataclass(frozen=True)
class RolloutStep:
    """One stochastic step of a rollout: the policy's state, action and log-probability."""

    step_index: int
    sigma: float
    sigma_next: float
    sample: Tensor  # [B, F, C, H, W] where the group shares it, else [B, G, F, C, H, W]
    prev_sample: Tensor  # [B, G, F, C, H, W]
    log_prob: Tensor  # [B, G, F]


@dataclass(frozen=True)
class Rollout:
    """Sampled latents and every stochastic step on the way, in order."""

    latents: Tensor  # [B, G, F, C, H, W]
    steps: tuple[RolloutStep, ...]
