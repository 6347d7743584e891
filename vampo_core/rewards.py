"""Reward functions for ``reward_funcs``; :mod:`vampo_core.grpo.rewards` holds them and describes the interface."""

from vampo_core.grpo.rewards import RewardFunction, action, latent, motion, moving, pixel

__all__ = ["RewardFunction", "action", "latent", "motion", "moving", "pixel"]
