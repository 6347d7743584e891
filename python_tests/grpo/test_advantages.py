"""Credit of a frame and of a clip: against plain loops, and their expected gradient against the exact one."""

import math
import statistics

import pytest
import torch
from training_runs import gradient_of, make_config, make_trainer

from vampo_core.grpo.advantages import credited_advantages
from vampo_core.grpo.loss import clipped_surrogate
from vampo_core.ops import gaussian_log_prob, hybrid_euler_step
from vampo_core.ops.coefficients import euler_coefficients

B, G, F = 2, 5, 3


@pytest.mark.parametrize("credit", ["frame", "clip"])
@pytest.mark.parametrize("limit", [None, 0.8])
def test_advantages_in_plain_loops(credit, limit):
    rewards = torch.randn(B, G, F, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    result = credited_advantages(rewards, credit=credit, clip=limit)
    assert result.shape == (B, G, F)
    for b, group in enumerate(rewards.tolist()):
        for f in range(F):
            compared = [frames[f] if credit == "frame" else sum(frames) / F for frames in group]
            mean, std = statistics.fmean(compared), statistics.stdev(compared)
            for g in range(G):
                expected = (compared[g] - mean) / std
                if limit is not None:
                    expected = max(-limit, min(limit, expected))
                assert result[b, g, f].item() == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("credit", ["frame", "clip"])
@pytest.mark.parametrize("offset", [0.0, 1 / 3])
def test_rounding_is_no_advantage(credit, offset):
    """Also where frames cancel out, so that rounding is all that is left of the clip's mean."""
    rewards = torch.tensor([1.0, -0.7, -0.3]).expand(1, 4, 3).clone() + offset
    rewards[0, 1] = torch.nextafter(rewards[0, 1], torch.tensor(9.0))
    assert credited_advantages(rewards, credit=credit).abs().max() == 0


def test_a_clip_whose_frames_make_up_for_each_other_has_no_spread(tmp_path):
    """zero_std_fraction counts what is compared: with the clip's credit groups of clips, else groups of frames."""

    def reward(pred, target, batch):
        values = torch.arange(4.0).view(1, 4, 1) * torch.tensor([1.0, -1.0, 0.0])
        return values.expand(pred.shape[:3]).clone()

    for credit, share in (("frame", 1 / 3), ("clip", 1.0)):
        trainer = make_trainer(make_config(tmp_path, f"grpo.credit={credit}"), reward_funcs=[reward])
        assert trainer.iterate(1, trainer.batches(0))["zero_std_fraction"] == pytest.approx(share)
        norm = max(gradient.abs().max() for gradient in gradient_of(trainer).values())
        assert (norm == 0) == (credit == "clip")


class LinearPredictor:
    """One step of a linear model, whose video mixes the frames of the draw: everything is known exactly.

    Rewards are quadratic in the noise, so equal weights on ``+-sqrt(n)`` times each of the n unit vectors, a spherical
    design of degree 3, give the exact expectation of reward times noise.
    """

    sigma, sigma_next = 3.0, 1.0
    shape = (1, 3, 1, 2, 2)  # B, F, C, H, W
    mixing = torch.tensor([[1.0, 0.4, 0.0], [-0.8, 1.0, 0.5], [0.3, -0.9, 1.0]], dtype=torch.float64)

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        self.sample, self.inputs, self.target = torch.randn(3, *self.shape, generator=generator, dtype=torch.float64)
        self.weight = torch.randn(3, 3, generator=generator, dtype=torch.float64).requires_grad_()
        number = math.prod(self.shape)
        unit = math.sqrt(number) * torch.eye(number, dtype=torch.float64)
        self.noise = torch.cat([unit, -unit]).view(1, 2 * number, *self.shape[1:])

    def output(self):
        return torch.einsum("fk,bkchw->bfchw", self.weight, self.inputs)

    def rewards(self, draws, own=None):
        """Negative squared errors [1, G, F] of the video; those of frame f with ``own`` in place of its own draw."""
        video = torch.einsum("fk,bgkchw->bgfchw", self.mixing, draws)
        if own is not None:
            video = video + self.mixing.diagonal().view(-1, 1, 1, 1) * (own - draws)
        return -(video - self.target.unsqueeze(1)).square().mean((3, 4, 5))

    def policy_gradient(self, credit):
        """Of the surrogate, in the library's parts; and the rewards."""
        levels = {"sigma": self.sigma, "sigma_next": self.sigma_next, "eta": 1.0}
        output = self.output()
        draws = hybrid_euler_step(self.sample, output.detach(), noise=self.noise, num_generations=24, **levels)
        rewards = self.rewards(draws.prev_sample)
        log_prob = gaussian_log_prob(draws.prev_sample, self.sample, output, **levels)
        advantages = credited_advantages(rewards, credit=credit)
        loss = clipped_surrogate(log_prob, log_prob.detach(), advantages, clip_range=0.1).loss
        return -torch.autograd.grad(loss, self.weight)[0], rewards

    def draws(self):
        """The same draws, with gradient to the weights."""
        step = euler_coefficients(self.sigma, self.sigma_next, 1.0, "v_prediction")
        mean = step.a * self.sample + step.b * self.output()
        return mean.unsqueeze(1) + step.sigma_up * self.noise


def cosine(a, b):
    return torch.cosine_similarity(a.flatten(), b.flatten(), dim=0).item()


def test_the_clips_credit_gives_the_exact_gradient_of_the_mean_reward():
    model = LinearPredictor()
    actual, rewards = model.policy_gradient("clip")
    (exact,) = torch.autograd.grad(model.rewards(model.draws()).mean(), model.weight)
    # a log-probability is a mean over C, H, W, the loss a mean over F, and an advantage is in units of the spread
    torch.testing.assert_close(actual * rewards.mean(2).std() * 4 * 3, exact, rtol=1e-6, atol=1e-9)
    assert cosine(actual, exact) == pytest.approx(1, abs=1e-9)


def test_the_frames_credit_leaves_out_what_a_draw_does_to_other_frames():
    model = LinearPredictor()
    actual, rewards = model.policy_gradient("frame")
    draws = model.draws()
    within = model.rewards(draws.detach(), own=draws) / rewards.std(dim=1, keepdim=True)
    (expected,) = torch.autograd.grad(within.mean(), model.weight)
    torch.testing.assert_close(actual * 4, expected, rtol=1e-6, atol=1e-9)
    (exact,) = torch.autograd.grad(model.rewards(model.draws()).mean(), model.weight)
    assert cosine(actual, exact) < 0.95
