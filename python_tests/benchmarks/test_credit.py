"""The benchmark of grpo.credit on denoisers whose gradients are known."""

import sys
from pathlib import Path

import pytest
import torch
from training_runs import make_clips, make_config, make_model

from vampo_core import EulerHybridSampler
from vampo_core.evaluation.predictor import held_out_batch
from vampo_core.grpo.rewards import latent

FOLDER = Path(__file__).parents[2] / "benchmarks"
MIXING = torch.tensor([[1.0, 0.6, 0.0], [-0.8, 1.0, 0.5], [0.3, -0.9, 1.0]])


@pytest.fixture
def credit(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.delitem(sys.modules, "credit", raising=False)
    import credit

    return credit


def denoiser(mixing):
    """A linear denoiser that mixes frames."""
    return lambda x, sigma, clip_index: (torch.einsum("fk,nkchw->nfchw", mixing, x) / (1 + sigma), None)


def videos(num_draws):
    """Draws [B, N, F, C, h, w] and targets [B, F, C, h, w]."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, num_draws, 3, 2, 2, 2, generator=generator), torch.randn(2, 3, 2, 2, 2, generator=generator)


SAMPLER = EulerHybridSampler(num_inference_steps=4, sigma_max=5.0, sigma_min=0.1)


def weighted(l1_weight):
    return lambda videos, target: latent(videos, target, {}, l1_weight=l1_weight).reward


def test_without_mixing_of_frames_nothing_is_left_out(credit):
    path = credit.pathwise(SAMPLER, denoiser(torch.eye(3)), *videos(4), weighted(1.0))
    torch.testing.assert_close(path.own, path.exact)
    assert path.exact.abs().min() > 0 and not torch.equal(path.exact[0], path.exact[1])


def test_gradients_are_those_of_each_draw_and_frame(credit):
    """Against the Jacobian of the rewards, taken frame by frame."""
    draws, target = videos(2000)
    denoise = denoiser(MIXING)
    path = credit.pathwise(SAMPLER, denoise, draws, target, weighted(0.5))
    x = draws.clone().requires_grad_()
    video = SAMPLER.differentiable_tail(x, denoise).flatten(0, 1)
    expert = target.repeat_interleave(2000, 0)
    cosine = torch.cosine_similarity(video.flatten(2), expert.flatten(2), dim=2)
    rewards = (cosine - 0.5 * (video - expert).abs().mean((2, 3, 4))).view(2, 2000, 3)
    torch.testing.assert_close(path.rewards, rewards.detach())
    frames = [torch.autograd.grad(rewards[..., f].sum(), x, retain_graph=True)[0].mean(1) / 3 for f in range(3)]
    own = torch.stack([gradient[:, f] for f, gradient in enumerate(frames)], dim=1)
    exact = sum(frames)
    torch.testing.assert_close(path.exact.mean(0), exact, rtol=1e-4, atol=1e-6)
    assert (path.own.mean(0) - own).norm() < 0.1 * own.norm()
    assert (exact - own).norm() > 0.3 * own.norm()


def test_a_row_of_the_table(credit, tmp_path):
    config = make_config(tmp_path)
    row = credit.measure(make_model(config), config, held_out_batch(make_clips(8, 9), 2), 32)
    assert row.num_inference_steps == 4 and row.halves > 0
    assert row.at_group_size["pathwise"][2] > row.at_group_size["pathwise"][1] > 0.5
    for name in ("frame", "clip"):
        assert all(0 < abs(value) < 1 for value in row.at_group_size[name].values())
    table = credit.markdown([row, row], "somewhere", "reward 1 l1", 2, 32).splitlines()
    assert len({line.count("|") for line in table if line.startswith("|")}) == 1
    with pytest.raises(ValueError, match=r"stochastic_steps is \(0, 1\)"):
        both = make_config(tmp_path, "sampler.stochastic_steps=[0,1]")
        credit.measure(make_model(both), both, held_out_batch(make_clips(8, 9), 2), 32)
