"""The policy-gradient loss of GRPO on Gaussian log-probabilities."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vampo_core.diffusion.settings import EulerHybridSettings

MAX_LOG_RATIO = 20.0


@dataclass(frozen=True)
class PolicyLoss:
    """A loss and what it says about the step; everything but ``loss`` is detached."""

    loss: Tensor  # []
    ratio_mean: Tensor  # []
    ratio_max_dev: Tensor  # [], largest |ratio - 1|
    approx_kl: Tensor  # [], Schulman's k3 estimate of KL(old || new)
    clip_fraction: Tensor  # [], share of ratios outside of the clip range
    num_ratios: int  # B * G * F
    replay_max_dev: Tensor | None = None  # [], largest |replayed - drawn log-probability|
    kl: Tensor | None = None  # [], from the base; part of the loss where grpo.kl_coef is above 0
    anchor: Tensor | None = None  # [], squared distance from the base along the ODE tail; as kl, with grpo.anchor_coef


def clipped_surrogate(
    log_prob: Tensor,  # [B, G, F], with gradient
    old_log_prob: Tensor,  # [B, G, F]
    advantages: Tensor,  # [B, G, F]
    *,
    clip_range: float,
) -> PolicyLoss:
    """Clipped surrogate of PPO (Schulman et al. 2017, equation 7), as a loss to minimise.

    Mean over B, G, F of ``max(-A ratio, -A clip(ratio, 1 - clip_range, 1 + clip_range))`` with
    ``ratio = exp(log_prob - old_log_prob)``. Because log-probabilities are means over C, H, W, ratios stay near 1 and
    useful clip ranges are small, 1e-4 to 1e-2.

    Raises:
        ValueError: the shapes differ.
    """
    if not log_prob.shape == old_log_prob.shape == advantages.shape:
        raise ValueError(
            f"log_prob, old_log_prob and advantages have shapes {tuple(log_prob.shape)}, {tuple(old_log_prob.shape)} "
            f"and {tuple(advantages.shape)}, expected one shape [B, G, F]"
        )
    log_ratio = (log_prob - old_log_prob).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    loss = torch.maximum(-advantages * ratio, -advantages * clipped).mean()
    with torch.no_grad():
        return PolicyLoss(
            loss=loss,
            ratio_mean=ratio.mean(),
            ratio_max_dev=(ratio - 1).abs().max(),
            approx_kl=(torch.expm1(log_ratio) - log_ratio).mean(),
            clip_fraction=((ratio - 1).abs() > clip_range).float().mean(),
            num_ratios=ratio.numel(),
        )


def step_weights(settings: EulerHybridSettings, *, rectified: bool) -> dict[int, float]:
    """Weight of every stochastic step in the loss, with mean 1.

    Args:
        settings: schedule and stochastic steps.
        rectified: whether a step counts by ``sigma_up / |b|``, the inverse of the scale of its policy gradient
            ``b (x' - mu) / sigma_up^2`` (Flash-GRPO); otherwise all steps count alike.
    """
    steps = settings.stochastic_steps
    if not rectified:
        return dict.fromkeys(steps, 1.0)
    scales = {step: settings.coefficients(step) for step in steps}
    weights = {step: scale.sigma_up / abs(scale.b) for step, scale in scales.items()}
    mean = sum(weights.values()) / len(weights)
    return {step: weight / mean for step, weight in weights.items()}


def pathwise_surrogate(
    model_output: Tensor,  # [B, F, C, H, W], with gradient; guided where guidance is on
    slope: Tensor,  # [B, G, F, C, H, W], derivative of the mean reward with respect to the draws
    *,
    b: float,
) -> PolicyLoss:
    """A loss to minimise whose gradient is that of the negative mean reward, by reparameterization.

    A draw is ``a * sample + b * model_output + sigma_up * noise``, so the mean reward has the derivative
    ``b * sum_g slope_g`` with respect to the model output (Kingma and Welling 2014, section 2.4; with a reward at the
    end of a denoising chain: Clark et al. 2023, DRaFT). The draws are those of the current policy: every ratio is 1.
    """
    output = model_output.float()
    zero = slope.new_zeros(())
    return PolicyLoss(
        loss=(b * slope.sum(1) * (output.detach() - output)).sum(),  # 0, like that of on-policy advantages
        ratio_mean=slope.new_ones(()),
        ratio_max_dev=zero,
        approx_kl=zero,
        clip_fraction=zero,
        num_ratios=math.prod(slope.shape[:3]),
    )


def gaussian_kl(
    model_output: Tensor,  # [B, F, C, H, W], with gradient; guided where guidance is on
    reference_output: Tensor,  # [B, F, C, H, W]
    *,
    b: float,
    sigma_up: float,
) -> Tensor:  # []
    """KL of two Gaussian policies of equal variance, mean over everything: ``(mu - mu_ref)^2 / (2 sigma_up^2)``.

    The means share ``a * sample``, so they differ by ``b (m - m_ref)``.
    """
    difference = model_output.float() - reference_output.float()
    return difference.square().mean() * (b * b / (2 * sigma_up * sigma_up))
