"""Log-density of the stochastic step: what the policy gradient differentiates."""

import torch
from torch import Tensor

from vampo_core import _extension
from vampo_core.ops import reference
from vampo_core.ops._arguments import check_log_prob
from vampo_core.ops.coefficients import PredictionType
from vampo_core.ops.results import Reduction


def gaussian_log_prob(
    prev_sample: Tensor,  # [B, G, F, C, H, W], float32 (float64 on CPU)
    sample: Tensor,  # [B, F, C, H, W]
    model_output: Tensor,  # [B, F, C, H, W], float32, bfloat16 or float16
    *,
    sigma: float,
    sigma_next: float,
    eta: float = 1.0,
    prediction_type: PredictionType = "v_prediction",
    model_output_uncond: Tensor | None = None,  # [B, F, C, H, W]
    guidance_scale: float | Tensor | None = None,  # scalar or [F]
    reduction: Reduction = "mean",
) -> Tensor:  # [B, G, F]
    """Per-frame ``log N(prev_sample; a x + b m, sigma_up^2)`` of the step that :func:`hybrid_euler_step` takes.

    Differentiable in ``model_output`` and ``model_output_uncond``:
    ``dL/dm = sum_g w_g (x'_g - mu) b / (sigma_up^2 CHW)`` with ``w = dL/dlog_prob``, in one pass over the G actions.

    Args:
        prev_sample: the G actions x' of every clip.
        sample: noisy latents x that all G started from.
        model_output: what the denoiser returned for them.
        sigma, sigma_next, eta, prediction_type, model_output_uncond, guidance_scale: as in :func:`hybrid_euler_step`.
        reduction: over C, H, W: ``"mean"`` keeps ratios near 1 for any latent size, ``"sum"`` is the exact density.

    Raises:
        ValueError: a value or shape is wrong, the step has no density (``sigma_up = 0``), or ``sample`` or
            ``prev_sample`` requires grad.
        TypeError: an argument has a wrong type or dtype.
        RuntimeError: tensors are on different devices.
    """
    if not (isinstance(sample, Tensor) and _extension.has_kernel(sample)):
        return reference.gaussian_log_prob(
            prev_sample,
            sample,
            model_output,
            sigma=sigma,
            sigma_next=sigma_next,
            eta=eta,
            prediction_type=prediction_type,
            model_output_uncond=model_output_uncond,
            guidance_scale=guidance_scale,
            reduction=reduction,
        )
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
    inputs = (
        prev_sample,
        sample,
        model_output,
        model_output_uncond,
        step.guidance_per_frame,
        step.guidance_scale,
        step.a,
        step.b,
        step.sigma_up,
        reduction == "mean",
    )
    needs_grad = model_output.requires_grad or (model_output_uncond is not None and model_output_uncond.requires_grad)
    if needs_grad and torch.is_grad_enabled():
        return _GaussianLogProb.apply(*inputs)
    return torch.ops.vampo_core.gaussian_log_prob(*inputs)


class _GaussianLogProb(torch.autograd.Function):
    """Entered only where a gradient is wanted: cheaper per call than an autograd kernel of the operator itself."""

    @staticmethod
    def forward(ctx, *inputs):
        ctx.save_for_backward(*inputs[:5])
        ctx.scalars = inputs[5:]
        return torch.ops.vampo_core.gaussian_log_prob(*inputs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_log_prob):
        cond, uncond = torch.ops.vampo_core.gaussian_log_prob_backward(grad_log_prob, *ctx.saved_tensors, *ctx.scalars)
        return None, None, cond, None if ctx.saved_tensors[3] is None else uncond, *(None,) * 6


if _extension.LOADED:

    @torch.library.register_fake("vampo_core::gaussian_log_prob")
    def _(prev_sample, *args):
        return torch.empty(prev_sample.shape[:3], dtype=prev_sample.dtype, device=prev_sample.device)

    @torch.library.register_fake("vampo_core::gaussian_log_prob_backward")
    def _(grad_log_prob, prev_sample, sample, model_output, uncond, *args):
        cond = torch.empty(model_output.shape, dtype=model_output.dtype, device=model_output.device)
        return cond, cond.new_empty(0 if uncond is None else cond.shape)
