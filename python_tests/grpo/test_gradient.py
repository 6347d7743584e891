"""The trainer's gradient is the one written out by hand, whatever the sampler, and clips never mix."""

import copy

import hand_written
import pytest
import torch
from training_runs import WAN, gradient_of, make_config, make_model, make_trainer, relative_distance

from vampo_core.grpo.loss import clipped_surrogate

# steps of similar size: otherwise the last one, with sigma / sigma_up = 235, drowns the gradient of the others
ALL_STEPS = ["sampler.stochastic_steps=[0,1,2]", "sampler.sigma_min=1.0"]
VARIANTS = {
    "default": [],
    "recomputed": ["grpo.reuse_first_step=false"],
    "chunks that do not divide the rows": ["sampler.tail_chunk_size=3"],
    "every step stochastic": ALL_STEPS,
    "a later step stochastic": ["sampler.stochastic_steps=[1]"],
    # of seeds 0 to 3 the first is three times as steep, and rounding alone moves it by up to 2e-4
    "less noise": ["sampler.eta=0.7"],
    "guidance": ["sampler.guidance_scale=2.5", "sampler.stochastic_steps=[0,2]", "sampler.sigma_min=1.0"],
    "credit of the clip": ["grpo.credit=clip"],
    "credit of the clip, every step": ["grpo.credit=clip", *ALL_STEPS],
    "clipped advantages": ["grpo.adv_clip_max=0.5", "run.seed=3"],
    "flow": WAN,
    "flow, a later step, shifted": [*WAN, "sampler.stochastic_steps=[1]", "sampler.flow_shift=3"],
    "flow, every step": [*WAN, "sampler.stochastic_steps=[0,1,2]"],
    "flow, less noise, guidance": [*WAN, "sampler.eta=0.7", "sampler.guidance_scale=2.5"],
}


def first_batch(config):
    """The clips of the first iteration, as one part."""
    return next(make_trainer(config).batches(0))


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradient_is_reinforce_written_by_hand(tmp_path, variant):
    config = make_config(tmp_path, *VARIANTS[variant])
    batch, model = first_batch(config), make_model(config)
    expected = hand_written.reinforce_gradient(model, config, batch, hand_written.roll_out(model, config, batch))
    assert relative_distance(gradient_of(make_trainer(config)), expected) < 1e-4


def test_rectified_steps_have_gradients_of_one_scale(tmp_path):
    config = make_config(tmp_path, *ALL_STEPS, "grpo.rectify_steps=true")
    sampler = make_trainer(config).sampler
    scales = [abs(b) / sigma_up for _, b, sigma_up in map(sampler.coefficients, (0, 1, 2))]
    weights = make_trainer(config).step_weights
    assert sum(weights.values()) == pytest.approx(3)
    assert [weights[i] * scales[i] for i in range(3)] == pytest.approx([weights[0] * scales[0]] * 3)
    assert max(scales) > 1.5 * min(scales), "otherwise there would be nothing to rectify"
    found, parts = gradient_of(make_trainer(config)), []
    for step in range(3):
        trainer = make_trainer(config)
        trainer.step_weights = {other: weights[step] if other == step else 0.0 for other in range(3)}
        parts.append(gradient_of(trainer))
    assert relative_distance(found, {name: sum(part[name] for part in parts) for name in found}) < 1e-5
    one = ["sampler.stochastic_steps=[1]"]
    single = gradient_of(make_trainer(make_config(tmp_path, *one, "grpo.rectify_steps=true")))
    assert relative_distance(single, gradient_of(make_trainer(make_config(tmp_path, *one)))) < 1e-6


@pytest.mark.parametrize("steps", [[], ALL_STEPS], ids=["first step", "every step"])
def test_gradient_does_not_depend_on_the_number_of_parts(tmp_path, steps):
    settings = ["grpo.batch_size=4", *steps]
    whole = gradient_of(make_trainer(make_config(tmp_path, *settings)))
    for parts in (2, 4):
        config = make_config(tmp_path, *settings, f"optim.gradient_accumulation_steps={parts}")
        assert relative_distance(gradient_of(make_trainer(config)), whole) < 1e-4


def test_predictions_and_rewards_are_those_of_each_clip_alone(tmp_path):
    config = make_config(tmp_path, "grpo.batch_size=3", "sampler.tail_chunk_size=5")
    batch, seen = first_batch(config), []
    assert len(set(batch["clip_id"])) == 3 and len(set(batch["instruction"])) == 1
    trainer = make_trainer(config, reward_funcs=[lambda *given: seen.append(given) or torch.randn(3, 4, 3)])
    trainer.iterate(1, trainer.batches(0))
    pred, target, given = seen[0]
    assert given["clip_id"] == batch["clip_id"] and torch.equal(target, batch["latents"])
    for clip, group in enumerate(hand_written.roll_out(make_model(config), config, batch)):
        torch.testing.assert_close(pred[clip], group.latents, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("clip", "steps"), [(0, []), (2, []), (1, ALL_STEPS)])
def test_the_rewards_of_a_clip_move_its_own_predictions_alone(tmp_path, clip, steps):
    """The others' rewards are equal within their groups, so everything must come from this one."""
    config = make_config(tmp_path, "grpo.batch_size=3", *steps)
    batch, model = first_batch(config), make_model(config)

    def reward(pred, target, batch):
        values = torch.stack(
            [torch.stack([hand_written.reward_of(x, y) for x in xs]) for xs, y in zip(pred, target, strict=True)]
        )
        other = torch.arange(3).view(3, 1, 1) != clip
        return torch.where(other, torch.arange(3.0).view(3, 1, 1), values)

    groups = hand_written.roll_out(model, config, batch)
    expected = hand_written.reinforce_gradient(model, config, batch, groups, only_clip=clip)
    assert relative_distance(gradient_of(make_trainer(config, reward_funcs=[reward])), expected) < 1e-4


@pytest.mark.parametrize(
    "settings", [[], ALL_STEPS, ["model.lora=2"]], ids=["first step", "every step", "adapters off"]
)
def test_kl_penalty_pulls_back_to_the_base(tmp_path, settings):
    config = make_config(tmp_path, "grpo.kl_coef=10.0", *settings)
    batch, base = first_batch(config), make_model(make_config(tmp_path))
    trainer, moved = make_trainer(config), make_model(config)  # the trainer takes hold of the base now
    for model in (trainer.model, moved):
        generator = torch.Generator().manual_seed(5)
        for parameter in model.unet.parameters():
            if parameter.requires_grad:
                parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    groups = hand_written.roll_out(moved, config, batch)
    expected = hand_written.reinforce_gradient(moved, config, batch, groups, reference=base)
    without = hand_written.reinforce_gradient(moved, config, batch, groups)
    assert relative_distance(expected, without) > 0.1
    assert relative_distance(gradient_of(trainer), expected) < 1e-4


@pytest.mark.parametrize("adapters", [False, True])
def test_the_base_is_no_second_predictor(tmp_path, adapters):
    """It shares codec and encoders, and with adapters the UNet as well."""
    config = make_config(tmp_path, "grpo.kl_coef=1.0", "grpo.anchor_coef=1.0", f"model.lora={2 * adapters}")
    model, batch = make_model(config), first_batch(config)
    expected = make_model(make_config(tmp_path))
    deep_copies = []
    model.codec.__deepcopy__ = model.text_encoder.__deepcopy__ = model.unet.__deepcopy__ = deep_copies.append
    if not adapters:
        del model.unet.__deepcopy__
    trainer = make_trainer(config, model=model)
    assert not deep_copies
    for iteration in (1, 2):
        trainer.iterate(iteration, trainer.batches(iteration - 1))
    condition = trainer.engine.condition(batch)
    with torch.no_grad():
        base, policy = (m(batch["latents"], 3.0, condition) for m in (expected, model))
    assert torch.equal(trainer.reference(batch["latents"], 3.0, condition), base)
    assert not torch.equal(base, policy)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained == trainer.optimizer.names


def test_groups_without_spread_give_no_gradient(tmp_path):
    trainer = make_trainer(
        make_config(tmp_path), reward_funcs=[lambda pred, target, batch: torch.full(pred.shape[:3], 1 / 3)]
    )
    assert all(gradient.abs().max() == 0 for gradient in gradient_of(trainer).values())
    row = trainer.iterate(1, trainer.batches(0))
    assert row["zero_std_fraction"] == 1 and row["grad_norm"] == 0 and row["loss"] == 0


def test_later_inner_epochs_move_away_from_the_old_policy_and_clip(tmp_path):
    config = make_config(tmp_path, "grpo.num_inner_epochs=4", "grpo.clip_range=1e-5", "optim.lr=1e-3")
    trainer = make_trainer(config)
    row = trainer.iterate(1, trainer.batches(0))
    assert trainer.optimizer.num_updates == 4
    assert 1e-5 < row["ratio_max_dev"] < 0.5
    assert 0 < row["clip_fraction"] <= 0.75  # the first epoch clips nothing
    assert row["approx_kl"] > 0


def test_figures_are_means_over_ratios_not_over_parts(tmp_path, monkeypatch):
    """Of three steps the first comes in one part, the others in one per clip: each counts a third."""
    results = []

    def surrogate(log_prob, old, advantages, *, clip_range):
        ratio = torch.full_like(log_prob, 1 + len(results) / 1000).log()  # 1 for the first part, 1.001 for the next...
        results.append(clipped_surrogate(log_prob - log_prob.detach() + ratio, 0 * ratio, advantages, clip_range=1.0))
        return results[-1]

    monkeypatch.setattr("vampo_core.grpo.trainer.clipped_surrogate", surrogate)
    trainer = make_trainer(make_config(tmp_path, "sampler.stochastic_steps=[0,1,2]"))
    row = trainer.iterate(1, trainer.batches(0))
    assert [result.num_ratios for result in results] == [24, 12, 12, 12, 12]
    assert row["ratio_mean"] == pytest.approx(1 + (2 * 0 + 1 + 2 + 3 + 4) / 6 / 1000, rel=1e-6)


def test_an_inner_epoch_scores_the_actions_of_the_rollout_with_the_updated_policy(tmp_path):
    """The second epoch's gradient is that of the surrogate at the new weights and the old actions."""
    config = make_config(tmp_path, "grpo.num_inner_epochs=2", "grpo.clip_range=10.0", "optim.max_grad_norm=1e9")
    batch, model = first_batch(config), make_model(config)
    groups = hand_written.roll_out(model, config, batch)
    trainer, gradients = make_trainer(config), []
    original = trainer.optimizer.step

    def step(*, what):
        named = zip(trainer.optimizer.names, trainer.optimizer.parameters, strict=True)
        gradients.append({name: p.grad.clone() for name, p in named})
        return original(what=what)

    trainer.optimizer.step = step
    weights = [copy.deepcopy(trainer.model.state_dict())]
    trainer.iterate(1, trainer.batches(0))
    weights.append(trainer.model.state_dict())

    # after one step of AdamW from the first gradient alone
    once = make_trainer(make_config(tmp_path, "grpo.clip_range=10.0", "optim.max_grad_norm=1e9"))
    once.iterate(1, once.batches(0))
    total = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in gradients[1].items()}
    named = dict(once.model.named_parameters())
    for clip, group in enumerate(groups):
        advantages = hand_written.advantages_of(group.rewards, config.grpo.adv_clip_max)
        for generation, (action,) in enumerate(group.actions):
            log_probs = []
            for scored in (once.model, model):
                mean, std = hand_written.mean_and_std(scored, config, batch, clip, action.step, action.sample)
                log_probs.append(torch.distributions.Normal(mean, std).log_prob(action.prev_sample).mean((1, 2, 3)))
            ratio = (log_probs[0] - log_probs[1].detach()).exp()
            loss = -(advantages[generation] * ratio).mean() / (len(groups) * config.grpo.num_generations)
            for name, gradient in zip(total, torch.autograd.grad(loss, [named[n] for n in total]), strict=True):
                total[name] += gradient
    assert relative_distance(gradients[1], total) < 1e-3
    assert relative_distance(gradients[0], gradients[1]) > 1e-2
