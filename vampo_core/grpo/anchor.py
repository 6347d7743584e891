"""Keeps the denoiser as the base had it at the noise levels that no policy gradient visits."""

import torch
from torch import Tensor, nn

from vampo_core.diffusion.sampler import EulerHybridSampler
from vampo_core.diffusion.streams import ANCHOR, stream_seed
from vampo_core.grpo.rollout import GroupRollout
from vampo_core.models.predictor import Reference
from vampo_core.ops import philox_normal


def deterministic_sigmas(sampler: EulerHybridSampler) -> list[float]:
    """Noise levels at which the sampler evaluates the denoiser without drawing noise."""
    return [sampler.sigmas[i] for i in range(sampler.num_steps) if i not in sampler.stochastic_steps]


def anchor_loss(
    policy: nn.Module, reference: Reference, sampler: EulerHybridSampler, rollout: GroupRollout
) -> Tensor:  # []
    """Mean squared distance of the policy's raw output from the base's, on the policy's predictions with noise added.

    The policy gradient sees only the stochastic steps, but all noise levels share the weights: without an anchor the
    ODE tail loses the precision that likelihood training gave it. Unlike a likelihood term (PPO-ptx, Ouyang et al.
    2022) its gradient is 0 at the base, so that it adds no noise of its own.

    Args:
        policy: the predictor under training.
        reference: the frozen base.
        sampler: sampler whose deterministic noise levels the clips get, in turn.
        rollout: predictions, of which the first generation of each clip is used.
    """
    num_predicted, levels = rollout.steps[0].prev_sample.shape[2], deterministic_sigmas(sampler)
    latents = rollout.latents[:, 0, -num_predicted:]  # without frames that are given
    rows = range(rollout.first_clip, rollout.first_clip + latents.shape[0])
    sigma = latents.new_tensor([levels[(rollout.seed + row) % len(levels)] for row in rows])
    shape = (latents.shape[0], 1, *latents.shape[1:])
    seed = stream_seed(rollout.seed, ANCHOR)
    noise = philox_normal(shape, seed=seed, first_clip=rollout.first_clip, device=latents.device)[:, 0]
    noisy = sampler.process.noisy(latents, noise, sigma)
    with torch.no_grad():
        target = reference(noisy, sigma, rollout.condition)
    return (policy(noisy, sigma, rollout.condition).float() - target.float()).square().mean()
