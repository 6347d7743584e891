"""Sampling: noise schedules and the Euler Hybrid sampler; its diffusers scheduler is in the module ``scheduler``."""

from vampo_core.diffusion.sampler import EulerHybridSampler
from vampo_core.diffusion.sigmas import make_sigmas
from vampo_core.diffusion.trajectory import Denoise, Rollout, RolloutStep

__all__ = ["Denoise", "EulerHybridSampler", "Rollout", "RolloutStep", "make_sigmas"]
