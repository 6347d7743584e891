"""The clipped surrogate and the KL penalty against formulas written out, and what their gradients may not do."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from vampo_core.grpo.loss import MAX_LOG_RATIO, clipped_surrogate, gaussian_kl
from vampo_core.ops.coefficients import euler_coefficients

SHAPE = (2, 3, 4)  # B, G, F


def surrogate(log_ratio, advantage, clip_range=0.1):
    """Loss of one ratio, and its derivative with respect to ``log_prob``."""
    log_prob = torch.full(SHAPE, float(log_ratio), dtype=torch.float64, requires_grad=True)
    advantages = torch.full(SHAPE, float(advantage), dtype=torch.float64)
    result = clipped_surrogate(log_prob, torch.zeros_like(log_prob), advantages, clip_range=clip_range)
    (gradient,) = torch.autograd.grad(result.loss, log_prob)
    return result, gradient.sum().item()


@pytest.mark.parametrize("advantage", [1.5, -1.5])
@pytest.mark.parametrize("ratio", [0.5, 0.95, 1.0, 1.05, 2.0])
def test_surrogate_is_ppos(ratio, advantage):
    """Schulman et al. 2017, equation 7: the objective is the smaller of two, so the loss is the larger one."""
    result, gradient = surrogate(math.log(ratio), advantage)
    objective = min(ratio * advantage, min(max(ratio, 0.9), 1.1) * advantage)
    assert result.loss.item() == pytest.approx(-objective, rel=1e-12)
    helps = (ratio > 1.1 and advantage > 0) or (ratio < 0.9 and advantage < 0)  # further that way is not rewarded
    assert gradient == pytest.approx(0 if helps else -ratio * advantage, abs=1e-12)


def test_surrogate_is_a_mean_and_its_figures_count_every_ratio():
    generator = torch.Generator().manual_seed(0)
    log_prob, old, advantages = torch.randn(3, *SHAPE, generator=generator, dtype=torch.float64) * 0.1
    result = clipped_surrogate(log_prob, old, advantages, clip_range=0.05)
    ratios = [math.exp(a - b) for a, b in zip(log_prob.flatten(), old.flatten(), strict=True)]
    pairs = list(zip(ratios, advantages.flatten().tolist(), strict=True))
    number = len(pairs)
    objective = sum(min(r * a, min(max(r, 0.95), 1.05) * a) for r, a in pairs) / number
    assert result.loss.item() == pytest.approx(-objective, rel=1e-12)
    assert result.ratio_mean.item() == pytest.approx(sum(ratios) / number)
    assert result.ratio_max_dev.item() == pytest.approx(max(abs(r - 1) for r in ratios))
    assert result.clip_fraction.item() == pytest.approx(sum(abs(r - 1) > 0.05 for r in ratios) / number)
    assert result.approx_kl.item() == pytest.approx(sum(r - 1 - math.log(r) for r in ratios) / number)
    assert 0 < result.clip_fraction < 1


def test_surrogate_of_a_far_off_policy_stays_finite():
    for log_ratio in (1000.0, -1000.0):
        result, gradient = surrogate(log_ratio, -1.0, clip_range=0.1)
        assert math.isfinite(result.loss) and gradient == 0
    assert surrogate(1000.0, -1.0)[0].loss.item() == pytest.approx(math.exp(MAX_LOG_RATIO))


def test_surrogate_names_shapes_that_differ():
    a, b = torch.zeros(2, 3, 4), torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"\(2, 3\).*expected one shape \[B, G, F\]"):
        clipped_surrogate(a, a, b, clip_range=0.1)


@pytest.mark.parametrize("prediction_type", ["v_prediction", "epsilon", "sample"])
def test_kl_is_that_of_the_two_gaussians(prediction_type):
    generator = torch.Generator().manual_seed(1)
    sample, output, base = torch.randn(3, 2, 3, 2, 4, 4, generator=generator, dtype=torch.float64)
    step = euler_coefficients(10.0, 4.0, 1.0, prediction_type)
    output = output.float().requires_grad_()
    kl = gaussian_kl(output, base.float(), b=step.b, sigma_up=step.sigma_up)
    means = [step.a * sample + step.b * m.double() for m in (output, base.float())]
    expected = kl_divergence(*(Normal(mean, step.sigma_up) for mean in means)).mean()
    assert kl.item() == pytest.approx(expected.item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(kl, output)
    (expected_gradient,) = torch.autograd.grad(expected, output)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-9)
    assert gradient.abs().max() > 0


def test_kl_of_a_policy_from_itself_is_zero():
    output = torch.randn(1, 2, 3, 4, 4, requires_grad=True)
    kl = gaussian_kl(output, output.detach(), b=0.7, sigma_up=2.0)
    assert kl.item() == 0
    assert torch.autograd.grad(kl, output)[0].abs().max() == 0
