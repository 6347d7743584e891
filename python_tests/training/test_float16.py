"""Training in float16: what would underflow is scaled up, what overflows costs one update and not the run."""

import itertools
import math

import pytest
import torch
from policy_runs import make_policy_trainer, policy_config
from training_runs import (
    assert_same_run,
    gradient_of,
    make_config,
    make_pretrainer,
    make_trainer,
    metrics_of,
    relative_distance,
    trained_weights,
)

from vampo_core.training.checkpoint import find_checkpoint, read_counters
from vampo_core.training.optimizer import NonFiniteError
from vampo_core.training.processes import new_accelerator

HALF = "model.dtype=float16"


def overflowing_in(trainer, *calls):
    """Have the gradient of one parameter overflow in these backward passes; returns the trainer."""
    passes = []

    def spoil(gradient):
        passes.append(gradient)
        return gradient * math.inf if len(passes) in calls else None

    dict(trainer.model.named_parameters())["unet.conv_out.bias"].register_hook(spoil)
    return trainer


def test_gradient_is_that_of_float32(tmp_path):
    full = gradient_of(make_trainer(make_config(tmp_path)))
    half = gradient_of(make_trainer(make_config(tmp_path, HALF)))
    assert relative_distance(half, full) < 0.1  # the predictions and so the advantages differ a little too
    zeros = {name for name, gradient in full.items() if gradient.abs().max() == 0}
    assert {name for name, gradient in half.items() if gradient.abs().max() == 0} <= zeros


def test_gradients_too_small_for_float16_arrive(tmp_path):
    """A loss of a real model's size: its gradients are some 1e-9 per latent, float16 ends at 6e-8."""
    ranks = [lambda pred, *_: torch.arange(4.0).view(4, 1).expand(pred.shape[:3])]  # no rounding reaches advantages
    gradients = {}
    for dtype in ("float32", "float16"):
        trainer = make_trainer(make_config(tmp_path, f"model.dtype={dtype}"), reward_funcs=ranks)
        original = trainer.optimizer.backward
        trainer.optimizer.backward = lambda loss, original=original, **rest: original(loss * 1e-5, **rest)
        gradients[dtype] = gradient_of(trainer)
    assert relative_distance(gradients["float16"], gradients["float32"]) < 0.05


def test_an_overflow_leaves_one_update_out_and_is_logged(tmp_path):
    trainer = overflowing_in(make_trainer(make_config(tmp_path, HALF, "model.ema_decay=0.9")), 2)
    weights = [trained_weights(trainer)]
    trainer.callbacks.append(lambda trainer, row: weights.append(trained_weights(trainer)))
    rows = trainer.train().history
    assert [row["loss_scale"] for row in rows] == [65536, 32768, 32768, 32768]
    assert [row["num_skipped"] for row in rows] == [0, 1, 1, 1]
    assert rows[1]["grad_norm"] is None and rows[2]["grad_norm"] > 0
    same = [all(torch.equal(old[n], new[n]) for n in old) for old, new in itertools.pairwise(weights)]
    assert same == [False, True, False, False]
    assert trainer.optimizer.ema.optimization_step == 3


@pytest.mark.parametrize("overflow", [(), (2,)], ids=["smooth", "overflow"])
def test_resume_is_exact(tmp_path, overflow):
    overflowing_in(make_trainer(make_config(tmp_path / "whole", HALF)), *overflow).train()
    overflowing_in(make_trainer(make_config(tmp_path / "parts", HALF, "grpo.num_iterations=2")), *overflow).train()
    assert read_counters(find_checkpoint(tmp_path / "parts"))["scaler"]["scale"] == (32768 if overflow else 65536)
    make_trainer(make_config(tmp_path / "parts", HALF)).train(resume_from=tmp_path / "parts")
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


def test_a_gradient_that_no_scale_makes_finite_stops_the_run(tmp_path):
    trainer = overflowing_in(make_trainer(make_config(tmp_path, HALF, "grpo.num_iterations=30")), *range(1, 99))
    with pytest.raises(NonFiniteError, match=r"iteration 17: the gradient of unet\.conv_out\.bias is not finite"):
        trainer.train()
    assert len(metrics_of(tmp_path)) == 16


def test_a_loss_that_is_not_finite_stops_the_run_at_once(tmp_path):
    trainer = make_trainer(make_config(tmp_path, HALF))
    original = trainer.engine.log_prob
    trainer.engine.log_prob = lambda *arguments: original(*arguments) * math.nan
    with pytest.raises(NonFiniteError, match="iteration 1: the loss is nan"):
        trainer.train()


def test_pretraining_and_policies_are_scaled_too(tmp_path):
    pretrainer = make_pretrainer(make_config(tmp_path / "pretrain", HALF))
    policy = make_policy_trainer(policy_config(tmp_path / "policy", HALF, "policy.train_predictor=true"))
    for trainer in (pretrainer, policy):
        rows = trainer.train().history
        assert all(row["loss_scale"] >= 1 and row["grad_norm"] > 0 for row in rows)


def test_no_scale_in_other_precisions(tmp_path):
    for dtype in ("float32", "bfloat16"):
        trainer = make_trainer(make_config(tmp_path / dtype, f"model.dtype={dtype}"))
        assert not trainer.optimizer.scaler.is_enabled()
        assert not {"loss_scale", "num_skipped"} & trainer.train().history[0].keys()


def test_accelerates_own_precision_changes_nothing(tmp_path, monkeypatch):
    """``accelerate launch --mixed_precision`` and its configuration file reach a process as this variable."""
    from accelerate.state import AcceleratorState

    monkeypatch.setattr(AcceleratorState, "_shared_state", {})
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert new_accelerator().mixed_precision == "no"
    trainer = make_trainer(make_config(tmp_path))
    seen = set()
    trainer.model.unet.register_forward_hook(lambda _, given, out: seen.add(out[0].dtype))
    trainer.iterate(1, trainer.batches(0))
    assert seen == {torch.float32}
