"""The ratio before any update: exactly 1 where the pass is reused, and 1 within 1e-6 where it is repeated."""

import weakref

import pytest
import torch
from training_runs import WAN, gradient_of, make_config, make_model, make_trainer, relative_distance

MODELS = {
    "float32": ([], {}),
    "bfloat16": (["model.dtype=bfloat16"], {}),
    "lora": (["model.lora=4"], {"lora_dropout": 0.5}),
    "lora in bfloat16": (["model.lora=4", "model.dtype=bfloat16"], {"lora_dropout": 0.5}),
    "checkpointing": (["model.gradient_checkpointing=true"], {}),
    "checkpointing in bfloat16": (["model.gradient_checkpointing=true", "model.dtype=bfloat16"], {}),
    "dropout": ([], {"dropout": 0.5}),
    "flow": (WAN, {}),
    "flow in bfloat16": ([*WAN, "model.dtype=bfloat16"], {}),
    "flow, lora in bfloat16": ([*WAN, "model.lora=4", "model.dtype=bfloat16"], {"lora_dropout": 0.5}),
    "flow, guidance": ([*WAN, "sampler.guidance_scale=3"], {}),
    "flow, checkpointing": ([*WAN, "model.gradient_checkpointing=true"], {}),
}
SAMPLERS = {
    # a small step from much noise, sigma / sigma_up = 235, magnifies the rounding of the network's output
    "every step": ["sampler.stochastic_steps=[0,1,2]", "sampler.sigma_min=1.0"],
    "in chunks": ["sampler.tail_chunk_size=3"],
    "guidance": ["sampler.guidance_scale=2.0"],
}


def first_row(tmp_path, model, *overrides):
    settings, arguments = MODELS[model]
    config = make_config(tmp_path, *settings, *overrides)
    trainer = make_trainer(config, model=make_model(config, **arguments))
    before = [p.detach().clone() for p in trainer.optimizer.parameters]
    row = trainer.iterate(1, trainer.batches(0))
    assert any(not torch.equal(p, q) for p, q in zip(trainer.optimizer.parameters, before, strict=True))
    return row


@pytest.mark.parametrize("model", MODELS)
def test_ratio_is_exactly_one_in_the_first_inner_epoch(tmp_path, model):
    row = first_row(tmp_path, model)
    assert (row["ratio_max_dev"], row["ratio_mean"], row["approx_kl"], row["clip_fraction"]) == (0, 1, 0, 0)
    assert row["grad_norm"] > 0


@pytest.mark.parametrize(
    ("model", "sampler"),
    [*((model, "first step") for model in MODELS), *((m, s) for m in ("float32", "bfloat16") for s in SAMPLERS)],
)
def test_ratio_is_one_when_the_first_step_is_recomputed(tmp_path, model, sampler):
    row = first_row(tmp_path, model, "grpo.reuse_first_step=false", *SAMPLERS.get(sampler, []))
    assert row["ratio_max_dev"] < 1e-6
    assert row["clip_fraction"] == 0 and row["grad_norm"] > 0


@pytest.mark.parametrize("model", MODELS)
def test_later_stochastic_steps_are_on_policy_too(tmp_path, model):
    row = first_row(tmp_path, model, "sampler.stochastic_steps=[0,1,2]")
    assert row["ratio_max_dev"] < 1e-4 and row["clip_fraction"] == 0


@pytest.mark.parametrize("reuse", ["true", "false"])
def test_a_cheap_tail_biases_the_rewards_only(tmp_path, reuse):
    """Half precision and fewer steps behind the split leave draws, ratios and log-probabilities as they are."""
    plain = [f"grpo.reuse_first_step={reuse}", "sampler.num_inference_steps=5"]
    later = [*plain, "sampler.stochastic_steps=[0,2]", "sampler.tail_dtype=bfloat16"]
    row = first_row(tmp_path, "float32", *later)
    assert row["ratio_max_dev"] < 1e-5
    rollouts = {}
    for what, tail in {"full": [], "cheap": ["sampler.tail_dtype=bfloat16", "sampler.tail_steps=3"]}.items():
        trainer = make_trainer(make_config(tmp_path, *plain, *tail))
        rollouts[what] = trainer.engine.rollout(next(trainer.batches(0)), seed=0)
    full, cheap = (rollouts[what].steps[0] for what in ("full", "cheap"))
    assert torch.equal(full.prev_sample, cheap.prev_sample)
    assert torch.equal(full.log_prob, cheap.log_prob)
    assert not torch.equal(rollouts["full"].latents, rollouts["cheap"].latents)
    assert rollouts["cheap"].latents.dtype == torch.float32


@pytest.mark.parametrize("model", ["float32", "lora", "dropout"])
def test_both_modes_have_the_same_gradient(tmp_path, model):
    """One mode is the check of the other."""
    settings, arguments = MODELS[model]
    gradients = []
    for reuse in ("true", "false"):
        config = make_config(tmp_path, *settings, f"grpo.reuse_first_step={reuse}")
        gradients.append(gradient_of(make_trainer(config, model=make_model(config, **arguments))))
    assert relative_distance(*gradients) < 1e-4


@pytest.mark.parametrize(("epochs", "alive"), [(1, [0, 0, 0]), (2, [0, 1, 2])])
def test_a_rollout_is_gone_when_the_next_part_begins_unless_a_later_epoch_needs_it(tmp_path, epochs, alive):
    parts = ["optim.gradient_accumulation_steps=3", "grpo.batch_size=3", f"grpo.num_inner_epochs={epochs}"]
    trainer, seen, counts = make_trainer(make_config(tmp_path, *parts)), [], []
    roll_out = trainer.engine.rollout

    def counted(*args, **options):
        counts.append(sum(reference() is not None for reference in seen))
        rollout = roll_out(*args, **options)
        seen.append(weakref.ref(rollout.latents))
        return rollout

    trainer.engine.rollout = counted
    trainer.iterate(1, trainer.batches(0))
    assert counts == alive
