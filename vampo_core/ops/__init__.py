"""The operators of VAMPO, each one pass over memory; ``reference`` holds the same in pure PyTorch."""

from vampo_core.ops import reference
from vampo_core.ops.gaussian_log_prob import gaussian_log_prob
from vampo_core.ops.group_advantages import group_advantages
from vampo_core.ops.hybrid_euler_step import hybrid_euler_step
from vampo_core.ops.latent_reward import latent_reward
from vampo_core.ops.philox_normal import philox_normal
from vampo_core.ops.results import HybridEulerStep, LatentReward

__all__ = [
    "HybridEulerStep",
    "LatentReward",
    "gaussian_log_prob",
    "group_advantages",
    "hybrid_euler_step",
    "latent_reward",
    "philox_normal",
    "reference",
]
