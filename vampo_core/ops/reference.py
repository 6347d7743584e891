"""The four operators in pure PyTorch: same names, same signatures, same errors as ``vampo_core.ops``.

They serve where no compiled kernel does, and they are the oracle of tests and benchmarks.
"""

import math

import torch
from torch import Tensor

from vampo_core.ops._arguments import (
    StepArguments,
    check_group_advantages,
    check_latent_reward,
    check_log_prob,
    check_step,
)
from vampo_core.ops.coefficients import PredictionType
from vampo_core.ops.philox import philox_normal
from vampo_core.ops.results import HybridEulerStep, LatentReward, Reduction

COSINE_EPS = 1e-8


def _mean(step: StepArguments, sample: Tensor, model_output: Tensor, uncond: Tensor | None) -> Tensor:
    """Mean of the step, ``a * x + b * m`` with classifier-free guidance ``m = u + g_f * (c - u)``."""
    model_output = model_output.to(sample.dtype)
    if uncond is not None:
        uncond = uncond.to(sample.dtype)
        scale = step.guidance_scale if step.guidance_per_frame is None else step.guidance_per_frame[:, None, None, None]
        model_output = uncond + scale * (model_output - uncond)
    return (step.a * sample + step.b * model_output).contiguous()


def _log_density(z: Tensor, sigma_up: float, reduction: Reduction) -> Tensor:
    """Gaussian log-density of ``z * sigma_up`` around its mean, reduced over C, H, W."""
    log_prob = -0.5 * z * z - (math.log(sigma_up) + 0.5 * math.log(2 * math.pi))
    return log_prob.mean((-3, -2, -1)) if reduction == "mean" else log_prob.sum((-3, -2, -1))


@torch.no_grad()
def hybrid_euler_step(
    sample: Tensor,  # [N, F, C, H, W] or [B, F, C, H, W]
    model_output: Tensor,  # like sample
    *,
    sigma: float,
    sigma_next: float,
    eta: float = 0.0,
    prediction_type: PredictionType = "v_prediction",
    model_output_uncond: Tensor | None = None,  # like sample
    guidance_scale: float | Tensor | None = None,  # scalar or [F]
    num_generations: int | None = None,
    noise: Tensor | None = None,  # [B, G, F, C, H, W]
    seed: int | None = None,
    first_clip: int = 0,
    out: Tensor | None = None,
) -> HybridEulerStep:
    """See :func:`vampo_core.ops.hybrid_euler_step`."""
    step = check_step(
        sample,
        model_output,
        sigma,
        sigma_next,
        eta,
        prediction_type,
        model_output_uncond,
        guidance_scale,
        num_generations,
        noise,
        seed,
        first_clip,
        out,
    )
    mean = _mean(step, sample, model_output, model_output_uncond)
    if step.sigma_up == 0:
        return HybridEulerStep(mean if out is None else out.copy_(mean), None)
    if noise is None:
        assert seed is not None
        noise = philox_normal(
            step.out_shape, seed=seed, first_clip=first_clip, dtype=sample.dtype, device=sample.device
        )
    prev_sample = (mean.unsqueeze(1) + step.sigma_up * noise).contiguous()
    log_prob = _log_density(noise, step.sigma_up, "mean")
    return HybridEulerStep(prev_sample if out is None else out.copy_(prev_sample), log_prob)


def gaussian_log_prob(
    prev_sample: Tensor,  # [B, G, F, C, H, W]
    sample: Tensor,  # [B, F, C, H, W]
    model_output: Tensor,  # [B, F, C, H, W]
    *,
    sigma: float,
    sigma_next: float,
    eta: float = 1.0,
    prediction_type: PredictionType = "v_prediction",
    model_output_uncond: Tensor | None = None,  # [B, F, C, H, W]
    guidance_scale: float | Tensor | None = None,  # scalar or [F]
    reduction: Reduction = "mean",
) -> Tensor:  # [B, G, F]
    """See :func:`vampo_core.ops.gaussian_log_prob`."""
    step = check_log_prob(
        prev_sample,
        sample,
        model_output,
        sigma,
        sigma_next,
        eta,
        prediction_type,
        model_output_uncond,
        guidance_scale,
        reduction,
    )
    mean = _mean(step, sample, model_output, model_output_uncond)
    return _log_density((prev_sample - mean.unsqueeze(1)) / step.sigma_up, step.sigma_up, reduction)


@torch.no_grad()
def group_advantages(
    rewards: Tensor,  # [B, G] or [B, G, F]
    *,
    eps: float = 1e-8,
    clip: float | None = None,
    normalize_std: bool = True,
) -> Tensor:  # like rewards
    """See :func:`vampo_core.ops.group_advantages`."""
    eps, clip = check_group_advantages(rewards, eps, clip)
    shifted = rewards - rewards[:, :1]  # equal rewards become exact zeros, and their mean stays one
    advantages = shifted - shifted.mean(1, keepdim=True)
    if normalize_std:
        std = advantages.square().sum(1, keepdim=True).div(rewards.shape[1] - 1).sqrt()
        advantages = torch.where(std == 0, 0.0, advantages / (std + eps))
    return advantages if clip is None else advantages.clamp(-clip, clip)


@torch.no_grad()
def latent_reward(
    pred: Tensor,  # [B, G, F, C, H, W]
    target: Tensor,  # [B, F, C, H, W]
    *,
    l1_weight: float = 1.0,
    cosine_weight: float = 1.0,
) -> LatentReward:
    """See :func:`vampo_core.ops.latent_reward`."""
    l1_weight, cosine_weight = check_latent_reward(pred, target, l1_weight, cosine_weight)
    target = target.unsqueeze(1).expand_as(pred).flatten(3)
    pred = pred.flatten(3)
    l1 = (pred - target).abs().mean(-1)
    cosine = torch.nn.functional.cosine_similarity(pred, target, dim=-1, eps=COSINE_EPS)
    return LatentReward(reward=cosine_weight * cosine - l1_weight * l1, l1=l1, cosine=cosine)
