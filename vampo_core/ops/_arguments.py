"""What each operator accepts, checked in one place for the kernel and its reference."""

from typing import NamedTuple

import torch
from torch import Tensor

from vampo_core.ops._checks import (
    check_dtype,
    check_float,
    check_guidance,
    check_int,
    check_latents,
    check_like,
    check_model_output,
    check_no_grad,
    check_no_overlap,
    check_out,
    check_tensor,
)
from vampo_core.ops.coefficients import PredictionType, euler_coefficients

_STEP_AXES = "B, G, F, C, H, W"


class StepArguments(NamedTuple):
    a: float
    b: float
    sigma_up: float
    guidance_per_frame: Tensor | None  # [F]
    guidance_scale: float  # counts where guidance_per_frame is None
    out_shape: tuple[int, ...]


def check_step(
    sample: Tensor,
    model_output: Tensor,
    sigma: float,
    sigma_next: float,
    eta: float,
    prediction_type: PredictionType,
    model_output_uncond: Tensor | None,
    guidance_scale: float | Tensor | None,
    num_generations: int | None,
    noise: Tensor | None,
    seed: int | None,
    first_clip: int,
    out: Tensor | None,
) -> StepArguments:
    a, b, sigma_up = euler_coefficients(sigma, sigma_next, eta, prediction_type)
    check_latents("sample", sample, "B, F, C, H, W")
    check_model_output("model_output", model_output, sample)
    per_frame, scalar = check_guidance(model_output, model_output_uncond, guidance_scale, sample)
    if sigma_up == 0:
        for name, value in (("noise", noise), ("seed", seed), ("num_generations", num_generations)):
            if value is not None:
                raise ValueError(f"{name} is given with eta = 0, expected None: the deterministic step draws no noise")
        if out is not None:
            check_out(out, sample, sample.shape, "N, F, C, H, W")
            in_place = out.is_set_to(sample) if not torch.compiler.is_compiling() else out is sample
            check_no_overlap(
                out,
                sample=None if in_place else sample,
                model_output=model_output,
                model_output_uncond=model_output_uncond,
                guidance_scale=per_frame,
            )
        return StepArguments(a, b, 0.0, per_frame, scalar, tuple(sample.shape))
    if (noise is None) == (seed is None):
        raise ValueError(
            f"{'neither' if noise is None else 'both'} of noise and seed given with eta > 0, expected exactly one"
        )
    clips, *video = sample.shape
    check_int("first_clip", first_clip, minimum=0, maximum=2**32 - clips)
    if num_generations is not None:
        num_generations = check_int("num_generations", num_generations, minimum=1)
    if noise is None:
        check_int("seed", seed, minimum=0, maximum=2**63 - 1)
        num_generations = num_generations or 1
    else:
        check_tensor("noise", noise, _STEP_AXES)
        num_generations = num_generations or max(1, noise.shape[1])
    shape = (clips, num_generations, *video)
    if noise is not None:
        check_like("noise", noise, shape, _STEP_AXES, (sample.dtype,), "sample", sample.device)
    if out is not None:
        check_out(out, sample, shape, _STEP_AXES)
        check_no_overlap(
            out,
            sample=sample,
            model_output=model_output,
            model_output_uncond=model_output_uncond,
            guidance_scale=per_frame,
            noise=noise,
        )
    return StepArguments(a, b, sigma_up, per_frame, scalar, shape)


def check_log_prob(
    prev_sample: Tensor,
    sample: Tensor,
    model_output: Tensor,
    sigma: float,
    sigma_next: float,
    eta: float,
    prediction_type: PredictionType,
    model_output_uncond: Tensor | None,
    guidance_scale: float | Tensor | None,
    reduction: str,
) -> StepArguments:
    a, b, sigma_up = euler_coefficients(sigma, sigma_next, eta, prediction_type)
    if sigma_up == 0:
        raise ValueError("eta is 0, expected a number above 0: a deterministic step has no density")
    check_latents("sample", sample, "B, F, C, H, W")
    check_no_grad("sample", sample, "the log-probability is differentiable only in the model outputs")
    check_tensor("prev_sample", prev_sample, _STEP_AXES)
    shape = (sample.shape[0], prev_sample.shape[1], *sample.shape[1:])
    check_like("prev_sample", prev_sample, shape, _STEP_AXES, (sample.dtype,), "sample", sample.device)
    check_no_grad("prev_sample", prev_sample, "the log-probability is differentiable only in the model outputs")
    check_model_output("model_output", model_output, sample)
    per_frame, scalar = check_guidance(model_output, model_output_uncond, guidance_scale, sample)
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction is {reduction!r}, expected 'mean' or 'sum'")
    return StepArguments(a, b, sigma_up, per_frame, scalar, shape[:3])


def check_group_advantages(rewards: Tensor, eps: float, clip: float | None) -> tuple[float, float | None]:
    """Return ``(eps, clip)`` as floats."""
    if not isinstance(rewards, Tensor) or rewards.ndim != 2:
        check_tensor("rewards", rewards, "B, G, F")
    check_dtype("rewards", rewards, (torch.float32, torch.float64))
    if rewards.shape[1] < 2:
        raise ValueError(f"rewards has shape {tuple(rewards.shape)}, expected [B, G] or [B, G, F] with G of at least 2")
    eps = check_float("eps", eps, minimum=0)
    if clip is not None:
        clip = check_float("clip", clip)
        if not clip > 0:
            raise ValueError(f"clip is {clip}, expected a number above 0 or None")
    return eps, clip


def check_latent_reward(pred: Tensor, target: Tensor, l1_weight: float, cosine_weight: float) -> tuple[float, float]:
    """Return ``(l1_weight, cosine_weight)`` as floats."""
    check_latents("pred", pred, _STEP_AXES)
    clips, _, *video = pred.shape
    check_like("target", target, (clips, *video), "B, F, C, H, W", (pred.dtype,), "pred", pred.device)
    return check_float("l1_weight", l1_weight), check_float("cosine_weight", cosine_weight)


def check_philox_normal(shape: tuple[int, ...], seed: int, first_clip: int) -> None:
    """Refuse shapes and numbers that the noise counter cannot hold."""
    if len(shape) != 6:
        raise ValueError(f"shape is {tuple(shape)}, expected (B, G, F, C, H, W)")
    check_int("seed", seed, minimum=0, maximum=2**63 - 1)
    check_int("first_clip", first_clip, minimum=0, maximum=2**32 - shape[0])
