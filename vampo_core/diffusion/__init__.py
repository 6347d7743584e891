"""Sampling: noise schedules, the Euler Hybrid sampler and its diffusers scheduler."""

from vampo_core.diffusion.sampler import EulerHybridSampler
from vampo_core.diffusion.scheduler import EulerHybridScheduler, EulerHybridSchedulerOutput
from vampo_core.diffusion.sigmas import make_sigmas
from vampo_core.diffusion.trajectory import Denoise, Rollout, RolloutStep

__all__ = [
    "Denoise",
    "EulerHybridSampler",
    "EulerHybridScheduler",
    "EulerHybridSchedulerOutput",
    "Rollout",
    "RolloutStep",
    "make_sigmas",
]
