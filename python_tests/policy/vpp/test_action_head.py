"""The action head against equations and solutions that are not ours."""

import pytest
import torch
from diffusers import EDMEulerScheduler

from vampo_core.policy.vpp.action_head import SIGMA_DATA, SIGMA_MAX, ActionCondition, ActionHead, action_loss


def make_head():
    torch.manual_seed(0)
    sizes = {"action_dim": 2, "action_horizon": 4, "state_dim": 3, "text_dim": 6}
    return ActionHead(**sizes, width=16, depth=1, num_heads=2)


@torch.no_grad()
def test_preconditioning_is_edms():
    """Equation 7 of Karras et al. in float64, and diffusers' other EDM scheduler."""
    head, condition = make_head(), ActionCondition(torch.randn(3, 7, 16), torch.randn(3, 16))
    noisy, sigma = 3 * torch.randn(3, 4, 2), torch.tensor([0.02, 0.7, 12.0])
    denoised = head(noisy, sigma, condition)
    euler = EDMEulerScheduler(sigma_data=SIGMA_DATA)
    for i, s in enumerate(sigma.tolist()):
        c_in, c_noise = (s**2 + SIGMA_DATA**2) ** -0.5, torch.tensor([s]).log() / 4
        output = head.network(c_in * noisy[i : i + 1], c_noise, ActionCondition(*(x[i : i + 1] for x in condition)))
        c_skip = SIGMA_DATA**2 / (s**2 + SIGMA_DATA**2)
        c_out = s * SIGMA_DATA / (s**2 + SIGMA_DATA**2) ** 0.5
        torch.testing.assert_close(denoised[i], c_skip * noisy[i] + c_out * output[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(euler.precondition_inputs(noisy[i], s), c_in * noisy[i])
        stock = euler.precondition_outputs(noisy[i], output[0], s)
        torch.testing.assert_close(denoised[i], stock, rtol=1e-4, atol=1e-5)


def test_loss_is_edms():
    """Equation 8: lambda = 1 / c_out^2, so that the network's own error counts the same at every noise level."""
    denoised, actions = torch.randn(3, 4, 2), torch.randn(3, 4, 2)
    sigma, valid = torch.tensor([0.02, 0.7, 12.0]), torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0]]).bool()
    total = 0.0
    for i in range(3):
        c_out = sigma[i].double() * SIGMA_DATA / (sigma[i].double() ** 2 + SIGMA_DATA**2) ** 0.5
        for h in range(4):
            if valid[i, h]:
                total += (((denoised - actions)[i, h].double() / c_out) ** 2).sum().item()
    assert action_loss(denoised, actions, sigma, valid).item() == pytest.approx(total / 24, rel=1e-5)


def test_sampling_solves_the_probability_flow(monkeypatch):
    """For normally distributed actions the optimal denoiser and the ODE's solution are known in closed form."""
    head, condition = make_head(), ActionCondition(torch.zeros(2, 1, 16), torch.zeros(2, 16))
    mean, std = torch.tensor([0.4, -0.7]), 0.3

    def optimal(scaled, c_noise, condition):
        s = (4 * c_noise).exp().view(-1, 1, 1)
        x = scaled * (s**2 + SIGMA_DATA**2).sqrt()
        denoised = (std**2 * x + s**2 * mean) / (std**2 + s**2)
        c_skip, c_out = SIGMA_DATA**2 / (s**2 + SIGMA_DATA**2), s * SIGMA_DATA / (s**2 + SIGMA_DATA**2).sqrt()
        return (denoised - c_skip * x) / c_out

    monkeypatch.setattr(head, "network", optimal)
    noise = torch.randn(2, 4, 2, generator=torch.Generator().manual_seed(0))
    start = noise * (SIGMA_MAX**2 + 1) ** 0.5  # diffusers'
    expected = mean + std * (start - mean) / (std**2 + SIGMA_MAX**2) ** 0.5
    torch.testing.assert_close(head.sample(condition, noise, num_steps=60), expected, rtol=0, atol=2e-3)
    torch.testing.assert_close(head.sample(condition, noise, num_steps=8), expected, rtol=0, atol=0.1)
