"""Compute of training in denoiser forwards, which does not depend on the machine: one video once through the denoiser.

A backward pass counts as two. Recomputed activations, codecs, rewards and optimizers do not count.
"""

from vampo_core.config import GRPOConfig
from vampo_core.diffusion.settings import EulerHybridSettings

FORWARD_AND_BACKWARD = 3


def forwards_per_iteration(grpo: GRPOConfig, sampler: EulerHybridSettings) -> int:
    """Denoiser forwards of one VAMPO iteration.

    Args:
        grpo: settings of the loop.
        sampler: schedule and stochastic steps of the rollouts.
    """
    first, *later = sampler.stochastic_steps
    costs = [2 if sampler.guides(sigma) else 1 for sigma in sampler.sigmas[:-1]]
    shared, drawn = sum(costs[: first + 1]), grpo.num_generations * sum(costs[first + 1 :])
    # the group shares the sample of its first stochastic step only
    passes = costs[first] + grpo.num_generations * sum(costs[step] for step in later)
    if grpo.credit == "pathwise":
        drawn *= 2  # the derivative goes back through the tail, to its inputs only: half of a backward pass
    updated = FORWARD_AND_BACKWARD * passes * grpo.num_inner_epochs
    reused = costs[first] if grpo.reuse_first_step else 0  # the forward pass that drew the group
    compared = passes * grpo.num_inner_epochs if grpo.kl_coef > 0 else 0
    per_clip = shared + drawn + updated - reused + compared
    if grpo.anchor_coef > 0:
        per_clip += (FORWARD_AND_BACKWARD + 1) * grpo.num_inner_epochs
    return per_clip * grpo.batch_size


def likelihood_updates(num_forwards: int, *, batch_size: int) -> int:
    """Updates on the denoising loss that cost no more than ``num_forwards``, and at least one."""
    return max(1, num_forwards // (FORWARD_AND_BACKWARD * batch_size))
