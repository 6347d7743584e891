"""The judge of actions in predicted videos, the metrics that it measures, and the choice of the best checkpoint."""

import dataclasses
import json

import pytest
import torch
from moving_episodes import ReadsWritten, WrittenEpisode

from vampo_core.config import ConfigError, RewardConfig, load_config
from vampo_core.data.clips import ClipDataset, collate
from vampo_core.evaluation.judge import Judge
from vampo_core.evaluation.predictor import EvalResult, score
from vampo_core.evaluation.statistics import Metric

STRIDE = 2
DECODER = ReadsWritten(STRIDE)


def batch_of(*starts, length=20, pushed=(), frames=4):
    """Clips of one episode each."""
    clips = [
        ClipDataset([WrittenEpisode(number=i, length=length, pushed=pushed)], num_frames=frames, stride=STRIDE)[start]
        for i, start in enumerate(starts)
    ]
    return collate(clips)


def noisy(batch, num_samples=2, seed=0):
    latents = batch["latents"].unsqueeze(1)
    shape = (latents.shape[0], num_samples, *latents.shape[2:])
    return latents + torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def errors_in_loops(videos, batch, decoder=DECODER):
    """Mean error of each clip and sample, over the frames with an action that counts; the first pair counts twice."""
    clips = []
    for b, samples in enumerate(videos):
        rows = []
        for video in samples:
            by_frame = []
            for f in range(len(video)):
                pair = max(f - 1, 0)
                (decoded,) = decoder(video[pair : pair + 1], video[pair + 1 : pair + 2])
                steps = [
                    (decoded[i] - batch["action_chunks"][b, pair, i] / 4).abs().mean()
                    for i in range(STRIDE)
                    if batch["action_valid"][b, pair]
                ]
                by_frame += [sum(steps) / len(steps)] if steps else []
            rows.append(sum(by_frame) / len(by_frame))
        clips.append(torch.stack(rows))
    return torch.stack(clips)  # [B, S]


@pytest.mark.parametrize(("starts", "length", "pushed"), [((0, 3, 5), 20, ()), ((0, 4, 7), 11, (9,))])
def test_action_error_is_that_of_plain_loops(starts, length, pushed):
    batch = batch_of(*starts, length=length, pushed=pushed)
    videos = noisy(batch)
    result = score(videos, batch, judge=Judge(decoders={"moving": DECODER}))
    expected = errors_in_loops(videos, batch)
    torch.testing.assert_close(torch.tensor(result.per_clip["action_error"]), expected.mean(1))
    assert result.action_error.mean == pytest.approx(expected.mean().item(), rel=1e-5)
    expert = batch["latents"].unsqueeze(1)
    still = expert[:, :, :1].expand_as(expert)
    assert result.action_error_still == pytest.approx(errors_in_loops(still, batch).mean().item(), rel=1e-5)
    assert result.action_error_true == pytest.approx(errors_in_loops(expert, batch).mean().item(), abs=1e-7)
    assert result.decoder_error is None


def test_levels_of_the_experts_video_and_of_stillness():
    batch = batch_of(0, 3, 5)
    expert, judge = batch["latents"].unsqueeze(1), Judge(decoders={"moving": DECODER})
    result = score(expert, batch, judge=judge)
    assert result.action_error.mean == result.action_error_true == 0 and result.action_error_still > 0.3
    still = score(expert[:, :, :1].expand_as(expert), batch, judge=judge)
    assert still.action_error.mean == pytest.approx(result.action_error_still)


@pytest.mark.parametrize("left", [0.0, 0.5, 1.0, 1.5])
def test_ratios_say_how_much_motion_is_left(left):
    batch = batch_of(0, 3, 5)
    expert = batch["latents"].unsqueeze(1)
    videos = expert[:, :, :1] + left * (expert - expert[:, :, :1])
    result = score(videos, batch, judge=Judge(decoders={"moving": DECODER}))
    assert result.motion_ratio.mean == pytest.approx(left, abs=1e-5)
    assert result.action_ratio.mean == pytest.approx(left, abs=1e-5)
    for name in ("motion_ratio", "action_ratio"):
        assert result.per_frame[name] == pytest.approx([left] * 4, abs=1e-5)
        low, high = getattr(result, name).ci95 or (left, left)
        assert low == pytest.approx(high, abs=1e-5), "clips that move differently far are no uncertainty"


def test_ratios_are_of_means_so_that_a_clip_that_hardly_moves_does_not_rule():
    batch = batch_of(0, 3)
    batch["latents"][1] = batch["latents"][1, :1] + 1e-4 * (batch["latents"][1] - batch["latents"][1, :1])
    videos = batch["latents"].unsqueeze(1).clone()
    videos[1, 0, 1:] += 1.0  # a thousand times the expert's motion there
    result = score(videos, batch)
    parts = [x.diff(dim=-4).abs().flatten(-3).mean(-1) for x in (videos[:, 0], batch["latents"])]
    first_twice = [torch.cat([x[:, :1], x], dim=1) for x in parts]
    assert result.motion_ratio.mean == pytest.approx((first_twice[0].mean() / first_twice[1].mean()).item(), rel=1e-5)
    assert result.motion_ratio.mean < 3


def test_the_interval_of_a_ratio_is_that_of_resampled_ratios():
    """Numerators and denominators are resampled together, clip by clip."""
    batch = batch_of(*range(10), length=40)
    expert = batch["latents"].unsqueeze(1)
    left = torch.rand(10, 1, 1, 1, 1, 1, generator=torch.Generator().manual_seed(1))
    result = score(expert[:, :, :1] + left * (expert - expert[:, :, :1]), batch)
    first_twice = torch.cat([expert.diff(dim=2)[:, :, :1], expert.diff(dim=2)], dim=2).abs().mean((1, 2, 3, 4, 5))
    generator = torch.Generator().manual_seed(2)
    picks = torch.randint(10, (4000, 10), generator=generator)
    ratios = (left.flatten() * first_twice)[picks].sum(1) / first_twice[picks].sum(1)
    low, high = ratios.quantile(torch.tensor([0.025, 0.975])).tolist()
    assert result.motion_ratio.ci95 == pytest.approx((low, high), abs=0.03)


def test_an_expert_that_does_not_move_has_no_ratio():
    batch = batch_of(0, 3)
    batch["latents"][:] = batch["latents"][:, :1].clone()
    result = score(noisy(batch), batch)
    assert result.motion_ratio is None and "motion_ratio" not in result.metrics


def test_the_rewards_decoder_is_measured_beside_the_judge():
    batch = batch_of(0, 3, 5)
    videos, fooled = noisy(batch), ReadsWritten(STRIDE)
    fooled.__class__ = type("Fooled", (ReadsWritten,), {"__call__": lambda self, *x: 0.1 + DECODER(*x)})
    result = score(videos, batch, judge=Judge(decoders={"moving": DECODER}, trained_on={"moving": fooled}))
    assert result.decoder_error.mean == pytest.approx(errors_in_loops(videos, batch, fooled).mean().item(), rel=1e-5)
    assert result.action_error.mean == pytest.approx(errors_in_loops(videos, batch).mean().item(), rel=1e-5)
    assert result.row().keys() == {
        *("l1", "cosine", "reward", "motion_ratio", "action_error", "action_ratio", "decoder_error")
    }


@pytest.mark.parametrize("judge", [None, Judge(decoders={"moving": DECODER}, trained_on={"moving": DECODER})])
def test_a_result_is_the_same_after_json(judge):
    batch = batch_of(0, 3, 5)
    result = score(noisy(batch), batch, judge=judge)
    values = json.loads(json.dumps(result.to_dict()))
    assert EvalResult.from_dict(values) == result
    assert (result.action_error is None) == (result.action_error_true is None) == (judge is None)


def test_results_of_before_there_was_a_judge_can_be_read():
    batch = batch_of(0, 3)
    new = score(noisy(batch), batch, judge=Judge(decoders={"moving": DECODER})).to_dict()
    added = ("motion_ratio", "action_error", "action_ratio", "decoder_error", "action_error_true", "action_error_still")
    old = json.loads(json.dumps({key: value for key, value in new.items() if key not in added}))
    for name in added:
        old["per_clip"].pop(name, None), old["per_frame"].pop(name, None)
    result = EvalResult.from_dict(old)
    assert list(result.metrics) == ["l1", "cosine", "reward"] and result.action_error is None


def results(**means):
    """Three results with these means of a metric."""
    batch = batch_of(0, 3)
    base = score(noisy(batch), batch, judge=Judge(decoders={"moving": DECODER}))
    (name,) = means
    return [dataclasses.replace(base, **{name: Metric(x, (x, x))}) for x in means[name]]


@pytest.mark.parametrize(
    ("best_by", "means", "best"),
    [
        ("l1", (0.3, 0.1, 0.2), 1),
        ("cosine", (0.3, 0.1, 0.2), 0),
        ("action_error", (0.3, 0.2, 0.1), 2),
        ("motion_ratio", (0.7, 0.8, 1.1), 2),  # from both sides
        ("motion_ratio", (0.95, 0.8, 1.1), 0),
        ("action_ratio", (1.6, 0.5, 1.4), 2),
        ("action_ratio", (1.6, 0.8, 1.4), 1),
    ],
)
def test_the_best_is_chosen_by_one_metric(best_by, means, best):
    scores = [result.score(RewardConfig(), best_by) for result in results(**{best_by: means})]
    assert max(range(3), key=scores.__getitem__) == best


def test_reward_has_the_weights_of_the_rewards_and_stands_in_for_what_is_not_measured():
    (result,) = results(l1=(0.25,))
    weights = RewardConfig(l1_weight=2.0, cosine_weight=0.5)
    expected = 0.5 * result.cosine.mean - 2 * 0.25
    assert result.score(weights) == result.score(weights, "reward") == pytest.approx(expected)
    without = dataclasses.replace(result, action_error=None, action_ratio=None, motion_ratio=None)
    for name in ("action_error", "action_ratio", "motion_ratio"):
        assert without.score(weights, name) == pytest.approx(expected)
        assert result.score(weights, name) != pytest.approx(expected)


@pytest.mark.parametrize("metric", ["action_error", "action_ratio"])
def test_without_a_judge_nothing_is_chosen_by_actions(metric):
    with pytest.raises(ConfigError, match=rf"evaluation.best_by is '{metric}' with evaluation.action_error = False"):
        load_config("pusht", "evaluation.action_error=false", f"evaluation.best_by={metric}")
    load_config("pusht", "evaluation.action_error=false", "evaluation.best_by=motion_ratio")


def test_a_judge_leaves_videos_of_several_robots_to_their_decoders():
    given = [WrittenEpisode(number=1, dataset="one"), WrittenEpisode(number=2, dataset="two", action_dim=3)]
    batch = collate([ClipDataset([episode], num_frames=4, stride=STRIDE)[0] for episode in given])
    judge = Judge(decoders={"one": DECODER, "two": ReadsWritten(STRIDE, 3)})
    assert isinstance(batch["action_chunks"], list)
    result = score(batch["latents"].unsqueeze(1), batch, judge=judge)
    assert result.action_error.mean == 0 and result.action_ratio.mean == pytest.approx(1)
