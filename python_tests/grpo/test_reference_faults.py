"""Faults of the paper's released code and of its peers (section 7 of the design): none of them is here.

Some have a closer look elsewhere: the surrogate in test_grpo_loss, gradients in test_grpo_gradient, ratios in
test_grpo_ratio, resuming in test_training_resume, two processes in test_two_processes.
"""

import pickle

import pytest
import tiny_run
import torch
from config_reads import keys_read
from torch import nn
from training_runs import (
    WAN,
    gradient_of,
    make_config,
    make_model,
    make_pretrainer,
    make_trainer,
    relative_distance,
    trained_weights,
)

from vampo_core import api
from vampo_core.config.vampo import keys
from vampo_core.grpo.loss import clipped_surrogate
from vampo_core.ops import group_advantages
from vampo_core.training import optimizer
from vampo_core.training.checkpoint import CheckpointError, find_checkpoint, read_state
from vampo_core.training.loop import Loop


def after_two_iterations(config, **options):
    """Weights of the policy after two iterations."""
    trainer = make_trainer(config, **options)
    for iteration in (1, 2):
        trainer.iterate(iteration, trainer.batches(iteration - 1))
    return trained_weights(trainer)


def test_fault_1_minimum_instead_of_maximum():
    """A ratio that left the clip range on the good side has no gradient, one on the bad side keeps it."""
    log_prob = torch.tensor([[[0.5]], [[-0.5]]], requires_grad=True)
    advantages = torch.tensor([[[1.0]], [[1.0]]])
    loss = clipped_surrogate(log_prob, torch.zeros(2, 1, 1), advantages, clip_range=0.1).loss
    (gradient,) = torch.autograd.grad(loss, log_prob)
    assert gradient[0].item() == 0 and gradient[1].item() < 0


def test_fault_2_group_ordering(tmp_path):
    """B = G = 8: a generation-major rollout read batch-major would compare eight different clips."""
    trainer = make_trainer(make_config(tmp_path, "grpo.batch_size=8", "grpo.num_generations=8"))
    trainer.model.unet = GivenFrame(trainer.model.unet)
    rollout = trainer.engine.rollout(next(trainer.batches(0)), seed=0)
    target = rollout.batch["latents"]
    distance = (rollout.latents[:, :, None, 0] - target[None, None, :, 0]).square().flatten(3).mean(-1)  # [B, G, B]
    assert len(set(rollout.batch["clip_id"])) == 8
    assert torch.equal(distance.argmin(-1), torch.arange(8).view(8, 1).expand(8, 8))


class GivenFrame(nn.Module):
    """Denoises every frame to the first one, which it is given beside the noisy latents (v-prediction)."""

    def __init__(self, unet):
        super().__init__()
        self.config, self.conv_in, self.scale = unet.config, unet.conv_in, nn.Parameter(torch.ones(()))

    def forward(self, sample, time, states, ids, return_dict=False):
        scaled, first = sample.chunk(2, dim=2)
        sigma = (4 * time).exp().view(-1, 1, 1, 1, 1)
        noisy = scaled * (sigma**2 + 1).sqrt()
        return (self.scale * (noisy / (sigma**2 + 1) - first) * (sigma**2 + 1).sqrt() / sigma,)


@pytest.mark.parametrize("steps", ["[0]", "[1]", "[0,1,2]"])
def test_fault_3_stale_scheduler_index(tmp_path, steps):
    """The update scores each action at the noise level at which it was drawn: 0.86 to 0.95 in the reference."""
    config = make_config(tmp_path, f"sampler.stochastic_steps={steps}", "grpo.reuse_first_step=false")
    trainer = make_trainer(config)
    row = trainer.iterate(1, trainer.batches(0))
    assert row["ratio_max_dev"] < 1e-4


def test_fault_4_gradients_that_processes_do_not_average(tmp_path, monkeypatch):
    """One average per update covers every gradient, from all passes; test_two_processes checks the values."""
    averaged = []
    monkeypatch.setattr(optimizer, "average", lambda gradients, accelerator: averaged.append(len(gradients)))
    settings = {
        "one pass": [],
        "all at once": [
            *("sampler.stochastic_steps=[0,1]", "optim.gradient_accumulation_steps=2", "grpo.anchor_coef=1"),
            *("grpo.num_inner_epochs=2", "grpo.kl_coef=0.1"),
        ],
    }
    for name, overrides in settings.items():
        trainer = make_trainer(make_config(tmp_path / name, *overrides))
        trainer.iterate(1, trainer.batches(0))
        assert averaged == [len(trainer.optimizer.parameters)] * trainer.config.grpo.num_inner_epochs
        averaged.clear()
    pretrainer = make_pretrainer(make_config(tmp_path / "pretraining"))
    pretrainer.iterate(1, pretrainer.batches(0))
    assert averaged == [len(pretrainer.optimizer.parameters)]


CHANGES = {
    "grpo.batch_size": ["grpo.batch_size=3"],
    "grpo.num_generations": ["grpo.num_generations=6"],
    "grpo.num_inner_epochs": ["grpo.num_inner_epochs=2"],
    "grpo.clip_range": ["grpo.clip_range=1e-6", "grpo.num_inner_epochs=2"],
    "grpo.credit": ["grpo.credit=clip"],
    "grpo.rectify_steps": ["grpo.rectify_steps=true", "sampler.stochastic_steps=[0,1]"],
    "grpo.adv_clip_max": ["grpo.adv_clip_max=0.3"],
    "grpo.kl_coef": ["grpo.kl_coef=10"],
    "grpo.anchor_coef": ["grpo.anchor_coef=10"],
    "sampler.num_inference_steps": ["sampler.num_inference_steps=5"],
    "sampler.sigma_min": ["sampler.sigma_min=0.1"],
    "sampler.sigma_max": ["sampler.sigma_max=100"],
    "sampler.rho": ["sampler.rho=5"],
    "sampler.eta": ["sampler.eta=0.5"],
    "sampler.stochastic_steps": ["sampler.stochastic_steps=[1]"],
    "sampler.guidance_scale": ["sampler.guidance_scale=2"],
    "sampler.guidance_interval": ["sampler.guidance_interval=[0, 20]", "sampler.guidance_scale=2"],
    "sampler.solver": ["sampler.solver=unipc"],
    "sampler.flow_shift": [*WAN, "sampler.flow_shift=3"],
    "sampler.tail_dtype": ["sampler.tail_dtype=bfloat16"],
    "sampler.tail_steps": ["sampler.tail_steps=1"],
    "reward.l1_weight": ["reward.l1_weight=0"],
    "reward.cosine_weight": ["reward.cosine_weight=0"],
    "reward.motion_weight": ["reward.motion_weight=1"],
    "reward.moving_weight": ["reward.moving_weight=1"],
    "optim.lr": ["optim.lr=2e-3"],
    "optim.weight_decay": ["optim.weight_decay=0.5"],
    "optim.max_grad_norm": ["optim.max_grad_norm=1e-9"],
    "optim.warmup_steps": ["optim.warmup_steps=4"],
    "optim.decay_steps": ["optim.decay_steps=4"],
    "optim.beta1": ["optim.beta1=0.5"],
    "optim.beta2": ["optim.beta2=0.5"],
    "model.dtype": ["model.dtype=bfloat16"],
    "run.seed": ["run.seed=1"],
}
"""Each key, and overrides beside which only the key itself may be what makes the difference."""
BESIDE = {
    "grpo.clip_range": ["grpo.num_inner_epochs=2"],
    "sampler.guidance_interval": ["sampler.guidance_scale=2"],
    "grpo.rectify_steps": ["sampler.stochastic_steps=[0,1]"],
    "sampler.flow_shift": WAN,
}
SAME = {
    "grpo.reuse_first_step": "false",
    "sampler.tail_chunk_size": "3",
    "optim.gradient_accumulation_steps": "2",
    "model.gradient_checkpointing": "true",
    "model.ema_decay": "0.9",
}
"""Keys that say how the work is done, or what is saved: the first gradient is the same."""


@pytest.fixture(scope="module")
def unchanged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unchanged")
    return {(): after_two_iterations(make_config(folder))} | {
        tuple(beside): after_two_iterations(make_config(folder, *beside)) for beside in BESIDE.values()
    }


@pytest.mark.parametrize("key", CHANGES)
def test_fault_5_config_keys_that_are_ignored(tmp_path, unchanged, key):
    before = unchanged[tuple(BESIDE.get(key, []))]
    config = make_config(tmp_path, *CHANGES[key])
    assert relative_distance(after_two_iterations(config), before) > 1e-5


@pytest.mark.parametrize("key", SAME)
def test_fault_5_keys_that_say_how(tmp_path, key):
    first = gradient_of(make_trainer(make_config(tmp_path)))
    other = make_config(tmp_path, f"{key}={SAME[key]}")
    assert relative_distance(gradient_of(make_trainer(other)), first) < 1e-4


def test_fault_5_no_key_is_left_out():
    elsewhere = {"grpo.num_iterations", "reward.pixel_weight", "reward.action_weight", "reward.action_decoder"}
    assert {key for key in keys() if key.split(".")[0] in ("grpo", "sampler", "reward", "optim")} <= {
        *CHANGES,
        *SAME,
        *elsewhere,
    }


SECTIONS = {
    "pretrain": ("model", "data", "pretrain", "evaluation", "decoder", "run"),
    "train": ("grpo", "sampler", "reward", "optim", "model", "data", "evaluation", "decoder", "run"),
    "policy train": ("policy", "data", "evaluation", "run"),
    "policy eval": ("closed_loop",),
}
"""Each verb, and the sections whose every key it reads."""
ELSEWHERE = {
    "pretrain": {
        "data.camera",
        "data.state",
        "data.action",
        "model.text_encoder",
        "model.ema_decay",
        "run.eval_every",
        "run.save_every",
    },
    "train": {
        *(
            "data.camera",
            "data.state",
            "data.action",
            "model.patch_size",
            "model.latent_channels",
            "model.block_out_channels",
        ),
        *("model.layers_per_block", "model.num_attention_heads", "model.backbone", "model.num_layers"),
    },
    "policy train": {
        *("data.camera", "data.state", "data.action", "data.weights", "run.eval_every", "run.save_every"),
        *("evaluation.action_error", "evaluation.best_by", "evaluation.cheap_tail"),
    },
    "policy eval": set(),
}
"""Except for these: recorded episodes have one camera, a new model has no text encoder yet, ``train`` was given a model
that has its shape, intervals of pretraining and policies, and pretraining's running mean, stand in their own sections,
and a policy has one dataset and no videos to predict and judge."""


def test_fault_5_every_verb_reads_its_sections(tmp_path, monkeypatch):
    tiny_run.write_dataset(tmp_path / "data")
    monkeypatch.setattr("vampo_core.pipeline.clips.record", lambda *args, **options: None)  # the episodes are there
    monkeypatch.setattr("vampo_core.pipeline.closed_loop.evaluate_closed_loop", lambda *args, **options: None)
    config, seen = tiny_run.settings(tmp_path, "data.env=pusht"), {}
    base, started = f"run.dir={tmp_path}/base", f"model.pretrained={tmp_path}/base"
    policy = [f"run.dir={tmp_path}/policy", "policy.num_steps=2", "policy.train_predictor=true"]
    work = {
        "pretrain": lambda: api.pretrain(config, base),
        "train": lambda: api.train(config, started, "reward.action_weight=0.5"),
        "policy train": lambda: api.train_policy(config, started, *policy),
        "policy eval": lambda: api.evaluate_policy(tmp_path / "policy", config),
    }
    for verb, call in work.items():
        with keys_read() as seen[verb]:
            call()
    unread = {
        verb: {key for key in keys() if key.split(".")[0] in sections} - seen[verb]
        for verb, sections in SECTIONS.items()
    }
    assert unread == ELSEWHERE


def test_fault_6_dropout_while_scoring(tmp_path):
    config = make_config(tmp_path, "grpo.reuse_first_step=false", "model.lora=4")
    trainer = make_trainer(config, model=make_model(config, lora_dropout=0.5))
    row = trainer.iterate(1, trainer.batches(0))
    assert trainer.model.training and row["ratio_max_dev"] < 1e-6


def test_fault_7_batches_that_do_not_divide(tmp_path):
    """Chunks of any size, and a loss that is a mean: parts do not change the step size."""
    whole = gradient_of(make_trainer(make_config(tmp_path, "grpo.batch_size=3")))
    for settings in (["sampler.tail_chunk_size=5"], ["optim.gradient_accumulation_steps=3"]):
        config = make_config(tmp_path, "grpo.batch_size=3", *settings)
        assert relative_distance(gradient_of(make_trainer(config)), whole) < 1e-4
    with pytest.raises(ValueError, match=r"gradient_accumulation_steps is 2, expected a divisor of .* = 3"):
        make_config(tmp_path, "grpo.batch_size=3", "optim.gradient_accumulation_steps=2")


def test_fault_8_logarithm_of_a_zero_sigma_up(tmp_path):
    with pytest.raises(ValueError, match=r"sampler\.stochastic_steps is \[3\].*no density"):
        make_config(tmp_path, "sampler.stochastic_steps=[3]")
    trainer = make_trainer(make_config(tmp_path, "sampler.stochastic_steps=[0,1,2]"))
    rollout = trainer.engine.rollout(next(trainer.batches(0)), seed=0)
    assert all(torch.isfinite(step.log_prob).all() for step in rollout.steps)


def test_fault_9_untrusted_pickles(tmp_path):
    config = make_config(tmp_path / "run")
    make_trainer(config).train()

    class Malicious:
        def __reduce__(self):
            return (type(tmp_path).touch, (tmp_path / "pwned",))

    file = find_checkpoint(tmp_path / "run") / "trainer_state" / "optimizer.pt"
    file.write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(CheckpointError, match="cannot be read"):
        make_trainer(config).train(resume_from=tmp_path / "run")
    assert not (tmp_path / "pwned").exists()


def test_fault_10_checkpoints_without_optimizer_state(tmp_path):
    make_trainer(make_config(tmp_path)).train()
    state = read_state(find_checkpoint(tmp_path))
    moments = [entry["exp_avg"] for entry in state.optimizer["state"].values()]
    assert len(moments) == len(state.weights["policy"]) and any(m.abs().max() > 0 for m in moments)
    assert state.counters["num_updates"] == 4


def test_peer_fault_kl_without_gradient(tmp_path):
    """The penalty moves the weights although no reward tells the generations apart."""
    trainer = make_trainer(
        make_config(tmp_path, "grpo.kl_coef=1.0"), reward_funcs=[lambda pred, *_: torch.zeros(pred.shape[:3])]
    )
    for parameter in trainer.model.unet.parameters():
        parameter.data += 0.01
    gradient = gradient_of(trainer)
    assert max(value.abs().max() for value in gradient.values()) > 0
    assert all(p.grad is None for p in trainer.reference.parameters())
    row = trainer.iterate(1, trainer.batches(0))
    assert row["loss"] == pytest.approx(row["kl"]) and row["kl"] > 0


def test_peer_fault_resume_silently_skipped(tmp_path, monkeypatch):
    config = make_config(tmp_path)
    make_trainer(config).train()
    done = []
    monkeypatch.setattr(Loop, "_finish", lambda loop, record, ends: done.append(record) or {})
    result = make_trainer(config).train(resume_from=tmp_path)
    assert not done and len(result.history) == 4 and not result.interrupted
    with pytest.raises(ValueError, match="expected a folder"):
        make_trainer(config).train(resume_from=tmp_path / "nothing")


def test_peer_fault_rollout_in_another_precision(tmp_path):
    """The UNet's outputs have the autocast's dtype in the rollout and in the update."""
    config, seen = make_config(tmp_path, "model.dtype=bfloat16"), set()
    trainer = make_trainer(config)
    trainer.model.unet.register_forward_hook(lambda _, given, out: seen.add((out[0].dtype, out[0].requires_grad)))
    trainer.iterate(1, trainer.batches(0))
    assert seen == {(torch.bfloat16, True), (torch.bfloat16, False)}


def test_peer_fault_half_precision_adapters_round_updates_away(tmp_path):
    config = make_config(tmp_path, "model.lora=2", "model.dtype=bfloat16", "optim.lr=1e-6")
    trainer = make_trainer(config)
    before = trained_weights(trainer)
    assert {value.dtype for value in before.values()} == {torch.float32}
    trainer.iterate(1, trainer.batches(0))
    after = trained_weights(trainer)
    moved = [name for name in before if (before[name] != after[name]).float().mean() > 0.9]
    assert moved == list(before)


def test_peer_fault_groups_keyed_by_instruction(tmp_path):
    """Every clip here has the same instruction: rewards that differ between clips alone teach nothing."""
    trainer = make_trainer(
        make_config(tmp_path, "grpo.batch_size=4"),
        reward_funcs=[lambda pred, *_: torch.arange(4.0).view(4, 1, 1).expand(pred.shape[:3])],
    )
    assert all(gradient.abs().max() == 0 for gradient in gradient_of(trainer).values())


def test_peer_fault_division_by_no_spread():
    rewards = torch.full((2, 4, 3), 0.1)
    rewards[1, :, 0] = torch.arange(4.0)
    advantages = group_advantages(rewards)
    assert advantages[0].abs().max() == 0 and advantages[1, :, 1:].abs().max() == 0
    assert advantages[1, :, 0].std() == pytest.approx(1)
