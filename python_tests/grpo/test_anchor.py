"""The anchor holds the noise levels of the ODE tail where the base had them."""

import copy

import torch
from training_runs import gradient_of, make_config, make_model, make_trainer, relative_distance

from vampo_core.grpo.anchor import anchor_loss, deterministic_sigmas

SETTINGS = ["grpo.batch_size=4", "grpo.anchor_coef=100"]


def move(model):
    generator = torch.Generator().manual_seed(5)
    for parameter in model.unet.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)


def test_it_is_the_distance_of_outputs_on_noisy_predictions(tmp_path):
    trainer = make_trainer(make_config(tmp_path, *SETTINGS, "sampler.stochastic_steps=[1]"))
    sampler, calls, levels = trainer.clips.sampler, [], set()
    assert deterministic_sigmas(sampler) == [*sampler.sigmas[:1], *sampler.sigmas[2:-1]]

    def policy(noisy, sigma, condition):
        calls.append((noisy, sigma, condition))
        return 3 * torch.ones_like(noisy)

    for seed in range(6):
        rollout = trainer.engine.rollout(next(trainer.batches(seed)), seed=seed, first_clip=seed)
        loss = anchor_loss(policy, lambda noisy, *_: torch.ones_like(noisy), sampler, rollout)
        assert loss == 4
        noisy, sigma, condition = calls[-1]
        noise = (noisy - rollout.latents[:, 0]) / sigma.view(-1, 1, 1, 1, 1)
        assert abs(noise.mean()) < 0.1 and abs(noise.std() - 1) < 0.1
        assert condition is rollout.condition
        levels |= {round(float(level), 4) for level in sigma}
    assert levels == {round(level, 4) for level in deterministic_sigmas(sampler)}


def test_its_gradient_is_zero_at_the_base_and_pulls_back_elsewhere(tmp_path):
    plain = make_config(tmp_path, SETTINGS[0])
    anchored = make_config(tmp_path, *SETTINGS)
    assert relative_distance(gradient_of(make_trainer(anchored)), gradient_of(make_trainer(plain))) < 1e-6
    trainer = make_trainer(anchored)
    base = copy.deepcopy(trainer.model)
    move(trainer.model)
    gradient = gradient_of(trainer)
    back = sum(
        (gradient[name] * (parameter - dict(base.named_parameters())[name])).sum()
        for name, parameter in trainer.model.named_parameters()
        if name in gradient
    )
    assert back > 0  # a step against the gradient goes towards the base


def test_parts_of_a_batch_do_not_change_it(tmp_path):
    gradients = []
    for parts in (1, 2, 4):
        config = make_config(tmp_path, *SETTINGS, f"optim.gradient_accumulation_steps={parts}")
        trainer = make_trainer(config, model=make_model(config))
        move(trainer.model)
        gradients.append(gradient_of(trainer))
    assert all(relative_distance(gradient, gradients[0]) < 1e-4 for gradient in gradients[1:])


def test_it_is_logged(tmp_path):
    trainer = make_trainer(make_config(tmp_path, *SETTINGS))
    row = trainer.iterate(1, trainer.batches(0))
    assert row["anchor"] == 0 and "kl" not in row  # a penalty of weight 0 is not computed
    move(trainer.model)
    row = trainer.iterate(2, trainer.batches(1))
    assert row["anchor"] > 0 and row["loss"] > 50 * row["anchor"]
