"""The deterministic step of a trajectory: the fused operator, and its gradient where one is asked for."""

from typing import Any

import torch
from torch import Tensor

from vampo_core.ops import hybrid_euler_step
from vampo_core.ops.coefficients import PredictionType, euler_coefficients


def deterministic_step(
    sample: Tensor,  # [N, F, C, H, W]
    output: Tensor,  # of the denoiser, like sample
    *,
    sigma: float,
    sigma_next: float,
    prediction_type: PredictionType,
    uncond: Tensor | None = None,  # like sample
    guidance_scale: Tensor | None = None,  # [F]
    out: Tensor | None = None,  # like sample; unused where there is a gradient
) -> Tensor:  # like sample
    """Euler's step of the probability-flow ODE, see :func:`~vampo_core.ops.hybrid_euler_step`.

    Under grad mode it is differentiable in sample and outputs. The step is affine in them, so its gradient is that of
    what comes after, times two scalars.
    """
    options: dict[str, Any] = {"sigma": sigma, "sigma_next": sigma_next, "prediction_type": prediction_type}
    inputs = (sample, output, uncond)
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs):
        return _AffineStep.apply(*inputs, guidance_scale, options)
    step = hybrid_euler_step(
        sample, output, model_output_uncond=uncond, guidance_scale=guidance_scale, out=out, **options
    )
    return step.prev_sample


class _AffineStep(torch.autograd.Function):
    """``a * sample + b * (uncond + scale * (output - uncond))``."""

    @staticmethod
    def forward(
        ctx: Any,
        sample: Tensor,
        output: Tensor,
        uncond: Tensor | None,
        guidance_scale: Tensor | None,  # [F]
        options: dict[str, Any],
    ) -> Tensor:
        ctx.options, ctx.dtypes = options, (output.dtype, None if uncond is None else uncond.dtype)
        ctx.save_for_backward(guidance_scale)
        step = hybrid_euler_step(
            sample, output.contiguous(), model_output_uncond=uncond, guidance_scale=guidance_scale, **options
        )
        return step.prev_sample

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        options, (scale,) = ctx.options, ctx.saved_tensors
        a, b, _ = euler_coefficients(options["sigma"], options["sigma_next"], 0.0, options["prediction_type"])
        to_output, (dtype, uncond_dtype) = b * grad, ctx.dtypes
        if scale is None:
            return a * grad, to_output.to(dtype), None, None, None
        scale = scale.view(-1, 1, 1, 1)
        return a * grad, (scale * to_output).to(dtype), ((1 - scale) * to_output).to(uncond_dtype), None, None
