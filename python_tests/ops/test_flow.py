"""Steps of a rectified flow: diffusers' deterministic one, EDM's under sigma = s / (1 - s), and the limit at s = 1."""

import math

import pytest
import torch
from cases import double, relative_error
from diffusers import FlowMatchEulerDiscreteScheduler

import vampo_core.ops
from vampo_core.ops import reference
from vampo_core.ops.coefficients import euler_coefficients, flow_split

SHAPE = (2, 3, 4, 5, 6)  # [B, F, C, H, W]
IMPLEMENTATIONS = pytest.mark.parametrize("implementation", [vampo_core.ops, reference], ids=["fused", "reference"])


def edm(s):
    return s / (1 - s)


@IMPLEMENTATIONS
@pytest.mark.parametrize(("shift", "num_steps"), [(1.0, 4), (5.0, 10), (3.0, 2)])
def test_a_whole_trajectory_of_diffusers(device, implementation, shift, num_steps):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(num_steps)
    generator = torch.Generator().manual_seed(0)
    ours = theirs = torch.randn(SHAPE, generator=generator)
    sigmas = [float(s) for s in scheduler.sigmas]
    for index, timestep in enumerate(scheduler.timesteps):
        output = torch.randn(SHAPE, generator=generator)
        theirs = scheduler.step(output, timestep, theirs).prev_sample
        ours = implementation.hybrid_euler_step(
            ours.to(device), output.to(device), sigma=sigmas[index], sigma_next=sigmas[index + 1],
            prediction_type="flow_prediction",
        ).prev_sample  # fmt: skip
        assert relative_error(ours, theirs) <= 1e-6


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0, 1.7])
@pytest.mark.parametrize(("s", "s_next"), [(0.999, 0.9), (0.9, 0.5), (0.5, 0.499), (0.2, 1e-4)])
def test_it_is_the_step_of_edm_in_other_units(s, s_next, eta):
    """With x = (1 - s) y the flow's samples y are EDM's, and its velocity is a scaled epsilon."""
    y, velocity = 1.7, 0.6
    noise = (y * (1 - s)) + (1 - s) * velocity  # epsilon = x + (1 - s) v, the same noise in both
    there = euler_coefficients(edm(s), edm(s_next), eta, "epsilon")
    here = euler_coefficients(s, s_next, eta, "flow_prediction")
    mean = (1 - s_next) * (there.a * y + there.b * noise)
    assert here.a * (1 - s) * y + here.b * velocity == pytest.approx(mean, rel=1e-9, abs=1e-12)
    assert here.sigma_up == pytest.approx((1 - s_next) * there.sigma_up, rel=1e-9, abs=0)


@pytest.mark.parametrize("eta", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("s_next", [0.9997, 0.5, 0.01])
def test_the_limit_of_pure_noise(s_next, eta):
    limit = euler_coefficients(1.0, s_next, eta, "flow_prediction")
    assert limit.sigma_up == pytest.approx(min(eta, 1) * s_next, rel=1e-12)
    assert all(map(math.isfinite, limit))
    for distance in (1e-6, 1e-8):
        near = euler_coefficients(1 - distance * (1 - s_next), s_next, eta, "flow_prediction")
        for one, other in zip(near, limit, strict=True):
            assert one == pytest.approx(other, rel=0, abs=2 * distance)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0, 50.0])
@pytest.mark.parametrize(("s", "s_next"), [(1.0, 0.7), (0.8, 0.8 - 1e-9), (0.3, 0.0)])
def test_the_split_keeps_the_variance(s, s_next, eta):
    down, up = flow_split(s, s_next, eta)
    assert 0 <= up <= s_next
    assert math.hypot(up, down) == pytest.approx(s_next, rel=1e-12, abs=0)


def test_noise_levels_above_one_are_refused():
    with pytest.raises(ValueError, match=r"sigma is 1.5 with prediction_type = 'flow_prediction', expected at most 1"):
        euler_coefficients(1.5, 0.5, 0.0, "flow_prediction")
    with pytest.raises(ValueError, match=r"'v_prediction', 'epsilon', 'sample' or 'flow_prediction'"):
        euler_coefficients(0.5, 0.2, 0.0, "velocity")


@IMPLEMENTATIONS
@pytest.mark.parametrize(("s", "s_next", "eta"), [(1.0, 0.8, 1.0), (0.9, 0.4, 0.5), (0.3, 0.1, 1.0)])
def test_log_prob_of_torch_distributions(device, implementation, s, s_next, eta):
    generator = torch.Generator().manual_seed(1)
    x, cond, uncond = (torch.randn(SHAPE, generator=generator, dtype=torch.float64) for _ in range(3))
    scale = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)[:, None, None, None]  # [F, 1, 1, 1]
    cond, uncond = cond.requires_grad_(), uncond.requires_grad_()
    velocity = uncond + scale * (cond - uncond)
    ratio = 0.0 if s == 1 else edm(s_next) / edm(s)
    std = s_next * eta * math.sqrt(1 - ratio**2)
    clean, noise = x - s * velocity, x + (1 - s) * velocity
    mean = (1 - s_next) * clean + math.sqrt(s_next**2 - std**2) * noise
    draws = torch.randn((2, 4, *SHAPE[1:]), generator=generator, dtype=torch.float64)
    options = {
        "sigma": s, "sigma_next": s_next, "eta": eta, "prediction_type": "flow_prediction",
        "guidance_scale": scale.flatten().float().to(device),
    }  # fmt: skip
    inputs = [t.detach().float().to(device).requires_grad_() for t in (cond, uncond)]
    step = implementation.hybrid_euler_step(
        x.float().to(device), inputs[0].detach(), model_output_uncond=inputs[1].detach(),
        noise=draws.float().to(device), **options,
    )  # fmt: skip
    assert relative_error(step.prev_sample, mean.unsqueeze(1) + std * draws) <= 1e-6
    actions = double(step.prev_sample)
    expected = torch.distributions.Normal(mean.unsqueeze(1), std).log_prob(actions).mean((-3, -2, -1))
    assert relative_error(step.log_prob, expected) <= 1e-5
    log_prob = implementation.gaussian_log_prob(
        step.prev_sample, x.float().to(device), inputs[0], model_output_uncond=inputs[1], **options
    )
    assert relative_error(log_prob, expected) <= 1e-5
    weights = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    gradients = torch.autograd.grad(log_prob, inputs, weights.float().to(device))
    wanted = torch.autograd.grad(expected, (cond, uncond), weights)
    for gradient, other in zip(gradients, wanted, strict=True):
        assert relative_error(gradient, other, floor=1e-9) <= 2e-4  # actions are rounded to float32
