"""Compute in denoiser forwards, against the forwards that training makes."""

import pytest
import torch
from training_runs import make_config, make_model, make_pretrainer, make_trainer

from vampo_core.config import GRPOConfig
from vampo_core.diffusion.sampler import EulerHybridSampler
from vampo_core.grpo.cost import forwards_per_iteration, likelihood_updates


def counted(model) -> list[int]:
    """Denoiser forwards of the model and of copies made of it from now on; one with gradient counts as three."""
    counts: list[int] = []
    model.unet.register_forward_pre_hook(
        lambda _, args: counts.append(len(args[0]) * (3 if torch.is_grad_enabled() else 1))
    )
    return counts


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("sampler.stochastic_steps=[1]",),
        ("sampler.stochastic_steps=[0, 2]", "grpo.num_inner_epochs=2"),
        ("grpo.reuse_first_step=false", "grpo.kl_coef=0.1"),
        ("sampler.guidance_scale=2", "grpo.num_generations=3"),
        ("grpo.anchor_coef=0.1", "grpo.num_inner_epochs=2", "grpo.batch_size=3"),
        ("sampler.tail_steps=1", "sampler.solver=unipc"),
        ("sampler.guidance_scale=2", "sampler.guidance_interval=[0, 20]", "sampler.stochastic_steps=[0, 2]"),
        ("sampler.guidance_scale=2", "sampler.guidance_interval=[20, 100]", "grpo.kl_coef=0.1"),
        ("sampler.guidance_scale=2", "sampler.stochastic_steps=[0, 1]", "grpo.kl_coef=0.1", "grpo.anchor_coef=0.1"),
    ],
)  # fmt: skip
def test_an_iteration_costs_what_is_counted(tmp_path, overrides):
    config = make_config(tmp_path, *overrides)
    model = make_model(config)
    counts = counted(model)
    trainer = make_trainer(config, model=model)
    trainer.iterate(2, trainer.batches(1))  # the first one also follows one clip's draws again
    assert sum(counts) == forwards_per_iteration(config.grpo, trainer.sampler)


def test_a_derivative_costs_the_tail_once_more(tmp_path):
    config = make_config(tmp_path, "grpo.credit=pathwise", "sampler.tail_steps=2")
    score = make_config(tmp_path, "grpo.credit=frame", "sampler.tail_steps=2")
    sampler = make_trainer(config).sampler
    counts = [forwards_per_iteration(c.grpo, sampler) for c in (config, score)]
    assert counts[0] - counts[1] == config.grpo.batch_size * config.grpo.num_generations * 2


def test_the_cost_of_the_preset_by_hand():
    grpo, sampler = GRPOConfig(batch_size=8, num_generations=16), EulerHybridSampler(num_inference_steps=2)
    assert forwards_per_iteration(grpo, sampler) == 8 * (3 + 16)
    eight = EulerHybridSampler(stochastic_steps=(3,))
    assert forwards_per_iteration(grpo, eight) == 8 * (3 + 3 + 16 * 4), "three shared, one with gradient, four each"
    cheap = EulerHybridSampler(stochastic_steps=(3,), tail_steps=1)
    assert forwards_per_iteration(grpo, cheap) == 8 * (3 + 3 + 16)


def test_as_many_updates_as_the_compute_pays_for(tmp_path):
    trainer = make_pretrainer(make_config(tmp_path))
    counts = counted(trainer.model)
    trainer.iterate(1, trainer.batches(0))
    (update,) = counts
    assert likelihood_updates(10 * update, batch_size=2) == 10
    assert likelihood_updates(10 * update - 1, batch_size=2) == 9
    assert likelihood_updates(1, batch_size=2) == 1
