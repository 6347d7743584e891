"""The operators in pure PyTorch: same names, same signatures, same errors as ``vampo_core.ops``.

They are used where there is no compiled kernel, and they are the oracle of tests and benchmarks.
"""

import math

import torch
from torch import Tensor

from vampo_core.ops._arguments import (
    StepArguments,
    check_group_advantages,
    check_latent_reward,
    check_log_prob,
    check_philox_normal,
    check_step,
)
from vampo_core.ops.coefficients import PredictionType
from vampo_core.ops.results import HybridEulerStep, LatentReward, Reduction
from vampo_core.ops.spread import is_flat

COSINE_EPS = 1e-8
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF


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
        advantages = advantages / (std + eps)
    advantages = torch.where(is_flat(rewards).unsqueeze(1), 0.0, advantages)
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


def philox_normal(
    shape: tuple[int, ...],  # (B, G, F, C, H, W)
    *,
    seed: int,
    first_clip: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:  # [B, G, F, C, H, W]
    """See :func:`vampo_core.ops.philox_normal`."""
    check_philox_normal(shape, seed, first_clip)
    num_clips, num_generations, num_frames = shape[:3]
    frame_size = math.prod(shape[3:])
    num_blocks = (frame_size + 3) // 4
    axes = (first_clip + torch.arange(num_clips), torch.arange(num_generations), torch.arange(num_frames))
    clip, generation, frame, block = torch.meshgrid(*axes, torch.arange(num_blocks), indexing="ij")
    x0, x1, x2, x3 = philox4x32_10([i.to(device) for i in (block, frame, generation, clip)], seed)
    normals = torch.stack([*_box_muller(x0, x1), *_box_muller(x2, x3)], dim=-1)  # [B, G, F, num_blocks, 4]
    return normals.flatten(-2)[..., :frame_size].to(dtype).reshape(shape)


def philox4x32_10(counter: list[Tensor], seed: int) -> list[Tensor]:
    """Ten Philox rounds.

    Args:
        counter: four broadcastable int64 tensors holding 32-bit words.
        seed: 64-bit key.

    Returns:
        four int64 tensors holding 32-bit random words.
    """
    key = [seed & _MASK, (seed >> 32) & _MASK]
    x0, x1, x2, x3 = torch.broadcast_tensors(*counter)
    for _ in range(10):
        high0, low0 = _multiply(x0, _MULTIPLIERS[0])
        high1, low1 = _multiply(x2, _MULTIPLIERS[1])
        x0, x1, x2, x3 = high1 ^ x1 ^ key[0], low1, high0 ^ x3 ^ key[1], low0
        key = [(k + increment) & _MASK for k, increment in zip(key, _KEY_INCREMENTS, strict=True)]
    return [x0, x1, x2, x3]


def _multiply(x: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """High and low 32-bit words of a 64-bit product, in steps that fit a signed 64-bit integer."""
    low = x * (factor & 0xFFFF)
    high = x * (factor >> 16) + (low >> 16)
    return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)


def _box_muller(x0: Tensor, x1: Tensor) -> tuple[Tensor, Tensor]:
    """Two 32-bit words to two standard normals; the uniform in the logarithm is rounded to float32 first."""
    u = x0.to(torch.float32) * 2**-32 + 2**-33
    radius = torch.sqrt(-2 * torch.log(u.to(torch.float64)))
    angle = x1.to(torch.float64) * (2 * math.pi * 2**-32)
    return radius * torch.cos(angle), radius * torch.sin(angle)
