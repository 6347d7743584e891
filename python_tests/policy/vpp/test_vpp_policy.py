"""What a policy on predictive features sees."""

import pytest
import torch
from policy_runs import ACTION_DIM, HORIZON, STATE_DIM, TEXT, make_policy, observe


@torch.no_grad()
def test_everything_observed_counts():
    policy, sigma = make_policy(), torch.ones(1)
    noisy = torch.randn(1, HORIZON, ACTION_DIM, generator=torch.Generator().manual_seed(0))
    latents = [torch.randn(1, 4, 8, 8) for _ in range(2)]
    states = [torch.tensor([[t, 0.5, 1.0]]) for t in (1.0, 9.0)]

    def denoised(latent=0, state=0, text=TEXT):
        condition = policy.predictor.condition(instructions=[text], first_latents=latents[latent])
        return policy(noisy, sigma, states[state], condition)

    assert torch.equal(denoised(), denoised())
    for changed in ({"latent": 1}, {"state": 1}, {"text": "leave it alone"}):
        assert (denoised(**changed) - denoised()).abs().max() > 1e-4, changed


@torch.no_grad()
@pytest.mark.parametrize("features", ["predictive", "latents"])
def test_the_current_frame_has_its_own_token(features):
    policy, seen = make_policy(features), {}
    for name in ("former", "frame_encoder"):
        module = getattr(policy, name)
        module.register_forward_hook(lambda _, inputs, output, name=name: seen.update({name: (inputs[0], output)}))
    policy.head.condition = lambda tokens, text, states: seen.update(tokens=tokens)
    latents = torch.randn(2, 4, 8, 8)
    condition = policy.predictor.condition(instructions=[TEXT] * 2, first_latents=latents)
    policy._action_condition(torch.zeros(2, STATE_DIM), condition, None)
    assert torch.equal(seen["former"][0], policy.features(condition))
    torch.testing.assert_close(seen["frame_encoder"][0], latents)
    assert torch.equal(seen["tokens"], torch.cat([seen["former"][1], seen["frame_encoder"][1]], dim=1))


def test_the_control_runs_no_video_model(monkeypatch):
    policy = make_policy("latents")
    monkeypatch.setattr(policy.predictor.unet, "forward", None)
    condition = policy.predictor.condition(instructions=[TEXT], first_latents=torch.ones(1, 4, 8, 8))
    assert torch.equal(policy.features(condition), torch.ones(1, 1, 4, 8, 8))
    policy.act(observe(), TEXT)
