"""Video Former and action head against equations and solutions that are not ours."""

import pytest
import torch
from diffusers import EDMEulerScheduler

from vampo_core.policy.normalization import normalize, unnormalize
from vampo_core.policy.vpp.action_head import SIGMA_DATA, SIGMA_MAX, ActionCondition, ActionHead, action_loss
from vampo_core.policy.vpp.frame_encoder import FrameEncoder
from vampo_core.policy.vpp.video_former import QueryAttention, VideoFormer


def make_former(depth=2):
    torch.manual_seed(0)
    return VideoFormer((3, 5, 4, 2), width=16, num_queries=2, depth=depth, num_heads=2)


def make_head():
    torch.manual_seed(0)
    sizes = {"action_dim": 2, "action_horizon": 4, "state_dim": 3, "text_dim": 6}
    return ActionHead(**sizes, width=16, depth=1, num_heads=2)


def test_query_attention_is_multi_head_attention():
    torch.manual_seed(0)
    ours, expected = QueryAttention(16, num_heads=4), torch.nn.MultiheadAttention(16, num_heads=4, batch_first=True)
    with torch.no_grad():
        projections = (ours.query, ours.key, ours.value)
        expected.in_proj_weight.copy_(torch.cat([linear.weight for linear in projections]))
        expected.in_proj_bias.copy_(torch.cat([ours.query.bias, torch.randn(16), ours.value.bias]))
        expected.out_proj.load_state_dict(ours.output.state_dict())
    queries, pixels = torch.randn(3, 2, 16, requires_grad=True), torch.randn(3, 7, 16, requires_grad=True)
    results = ours(queries, pixels), expected(queries, pixels, pixels)[0]
    torch.testing.assert_close(*results)
    gradients = [torch.autograd.grad(result.square().sum(), (queries, pixels)) for result in results]
    torch.testing.assert_close(*gradients)


def test_queries_look_at_their_own_frame_and_then_over_time():
    former = make_former()
    features = torch.randn(2, 3, 5, 4, 2)
    changed = features.clone()
    changed[:, 2] += torch.randn(2, 5, 4, 2)
    tokens, others = (former(x).unflatten(1, (3, 2)) for x in (features, changed))
    assert tokens.shape == (2, 3, 2, 16)
    assert not torch.allclose(tokens[:, 0], others[:, 0], atol=1e-4)  # time carries it over
    with torch.no_grad():
        for layer in former.layers:
            layer.time.out_proj.weight.zero_()
    tokens, others = (former(x).unflatten(1, (3, 2)) for x in (features, changed))
    assert torch.allclose(tokens[:, :2], others[:, :2], atol=1e-6)
    assert not torch.allclose(tokens[:, 2], others[:, 2], atol=1e-4)


def test_place_within_a_frame_counts():
    features = torch.randn(1, 3, 5, 4, 2)
    assert not torch.allclose(make_former()(features), make_former()(features.flip(3)), atol=1e-4)


def test_features_are_normalized_without_a_gradient_of_their_own():
    former, features = make_former(), torch.randn(1, 3, 5, 4, 2)
    torch.testing.assert_close(former(2 * features + 3), former(features), rtol=0, atol=1e-3)
    assert not former.embed[0](features.flatten(3).mT).requires_grad


def test_features_of_another_size():
    with pytest.raises(ValueError, match=r"features has shape \(1, 3, 5, 4, 4\), expected \[B, \*\[3, 5, 4, 2\]\]"):
        make_former()(torch.randn(1, 3, 5, 4, 4))


def test_where_a_thing_lies_is_learnt_soon():
    """0.39 is the variance of the places."""
    torch.manual_seed(0)
    encoder, output = FrameEncoder((8, 12, 12), width=32), torch.nn.Linear(32, 2)
    optimizer = torch.optim.Adam([*encoder.parameters(), *output.parameters()], lr=1e-3)

    def error(num_frames):
        latents, places = torch.randn(num_frames, 8, 12, 12), torch.randint(12, (num_frames, 2))
        latents[range(num_frames), :, places[:, 0], places[:, 1]] = torch.tensor([3.0, -3.0] * 4)
        return (output(encoder(latents)[:, 0]) - (places / 5.5 - 1)).square().mean()

    for _ in range(200):
        optimizer.zero_grad()
        error(32).backward()
        optimizer.step()
    assert error(256).item() < 0.1


def test_large_frames_are_averaged():
    encoder = FrameEncoder((4, 40, 64), width=16)  # SVD's 320 x 512 px, by squares of 4 x 4
    assert encoder(torch.randn(2, 4, 40, 64)).shape == (2, 1, 16)
    assert encoder.layers[-2].in_features == 32 * 10 * 16
    assert FrameEncoder((4, 33, 7), width=16)(torch.randn(2, 4, 33, 7)).shape == (2, 1, 16)


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


def test_ranges():
    limits = torch.tensor([[0.0, -1.0, 7.0], [512.0, 3.0, 7.0]])
    values = torch.tensor([[0.0, 3.0, 7.0], [256.0, 1.0, 7.0]])
    expected = torch.tensor([[-1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    assert torch.equal(normalize(values, limits), expected) and torch.equal(unnormalize(expected, limits), values)
    assert unnormalize(torch.ones(3), limits)[2] == 7  # what never varied keeps its value
