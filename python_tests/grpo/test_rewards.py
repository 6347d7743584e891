"""Rewards against plain loops, users' functions as plug-ins, and what is said of a wrong one."""

import pytest
import tiny_run
import torch
from hand_written import reward_of
from moving_episodes import ReadsWritten, WrittenEpisode
from policy_runs import ActingEpisode
from svd_folder import make_svd_pipeline
from torch import Tensor
from training_runs import make_config, make_model, make_trainer

import vampo_core
from vampo_core import rewards
from vampo_core.config import ConfigError, RewardConfig
from vampo_core.data.clips import ClipDataset, collate
from vampo_core.grpo.rewards import configured_rewards, evaluate_rewards
from vampo_core.grpo.trainer import VampoTrainer
from vampo_core.models.codecs.latent import LatentCodec
from vampo_core.models.codecs.patch import PatchCodec
from vampo_core.models.codecs.vae import VAECodec

B, G, F, C, SIDE = 2, 3, 4, 4, 8


@pytest.fixture
def videos() -> tuple[Tensor, Tensor]:
    """Predictions [B, G, F, C, h, w] and targets [B, F, C, h, w]."""
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(B, G, F, C, SIDE, SIDE, generator=generator),
        torch.randn(B, F, C, SIDE, SIDE, generator=generator),
    )


def in_loops(function, pred, target) -> Tensor:
    """``function(pred [F, ...], target [F, ...]) -> [F]`` of every generation."""
    return torch.stack(
        [torch.stack([function(x, expert) for x in group]) for group, expert in zip(pred, target, strict=True)]
    )


def test_latent_reward(videos):
    pred, target = videos
    torch.testing.assert_close(rewards.latent(pred, target, {}).reward, in_loops(reward_of, pred, target))
    ((weighted, weight),) = configured_rewards(RewardConfig(l1_weight=0.5, cosine_weight=2.0), LatentCodec(C))

    def expected(x, expert):
        cosine = torch.stack(
            [torch.cosine_similarity(a.flatten(), b.flatten(), dim=0) for a, b in zip(x, expert, strict=True)]
        )
        return 2 * cosine - 0.5 * (x - expert).abs().mean((1, 2, 3))

    torch.testing.assert_close(weight * weighted(pred, target, {}).reward, in_loops(expected, pred, target))
    assert weighted.__name__ == "latent"


def test_motion_rewards_what_moves(videos):
    def expected(x, expert):
        changes = [
            reward_of(x[f : f + 1] - x[f - 1 : f], expert[f : f + 1] - expert[f - 1 : f])[0] for f in range(1, F)
        ]
        return torch.stack([changes[0], *changes])

    pred, target = videos
    result = rewards.motion(pred, target, {})
    torch.testing.assert_close(result, in_loops(expected, pred, target))
    background = torch.randn(C, SIDE, SIDE)
    torch.testing.assert_close(rewards.motion(pred + background, target, {}), result)
    with pytest.raises(ValueError, match="pred has 1 frames, expected at least 2"):
        rewards.motion(pred[:, :, :1], target[:, :1], {})


def test_moving_weights_places_by_the_experts_change(videos):
    def expected(x, expert):
        rewards = []
        for f in range(F):
            weights, errors = [], []
            for row in range(SIDE):
                for column in range(SIDE):
                    here = expert[:, :, row, column]  # [F, C]
                    previous = here[f - 1] if f > 0 else here[0]
                    weights.append((here[f] - here[0]).abs().mean() + (here[f] - previous).abs().mean())
                    errors.append((x[f, :, row, column] - here[f]).abs().mean())
            if sum(weights) == 0:
                weights = [1.0] * len(errors)
            rewards.append(-sum(w * e for w, e in zip(weights, errors, strict=True)) / sum(weights))
        return torch.stack(rewards)

    pred, target = videos
    target[0, 2] = target[0, 0]  # moves away and back: only the change from the frame before is left
    target[1, 1] = target[1, 0]  # nothing moves yet
    result = rewards.moving(pred, target, {})
    torch.testing.assert_close(result, in_loops(expected, pred, target))
    torch.testing.assert_close(result[:, :, 0], -(pred - target.unsqueeze(1)).abs().flatten(3).mean(3)[:, :, 0])
    ((function, weight),) = configured_rewards(
        RewardConfig(l1_weight=0, cosine_weight=0, moving_weight=0.5), LatentCodec(C)
    )
    assert function is rewards.moving and weight == 0.5


def test_moving_of_a_static_clip_is_plain_l1(videos):
    pred, target = videos
    still = target[:, :1].expand_as(target)
    torch.testing.assert_close(rewards.moving(pred, still, {}), -(pred - still.unsqueeze(1)).abs().mean((3, 4, 5)))


def test_moving_hardly_counts_the_background():
    """A square of one quarter of the frame moves: noise on it costs four times its plain L1, elsewhere nothing."""
    target = torch.zeros(1, F, C, SIDE, SIDE)
    target[:, 1:, :, : SIDE // 2, : SIDE // 2] = torch.arange(1.0, F).view(-1, 1, 1, 1)
    noise = torch.randn(C, SIDE // 2, SIDE // 2, generator=torch.Generator().manual_seed(0))
    pred = target.unsqueeze(1).repeat(1, 2, 1, 1, 1, 1)
    pred[:, 0, :, :, : SIDE // 2, : SIDE // 2] += noise
    pred[:, 1, :, :, SIDE // 2 :, SIDE // 2 :] += noise
    on_square, on_background = rewards.moving(pred, target, {})[0]
    torch.testing.assert_close(on_square[1:], (-noise.abs().mean()).expand(F - 1))
    assert (on_background[1:] == 0).all()
    torch.testing.assert_close(on_square[0], on_background[0])  # nothing has moved yet


def test_action_reward_of_two_robots_with_different_actions(videos_of_robots):
    """Each clip is read by its robot's decoder; where actions do not count, the reward is 0."""
    batch, pred, decoders = videos_of_robots
    reward = rewards.action(decoders)(pred, batch["latents"], batch)
    assert reward.shape == pred.shape[:3]
    for b, name in enumerate(("one", "two", "one")):
        decoder = decoders[name]
        for g in range(pred.shape[1]):
            for f in range(pred.shape[2]):
                pair = max(f - 1, 0)
                (decoded,) = decoder(pred[b, g, pair : pair + 1], pred[b, g, pair + 1 : pair + 2])
                errors = [
                    (decoded[step] - decoder.normalize(batch["action_chunks"][b][pair, step])).abs().mean()
                    for step in range(2)
                ]
                expected = -sum(errors) / len(errors) if batch["action_valid"][b, pair] else 0.0
                assert reward[b, g, f].item() == pytest.approx(float(expected), rel=1e-5)
    assert (reward[0, :, -1] == 0).all() and reward[2].max() < 0
    expert = batch["latents"].unsqueeze(1)
    assert rewards.action(decoders)(expert, batch["latents"], batch).abs().max() == 0


def test_a_shifted_video_has_the_wrong_actions(videos_of_robots):
    """If actions and frames were out of step by one, the expert's video would have this error."""
    batch, _, decoders = videos_of_robots
    shifted = batch["latents"].roll(1, dims=1).unsqueeze(1)
    assert rewards.action(decoders)(shifted, batch["latents"], batch)[2].mean() < -0.3


@pytest.fixture
def videos_of_robots():
    """A batch of three clips of two robots, noisy predictions of them and the robots' decoders, for two steps a frame.

    The first clip reaches past its episode's end, the second has a push in the middle of a pair.
    """
    one = WrittenEpisode(number=1, length=9, dataset="one")
    two = WrittenEpisode(number=2, length=20, dataset="two", action_dim=3, pushed=(7,))
    given = [(one, 4), (two, 6), (one, 0)]
    batch = collate([ClipDataset([episode], num_frames=4, stride=2)[start] for episode, start in given])
    noise = torch.randn(3, 2, *batch["latents"].shape[1:], generator=torch.Generator().manual_seed(0))
    return batch, batch["latents"].unsqueeze(1) + noise, {"one": ReadsWritten(2, 2), "two": ReadsWritten(2, 3)}


def test_action_reward_names_what_is_missing(videos_of_robots):
    batch, pred, decoders = videos_of_robots
    with pytest.raises(ValueError, match="there is no action decoder for dataset 'two', only for one"):
        rewards.action({"one": decoders["one"]})(pred, batch["latents"], batch)
    without = {key: value for key, value in batch.items() if key != "action_chunks"}
    with pytest.raises(ValueError, match="the batch has no action_chunks, expected clips with a stride"):
        rewards.action(decoders)(pred, batch["latents"], without)
    with pytest.raises(ConfigError, match=r"reward.action_weight is 0.5 without decoders, expected action_decoders"):
        configured_rewards(RewardConfig(action_weight=0.5), LatentCodec(C))


def test_action_reward_is_logged_as_its_own_part(tmp_path):
    config = make_config(tmp_path, "reward.action_weight=0.5")
    with pytest.raises(ConfigError, match=r"reward.action_weight is 0.5 without decoders"):
        make_trainer(config)
    decoders = {"made-up": ReadsWritten(1, 2)}
    given = [ClipDataset([ActingEpisode(n) for n in numbers], num_frames=3) for numbers in ((0, 1), (8,))]
    trainer = VampoTrainer(
        model=make_model(config), config=config, train_dataset=given[0], eval_dataset=given[1], action_decoders=decoders
    )
    row = trainer.iterate(1, trainer.batches(0))
    assert row["action_l1"] < 0
    assert row["reward_mean"] == pytest.approx(row["latent"] + 0.5 * row["action_l1"], rel=1e-5)


@pytest.mark.parametrize("kind", ["patches", "SVD's temporal decoder"])
def test_pixel_reward_decodes_each_clip_on_its_own(videos, kind):
    """SVD's decoder mixes neighbouring frames: those of another clip must not be among them."""
    pred, target = videos
    if kind == "patches":
        frames = torch.rand(40, 3, 16, 16, generator=torch.Generator().manual_seed(1))
        codec = PatchCodec.fit(frames, patch_size=4, latent_channels=C)
    else:
        codec = VAECodec(make_svd_pipeline().vae)
    ((function, weight),) = configured_rewards(RewardConfig(l1_weight=0, cosine_weight=0, pixel_weight=0.5), codec)
    expected = in_loops(lambda x, expert: -(codec.decode(x) - codec.decode(expert)).abs().mean((1, 2, 3)), pred, target)
    result = function(pred, target, {})
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)
    assert weight == 0.5 and not result.is_inference()


def test_pixel_reward_without_a_codec_says_so(videos):
    ((function, _),) = configured_rewards(RewardConfig(l1_weight=0, cosine_weight=0, pixel_weight=1), LatentCodec(C))
    with pytest.raises(ValueError, match="no codec to decode"):
        function(*videos, {})


def test_several_rewards_are_weighted_and_each_is_told(videos):
    def brightness(pred, target, batch):
        return pred.flatten(3).mean(-1)

    pred, target = videos
    result = evaluate_rewards([(rewards.latent, 2.0), (rewards.motion, 0.5), (brightness, -3.0)], pred, target, {})
    assert result.parts.keys() == {"l1", "cosine", "latent", "motion", "brightness"}
    torch.testing.assert_close(result.parts["latent"], result.parts["cosine"] - result.parts["l1"])
    expected = 2 * result.parts["latent"] + 0.5 * result.parts["motion"] - 3 * brightness(pred, target, {})
    torch.testing.assert_close(result.total, expected)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda pred, *_: pred.mean((3, 4, 5))[:, :, 0], r"\(2, 3\), expected a tensor \[B, G, F\] = \(2, 3, 4\)"),
        (lambda pred, *_: pred.mean((3, 4, 5)).flatten(0, 1), r"\(6, 4\), expected"),
        (lambda *_: 0.5, r"float, expected a tensor"),
    ],
)
def test_a_reward_of_a_wrong_shape_is_named(videos, function, words):
    function.__name__ = "my_reward"
    with pytest.raises(ValueError, match=f"reward my_reward returned {words}"):
        evaluate_rewards([(function, 1.0)], *videos, {})


def test_two_rewards_of_one_name_are_refused(videos):
    """One would hide the other in the log."""
    with pytest.raises(ValueError, match="two rewards are logged as <lambda>, expected different names"):
        evaluate_rewards([(lambda p, *_: p.mean((3, 4, 5)), 1.0), (lambda p, *_: p.std((3, 4, 5)), 1.0)], *videos, {})
    with pytest.raises(ValueError, match="two rewards are logged as cosine"):
        evaluate_rewards([(rewards.latent, 1.0), (rewards.latent, 1.0)], *videos, {})


def test_a_users_reward_sees_the_batch_and_carries_no_gradient(tmp_path):
    seen = []

    class Judge:
        """Any callable will do, as will one that draws a graph."""

        def __call__(self, pred, target, batch):
            seen.append(batch)
            scale = torch.ones((), requires_grad=True)
            return scale * pred.flatten(3).mean(-1)

    def flat(pred, target, batch):
        return torch.zeros(pred.shape[:3], dtype=torch.float64)

    trainer = make_trainer(make_config(tmp_path), reward_funcs=[(Judge(), 2.0), flat])
    row = trainer.iterate(1, trainer.batches(0))
    assert row["reward_mean"] == pytest.approx(2 * row["Judge"], rel=1e-5) and row["flat"] == 0
    assert len(seen[0]["instruction"]) == len(seen[0]["clip_id"]) == len(seen[0]["episode_id"]) == 2
    assert "l1" not in row


def test_train_takes_the_users_own(tmp_path):
    tiny_run.write_dataset(tmp_path / "data")

    def upper_half(pred, target, batch):
        rows = pred.shape[-2] // 2
        return -(pred - target.unsqueeze(1))[..., :rows, :].square().mean((-3, -2, -1))

    config = tiny_run.settings(tmp_path, "grpo.num_iterations=1")
    (row,) = vampo_core.train(config, reward_funcs=[(upper_half, 0.5)]).history
    assert row["reward_mean"] == pytest.approx(0.5 * row["upper_half"]) and row["upper_half"] < 0
    assert "latent" not in row and "l1" not in row


@pytest.mark.parametrize("name", ["loss", "reward_mean", "grad_norm", "eval_l1"])
def test_a_reward_cannot_overwrite_another_metric(tmp_path, name):
    def my_reward(pred, target, batch):
        return -(pred - target.unsqueeze(1)).abs().flatten(3).mean(-1)

    my_reward.__name__ = name
    with pytest.raises(ValueError, match=f"reward function is named '{name}', which is a metric's name"):
        make_trainer(make_config(tmp_path), reward_funcs=[my_reward])


@pytest.mark.parametrize("argument", [0, 1])
def test_a_reward_that_writes_into_its_arguments_is_named(videos, argument):
    def greedy(*arguments):
        arguments[argument].mul_(0)
        return torch.zeros(B, G, F)

    with pytest.raises(ValueError, match="reward greedy wrote into its arguments"):
        evaluate_rewards([(greedy, 1.0), (rewards.latent, 1.0)], *videos, {"clip_id": ["a", "b"]})
