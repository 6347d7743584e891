"""Held-out metrics of a predictor: fixed noise, pairs, and what is kept of them."""

import json

import hand_written
import pytest
import torch
from training_runs import make_clips, make_config, make_model, make_trainer

from vampo_core.data.clips import collate
from vampo_core.diffusion.streams import ROLLOUT, stream_seed
from vampo_core.evaluation.predictor import EvalResult, evaluate_predictor, held_out_batch
from vampo_core.evaluation.statistics import Metric, bootstrap, paired_difference


def evaluate(config, model=None, **options):
    model = make_model(config) if model is None else model
    return evaluate_predictor(
        model, model.sampler(**config.sampler.overrides()), held_out_batch(make_clips(8, 9), 4), **options
    )


def test_paired_difference(tmp_path):
    config = make_config(tmp_path)
    before, model = evaluate(config), make_model(config)
    for parameter in model.unet.parameters():
        parameter.data *= 1.05
    after = evaluate(config, model)
    for metric in ("l1", "cosine", "reward"):
        difference = paired_difference(before, after, metric)
        clips = [b - a for a, b in zip(before.per_clip[metric], after.per_clip[metric], strict=True)]
        assert difference == bootstrap(clips, before.episode_ids)
        assert difference.mean == pytest.approx(getattr(after, metric).mean - getattr(before, metric).mean, abs=1e-6)
    assert paired_difference(before, before, "l1") == Metric(0.0, None)
    other = EvalResult.from_dict(before.to_dict() | {"episode_ids": ["x"] * 4})
    with pytest.raises(ValueError, match="different clips"):
        paired_difference(before, other, "l1")


def test_metrics_are_those_of_predictions_made_one_by_one(tmp_path):
    config = make_config(tmp_path, "grpo.num_generations=2")
    batch = held_out_batch(make_clips(8, 9), 4)
    model = make_model(config)
    seed = stream_seed(config.run.seed, ROLLOUT)  # the hand-written rollout derives its seed from that of the run
    result = evaluate(config, model, num_samples=2, seed=seed, batch_size=4)
    rewards = torch.stack([group.rewards for group in hand_written.roll_out(model, config, batch)])  # [B, G, F]
    assert result.per_clip["reward"] == pytest.approx(rewards.mean((1, 2)).tolist(), rel=1e-4)
    assert result.per_frame["reward"] == pytest.approx(rewards.mean((0, 1)).tolist(), rel=1e-4)
    assert result.reward.mean == pytest.approx(rewards.mean().item(), rel=1e-4)
    assert result.reward.mean == pytest.approx(result.cosine.mean - result.l1.mean, rel=1e-4)
    assert (result.num_clips, result.num_samples, len(result.episode_ids)) == (4, 2, 4)


def test_noise_is_fixed_whatever_the_batch_size(tmp_path):
    config = make_config(tmp_path)
    whole = evaluate(config, num_samples=2, batch_size=16)
    assert evaluate(config, num_samples=2, batch_size=16) == whole
    assert evaluate(config, num_samples=2, batch_size=3).per_clip["l1"] == pytest.approx(whole.per_clip["l1"], rel=1e-5)
    assert evaluate(config, num_samples=2, seed=1).l1 != whole.l1


def test_evaluation_leaves_the_run_as_it_is(tmp_path):
    """No mode, no generator and no gradient of the training changes."""
    trainer = make_trainer(make_config(tmp_path))
    trainer.model.train()
    state = torch.get_rng_state()
    trainer.evaluate()
    assert trainer.model.training and torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in trainer.optimizer.parameters)


def test_clips_are_spread_over_the_held_out_episodes():
    dataset = make_clips(8, 9)  # six clips each
    ids = held_out_batch(dataset, 4)["clip_id"]
    assert ids == [dataset[i]["clip_id"] for i in (0, 4, 7, 11)]
    assert len(held_out_batch(dataset, 99)["clip_id"]) == len(dataset) == 12
    assert held_out_batch(dataset, 99)["clip_id"] == collate([dataset[i] for i in range(12)])["clip_id"]


def test_result_survives_json(tmp_path):
    result = evaluate(make_config(tmp_path))
    assert EvalResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result


def test_results_of_the_first_version_load(tmp_path):
    """They gave a point as the interval of a single clip."""
    result = evaluate(make_config(tmp_path))
    old = result.to_dict() | {"l1": {"mean": 0.5, "ci95": [0.5, 0.5]}, "cosine": {"mean": 0.5, "ci95": [0.4, 0.6]}}
    loaded = EvalResult.from_dict(old)
    assert loaded.l1 == Metric(0.5, None) and loaded.cosine == Metric(0.5, (0.4, 0.6))
