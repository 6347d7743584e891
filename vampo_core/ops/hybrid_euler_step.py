"""The hybrid Euler step: one affine update, deterministic or with G Gaussian draws."""

import torch
from torch import Tensor

from vampo_core import _extension
from vampo_core.ops import reference
from vampo_core.ops._arguments import check_step
from vampo_core.ops._checks import refuse_capture
from vampo_core.ops.coefficients import PredictionType
from vampo_core.ops.results import HybridEulerStep


def hybrid_euler_step(
    sample: Tensor,  # [B, F, C, H, W], float32 (float64 on CPU)
    model_output: Tensor,  # [B, F, C, H, W], float32, bfloat16 or float16
    *,
    sigma: float,
    sigma_next: float,
    eta: float = 0.0,
    prediction_type: PredictionType = "v_prediction",
    model_output_uncond: Tensor | None = None,  # [B, F, C, H, W]
    guidance_scale: float | Tensor | None = None,  # scalar or [F]
    num_generations: int | None = None,
    noise: Tensor | None = None,  # [B, G, F, C, H, W]
    seed: int | None = None,
    first_clip: int = 0,
    out: Tensor | None = None,
) -> HybridEulerStep:
    """One step of the Euler Hybrid sampler (VAMPO, arXiv 2603.19370; k-diffusion ``get_ancestral_step``).

    Every parameterisation is affine in ``x = sample`` and the guided model output ``m``:
    ``prev_sample = a x + b m + sigma_up z`` with ``sigma_up = min(s', eta sqrt(s'^2 (s^2 - s'^2) / s^2))``; for the
    scalars of a rectified flow see :func:`~vampo_core.ops.coefficients.flow_split`.

    ``eta = 0`` takes the deterministic step. ``eta > 0`` draws G generations of every clip from the one sample and
    model output, which are read once, and returns the log-density of each draw. Results carry no gradient: a rollout
    is data. The policy gradient flows through :func:`gaussian_log_prob`.

    Args:
        sample: noisy latents x at ``sigma``.
        model_output: what the denoiser returned for them.
        sigma: current noise level; with ``"flow_prediction"`` at most 1, where samples are pure noise.
        sigma_next: next noise level, ``0 <= sigma_next < sigma``.
        eta: 0 for the deterministic step, 1 for the full ancestral one.
        prediction_type: ``"v_prediction"``, ``"epsilon"`` or ``"sample"`` for ``x = x_0 + sigma * noise``, or
            ``"flow_prediction"``, the velocity ``noise - x_0`` for ``x = (1 - sigma) x_0 + sigma * noise``.
        model_output_uncond: unconditional output u for classifier-free guidance ``u + g_f (m - u)``.
        guidance_scale: g, one number or one per frame.
        num_generations: G, with ``eta > 0``; 1 by default, or what ``noise`` holds.
        noise: the standard normal draws z, with ``eta > 0``; exactly one of ``noise`` and ``seed``.
        seed: key of in-kernel Philox noise, see :func:`philox_normal`, ``0 <= seed < 2**63``.
        first_clip: index of the first clip within a larger batch: parts of a batch draw what the whole would.
        out: buffer for ``prev_sample``, contiguous; in the deterministic step it may be ``sample`` itself.

    Returns:
        ``prev_sample`` ``[B, F, C, H, W]`` and no ``log_prob``, or with ``eta > 0`` ``prev_sample``
        ``[B, G, F, C, H, W]`` and ``log_prob`` ``[B, G, F]``, the mean over C, H, W.

    Raises:
        ValueError: a value or shape is wrong, or ``eta > 0`` with ``sigma_next = 0``, which has no density.
        TypeError: an argument has a wrong type or dtype.
        RuntimeError: tensors are on different devices, or ``seed`` is given while a CUDA graph is captured.
    """
    if not (isinstance(sample, Tensor) and _extension.has_kernel(sample)):
        return reference.hybrid_euler_step(
            sample,
            model_output,
            sigma=sigma,
            sigma_next=sigma_next,
            eta=eta,
            prediction_type=prediction_type,
            model_output_uncond=model_output_uncond,
            guidance_scale=guidance_scale,
            num_generations=num_generations,
            noise=noise,
            seed=seed,
            first_clip=first_clip,
            out=out,
        )
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
    if seed is not None:
        refuse_capture(sample)
    if model_output.requires_grad:
        model_output = model_output.detach()
    if model_output_uncond is not None and model_output_uncond.requires_grad:
        model_output_uncond = model_output_uncond.detach()
    sample = sample.detach() if sample.requires_grad else sample
    noise = noise.detach() if noise is not None and noise.requires_grad else noise
    prev_sample = sample.new_empty(step.out_shape) if out is None else out
    inputs = (sample, model_output, model_output_uncond, step.guidance_per_frame, step.guidance_scale, step.a, step.b)
    if step.sigma_up == 0:
        torch.ops.vampo_core.hybrid_euler_step(*inputs, prev_sample)
        return HybridEulerStep(prev_sample, None)
    log_prob = torch.ops.vampo_core.hybrid_euler_step_stochastic(
        *inputs, step.sigma_up, noise, 0 if seed is None else seed, first_clip, prev_sample
    )
    return HybridEulerStep(prev_sample, log_prob)


if _extension.LOADED:

    @torch.library.register_fake("vampo_core::hybrid_euler_step")
    def _(sample, model_output, uncond, guidance_per_frame, guidance_scale, a, b, prev_sample):
        return None

    @torch.library.register_fake("vampo_core::hybrid_euler_step_stochastic")
    def _(
        sample, model_output, uncond, guidance_per_frame, guidance_scale, a, b,
        sigma_up, noise, seed, first_clip, prev_sample,
    ):  # fmt: skip
        return sample.new_empty(prev_sample.shape[:3])
