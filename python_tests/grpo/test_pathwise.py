"""grpo.credit = "pathwise": the gradient of the mean reward, against autograd through everything."""

import copy

import hand_written
import pytest
import torch
from training_runs import WAN, gradient_of, make_config, make_model, make_trainer, relative_distance

from vampo_core.config import ConfigError
from vampo_core.grpo import rewards
from vampo_core.grpo.advantages import credited_advantages
from vampo_core.models.codecs.patch import PatchCodec
from vampo_core.ops import latent_reward

# a real run's noise levels make the first draws of an untrained model all but independent of it
SETTINGS = ["grpo.credit=pathwise", "sampler.sigma_min=0.5", "sampler.sigma_max=10"]
VARIANTS = {
    "default": [],
    "a later step": ["sampler.stochastic_steps=[2]", "sampler.num_inference_steps=5"],
    "chunks that do not divide the rows": ["sampler.tail_chunk_size=3"],
    "checkpointing": ["model.gradient_checkpointing=true"],
    "guidance": ["sampler.guidance_scale=2.5"],
    "less noise": ["sampler.eta=0.7"],
    "flow": WAN,
    "flow, guidance": [*WAN, "sampler.guidance_scale=2.5"],
}


def exact_gradient(config, batch):
    """Autograd from the mean reward through every later step to the weights of the pass that drew the group."""
    model = make_model(config)
    frozen = copy.deepcopy(model).requires_grad_(False)
    means = []
    for clip, group in enumerate(hand_written.roll_out(model, config, batch)):
        for (action,) in group.actions:
            mean, _ = hand_written.mean_and_std(model, config, batch, clip, action.step, action.sample)
            video = mean + (action.prev_sample - mean.detach())  # reparameterized: the noise does not move
            for later in range(action.step + 1, config.sampler.num_inference_steps):
                video = hand_written.mean_and_std(frozen, config, batch, clip, later, video)[0]
            target = batch["latents"][clip][-len(video) :]
            means.append(hand_written.reward_of(video, target).mean())
    names, parameters = zip(*[(n, p) for n, p in model.named_parameters() if p.requires_grad], strict=True)
    found = torch.autograd.grad(-torch.stack(means).mean(), parameters, allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for n, p, g in zip(names, parameters, found, strict=True)}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_gradient_is_that_of_the_mean_reward(tmp_path, variant):
    config = make_config(tmp_path, *SETTINGS, *VARIANTS[variant])
    trainer = make_trainer(config)
    batch = next(make_trainer(config).batches(0))
    found, expected = gradient_of(trainer), exact_gradient(config, batch)
    # rounding turns signs of the L1 distance
    assert relative_distance(found, {name: expected[name] for name in found}) < 1e-3


def test_the_gradient_does_not_depend_on_the_number_of_parts(tmp_path):
    whole = gradient_of(make_trainer(make_config(tmp_path, *SETTINGS, "grpo.batch_size=4")))
    config = make_config(tmp_path, *SETTINGS, "grpo.batch_size=4", "optim.gradient_accumulation_steps=2")
    assert relative_distance(gradient_of(make_trainer(config)), whole) < 1e-4


def test_an_iteration_says_that_it_is_on_policy_and_raises_the_reward(tmp_path):
    config = make_config(tmp_path, *SETTINGS, "optim.lr=3e-3", "optim.max_grad_norm=10", "grpo.num_iterations=30")
    trainer = make_trainer(config)
    row = trainer.iterate(1, trainer.batches(0))
    assert (row["ratio_mean"], row["ratio_max_dev"], row["approx_kl"], row["clip_fraction"]) == (1, 0, 0, 0)
    assert row["grad_norm"] > 0
    before = trainer.evaluate().reward.mean
    batches = trainer.batches(1)
    for iteration in range(2, 31):
        trainer.iterate(iteration, batches)
    assert trainer.evaluate().reward.mean > before


def test_kl_and_anchor_join_it(tmp_path):
    overrides = [*SETTINGS, "grpo.kl_coef=0.1", "grpo.anchor_coef=0.1"]
    trainer = make_trainer(make_config(tmp_path, *overrides))
    batches = trainer.batches(0)
    first, second = (trainer.iterate(iteration, batches) for iteration in (1, 2))
    assert first["kl"] == 0 and second["kl"] > 0 and second["anchor"] > 0


def test_differentiable_rewards_are_the_rewards():
    generator = torch.Generator().manual_seed(0)
    pred = torch.randn(2, 3, 4, 5, 6, 6, generator=generator)
    target = torch.randn(2, 4, 5, 6, 6, generator=generator)
    codec = PatchCodec(patch_size=4, latent_channels=5)
    for function in (rewards.latent, rewards.motion, rewards.moving, rewards.pixel(codec.decode)):
        plain, graph = function(pred, target, {}), function(pred.clone().requires_grad_(), target, {})
        if function is rewards.latent:
            plain, graph = plain.reward, graph.reward
        assert graph.requires_grad and not plain.requires_grad
        torch.testing.assert_close(graph.detach(), plain, rtol=1e-5, atol=1e-6)
    weighted = rewards.latent(pred.clone().requires_grad_(), target, {}, l1_weight=0.3, cosine_weight=2)
    torch.testing.assert_close(
        weighted.reward.detach(), latent_reward(pred, target, l1_weight=0.3, cosine_weight=2).reward
    )


def thresholded(pred, target, batch):
    return (pred.mean((3, 4, 5)) > 0).float()


def of_another_network(pred, target, batch):
    weight = torch.ones((), requires_grad=True)
    return weight * pred.detach().mean((3, 4, 5))


def in_numpy(pred, target, batch):
    return torch.from_numpy(pred.numpy().mean((3, 4, 5)))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (thresholded, "reward thresholded has no gradient with respect to pred"),
        (of_another_network, "reward of_another_network has no gradient with respect to pred"),
        (in_numpy, "reward in_numpy fails on videos with a gradient"),
    ],
)
def test_a_reward_without_gradient_is_refused_by_name(tmp_path, function, message):
    trainer = make_trainer(make_config(tmp_path, *SETTINGS), reward_funcs=[rewards.latent, function])
    with pytest.raises((ValueError, RuntimeError), match=message):
        trainer.iterate(1, trainer.batches(0))
    trainer = make_trainer(make_config(tmp_path), reward_funcs=[rewards.latent, function])
    trainer.iterate(1, trainer.batches(0))  # where rewards are compared, any function will do


def test_no_reward_at_all(tmp_path):
    with pytest.raises(ValueError, match="reward_funcs is empty"):
        make_trainer(make_config(tmp_path, *SETTINGS), reward_funcs=[])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["grpo.num_inner_epochs=2"], "grpo.num_inner_epochs = 2"),
        (["grpo.reuse_first_step=false"], "grpo.reuse_first_step = False"),
        (["sampler.stochastic_steps=[0,1]"], r"sampler.stochastic_steps = \[0, 1\], expected one step"),
        (["model.dtype=float16"], "model.dtype = 'float16'"),
        (["sampler.tail_dtype=float16"], "sampler.tail_dtype = 'float16'"),
    ],
)
def test_settings_that_it_cannot_have(tmp_path, overrides, message):
    with pytest.raises(ConfigError, match=message):
        make_config(tmp_path, *SETTINGS, *overrides)


def test_a_derivative_has_no_advantages():
    with pytest.raises(ValueError, match="credit is 'pathwise', expected 'frame' or 'clip'"):
        credited_advantages(torch.zeros(1, 2, 3), credit="pathwise")
