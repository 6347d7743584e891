"""The policy gradient of the action reward points where the exact gradient does, on a predictor of one convolution."""

import copy

import pytest
import torch
from hand_written import mean_and_std
from moving_episodes import ReadsWritten, WrittenEpisode
from toy_backbone import ToyPredictor
from training_runs import gradient_of, make_config

from vampo_core.config import load_config
from vampo_core.data.clips import ClipDataset
from vampo_core.diffusion.streams import INITIAL_NOISE, ROLLOUT, stream_seed
from vampo_core.evaluation.actions import action_errors
from vampo_core.grpo.trainer import VampoTrainer
from vampo_core.models.codecs.latent import LatentCodec
from vampo_core.ops import philox_normal

DECODERS = {"moving": ReadsWritten(1, action_dim=2, unit=1.0)}
NUM_GENERATIONS = 8192


def settings(folder, step, num_steps):
    return make_config(
        folder, f"grpo.num_generations={NUM_GENERATIONS}", "grpo.batch_size=1", "grpo.adv_clip_max=1e9",
        "reward.l1_weight=0", "reward.cosine_weight=0", "reward.action_weight=1.0", "sampler.sigma_max=5.0",
        "sampler.sigma_min=1.0", f"sampler.num_inference_steps={num_steps}", f"sampler.stochastic_steps=[{step}]",
        "optim.max_grad_norm=1e9",
    )  # fmt: skip


def make_toy():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ToyPredictor.new(LatentCodec(latent_channels=3), num_frames=3)


def exact_gradient(model, config, batch, *, per_frame, in_spreads=True):
    """Autograd through the steps behind the stochastic one, whose denoiser is held fixed as part of the environment.

    Rewards are in units of their spread over the group, as advantages are, or with ``in_spreads=False`` as they are.
    With ``per_frame`` the reward of a frame counts only what that frame does to it, without what the frame before does.
    """
    (step,), frozen = config.sampler.stochastic_steps, copy.deepcopy(model).requires_grad_(False)
    shape = (NUM_GENERATIONS // 4, *batch["latents"].shape[1:])
    seed = stream_seed(stream_seed(config.run.seed, ROLLOUT, 0), INITIAL_NOISE)
    sample = philox_normal((1, 1, *shape[1:]), seed=seed)[0, 0] * (config.sampler.sigma_max**2 + 1) ** 0.5
    for i in range(step):
        sample = mean_and_std(frozen, config, batch, 0, i, sample)[0]
    mean, std = mean_and_std(model, config, batch, 0, step, sample)
    videos = mean + std * torch.randn(shape, generator=torch.Generator().manual_seed(3))  # [G, F, C, h, w]
    for i in range(step + 1, config.sampler.num_inference_steps):
        videos = torch.stack([mean_and_std(frozen, config, batch, 0, i, video)[0] for video in videos])

    def rewards(of):
        return -action_errors(DECODERS, of.unsqueeze(0), batch)[0]  # [G, F]

    spread = rewards(videos.detach()).std(0) if in_spreads else torch.ones(shape[1])
    total = 0
    for frame in range(shape[1]):
        seen = videos
        if per_frame:
            others = torch.arange(shape[1]).view(-1, 1, 1, 1) != frame
            seen = torch.where(others, videos.detach(), videos)
        total = total + rewards(seen)[:, frame].mean() / spread[frame]
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    found = torch.autograd.grad(-total, [dict(model.named_parameters())[name] for name in names])
    return dict(zip(names, found, strict=True))


def cosine(a, b):
    assert a.keys() == b.keys()
    rows = [torch.cat([x[name].flatten().double() for name in a]) for x in (a, b)]
    return torch.cosine_similarity(*rows, dim=0).item()


@pytest.mark.parametrize(("step", "num_steps"), [(0, 2), (1, 3)])
def test_the_derivative_along_the_path_is_exact(tmp_path, step, num_steps):
    config = load_config(settings(tmp_path, step, num_steps), "grpo.credit=pathwise")
    data = ClipDataset([WrittenEpisode(number=1, length=4)], num_frames=3, hop=9)
    trainer = VampoTrainer(
        model=make_toy(), config=config, train_dataset=data, eval_dataset=data, action_decoders=DECODERS
    )
    batch = next(trainer.batches(0))
    exact = exact_gradient(make_toy(), config, batch, per_frame=False, in_spreads=False)
    assert cosine(gradient_of(trainer), exact) > 0.995, "both are means over draws of their own"


@pytest.mark.parametrize(("step", "num_steps"), [(0, 2), (1, 3)])
def test_it_points_where_the_exact_gradient_does(tmp_path, step, num_steps):
    config = settings(tmp_path, step, num_steps)
    data = ClipDataset([WrittenEpisode(number=1, length=4)], num_frames=3, hop=9)
    trainer = VampoTrainer(
        model=make_toy(), config=config, train_dataset=data, eval_dataset=data, action_decoders=DECODERS
    )
    batch = next(trainer.batches(0))
    assert batch["action_valid"].all()
    found = gradient_of(trainer)
    credited = exact_gradient(make_toy(), config, batch, per_frame=True)
    whole = exact_gradient(make_toy(), config, batch, per_frame=False)
    assert cosine(found, credited) > 0.98
    assert cosine(found, whole) > 0.9, "credit per frame leaves out what a frame does to its successor's reward"
