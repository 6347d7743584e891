"""A frame that the condition gives: in every video bit for bit, unseen by noise, log-probability and reward."""

import pytest
import torch
from training_runs import NUM_FRAMES, WAN, gradient_of, make_clips, make_config, make_trainer, relative_distance

from vampo_core.evaluation.predictor import evaluate_predictor, held_out_batch, predict

CREDITS = {"frame": [], "clip": ["grpo.credit=clip"], "pathwise": ["grpo.credit=pathwise"]}


@pytest.mark.parametrize("settings", [[], ["grpo.reuse_first_step=false"], CREDITS["pathwise"]])
def test_every_rollout_begins_with_the_condition(tmp_path, settings):
    trainer = make_trainer(make_config(tmp_path, *WAN, *settings))
    batch = next(trainer.batches(0))
    rollout = trainer.engine.rollout(batch, seed=3)
    first = batch["latents"][:, 0]
    assert torch.equal(rollout.condition.image_latents, first)
    assert rollout.latents.shape[2] == NUM_FRAMES
    assert all(torch.equal(rollout.latents[:, g, 0], first) for g in range(4))
    (step,) = rollout.steps
    assert step.sample.shape[1] == step.prev_sample.shape[2] == step.log_prob.shape[2] == NUM_FRAMES - 1
    assert not torch.equal(rollout.latents[:, 0, 1], rollout.latents[:, 1, 1])


@pytest.mark.parametrize("credit", CREDITS)
def test_rewards_of_a_given_frame_count_for_nothing(tmp_path, credit):
    config, seen = make_config(tmp_path, *WAN, *CREDITS[credit]), []

    def reward(pred, target, batch, bonus=0.0):
        seen.append(pred)
        values = -(pred - target.unsqueeze(1)).abs().mean((3, 4, 5))
        return values + bonus * torch.tensor([1.0, 0.0, 0.0]) * torch.arange(4.0).view(1, 4, 1)

    plain = gradient_of(make_trainer(config, reward_funcs=[reward]))

    def tempting(pred, target, batch):
        return reward(pred, target, batch, bonus=1e3)

    assert relative_distance(gradient_of(make_trainer(config, reward_funcs=[tempting])), plain) < 1e-6
    assert seen[0].shape[2] == NUM_FRAMES  # a reward gets whole videos
    trainer = make_trainer(config, reward_funcs=[tempting])
    assert trainer.iterate(1, trainer.batches(0))["reward_mean"] < 0


def test_held_out_metrics_are_those_of_predicted_frames(tmp_path):
    trainer = make_trainer(make_config(tmp_path, *WAN))
    batch = held_out_batch(make_clips(8, 9), 3)
    model, sampler = trainer.model, trainer.sampler
    videos = predict(model, sampler, batch, num_samples=2, seed=0, batch_size=4)
    assert videos.shape[2] == NUM_FRAMES and torch.equal(videos[:, 1, 0], batch["latents"][:, 0])
    result = evaluate_predictor(model, sampler, batch, num_samples=2)
    error = (videos - batch["latents"].unsqueeze(1)).abs()[:, :, 1:].mean()
    assert result.l1.mean == pytest.approx(float(error), rel=1e-5)
    assert len(result.per_frame["l1"]) == NUM_FRAMES - 1
    assert trainer.evaluate().l1.mean > 0
