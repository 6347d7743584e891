"""Pairs of frames, and the actions that were executed between them."""

import pytest
import torch
from moving_episodes import ReadsWritten, WrittenEpisode
from training_runs import make_config

from vampo_core.config import ConfigError
from vampo_core.data.clips import ClipDataset, collate
from vampo_core.evaluation.actions import action_errors, has_valid_actions
from vampo_core.policy.inverse_dynamics import pairs
from vampo_core.policy.inverse_dynamics.pairs import PairDataset, pairs_of


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("stride", [1, 3])
def test_actions_of_a_pair_are_those_between_its_frames(monkeypatch, stride, in_memory):
    """Latents say where the last actions led: nothing here knows how the data is indexed."""
    monkeypatch.setattr(pairs, "_MOST_IN_MEMORY", 2**30 if in_memory else 0)
    episodes = [WrittenEpisode(number=n, length=6 + n) for n in range(3)]
    dataset, decode = PairDataset(episodes, horizon=stride), ReadsWritten(stride)
    assert len(dataset) == sum(e.length - stride for e in episodes)
    for item in (dataset[i] for i in range(len(dataset))):
        decoded = decode(item["latents"][None], item["next_latents"][None])[0]
        assert torch.equal(decoded, decode.normalize(item["actions"])) and item["valid"].all()
        episode = episodes[int(item["episode_id"])]
        t = int(item["clip_id"].partition("@")[2])
        assert torch.equal(item["latents"], episode.latents([t])[0]) and item["state"].tolist() == [t]
        assert torch.equal(item["next_latents"], episode.latents([t + stride])[0])


def test_pairs_with_a_push_between_their_frames_are_left_out():
    episode = WrittenEpisode(number=0, length=12, pushed=(4, 8))
    found = {int(item["clip_id"].partition("@")[2]) for item in PairDataset([episode], horizon=3)}
    assert found == {t for t in range(9) if not {4, 8} & set(range(t, t + 3))} == {0, 1, 5}
    with pytest.raises(ValueError, match=r"none of the 1 episodes has two frames at a distance of data.stride = 12"):
        PairDataset([WrittenEpisode(number=0, length=12)], horizon=12)
    with pytest.raises(ValueError, match="without a push between them"):
        PairDataset([episode.at(pushed=tuple(range(12)))], horizon=1)


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_actions_of_a_clip_are_those_between_its_frames(stride):
    """On the expert's own video the decoder has no error; from a push on, and past the end, nothing counts."""
    episode = WrittenEpisode(number=3, length=11, pushed=(5,))
    clips, decode = ClipDataset([episode], num_frames=4, stride=stride), ReadsWritten(stride)
    assert len(clips) == 10
    for start in range(10):
        item = clips[start]
        valid = item["action_valid"]
        assert valid.shape == (3,) and item["action_chunks"].shape == (3, stride, 2)
        for frame in range(3):
            steps = range(start + frame * stride, start + (frame + 1) * stride)
            # what follows a push cannot be foreseen from the clip's first frame either
            assert bool(valid[frame]) == (steps[-1] < 10 and not start <= 5 <= steps[-1])
            if valid[frame]:
                assert torch.equal(item["action_chunks"][frame], episode.actions[steps.start : steps.stop])
        decoded = decode(item["latents"][:-1], item["latents"][1:])
        assert torch.equal(decoded[valid], decode.normalize(item["action_chunks"])[valid])
        batch = collate([item])
        credited = action_errors({"moving": decode}, batch["latents"].unsqueeze(1), batch)[0, 0]
        for frame in range(4):
            assert has_valid_actions(batch)[0, frame] == valid[max(frame - 1, 0)]
            assert credited[frame] == 0
    assert clips[0]["action_valid"].any() and not clips[5]["action_valid"].any()


def test_data_without_actions_and_clips_of_whole_episodes_have_no_chunks():
    episode = WrittenEpisode(number=3)
    assert "action_chunks" not in ClipDataset([episode], num_frames=4, mode="episode")[0]
    assert "action_chunks" not in ClipDataset([episode.at(action_dim=0)], num_frames=4)[0]


@pytest.mark.parametrize("order", [1, -1])
def test_a_batch_of_robots_some_of_which_have_no_actions(order):
    episodes = [WrittenEpisode(number=3, action_dim=0, dataset="silent"), WrittenEpisode(number=3)][::order]
    batch = collate([ClipDataset([episode], num_frames=4)[0] for episode in episodes])
    assert "action_chunks" not in batch and "action_valid" not in batch and len(batch["actions"]) == 2
    with pytest.raises(ValueError, match="the batch has no action_chunks, expected clips with a stride from data with"):
        action_errors({"moving": ReadsWritten(1)}, batch["latents"].unsqueeze(1), batch)


def test_pairs_need_a_stride(tmp_path):
    config = make_config(tmp_path, "data.sampling=episode")
    with pytest.raises(ConfigError, match=r"data.sampling is 'episode', expected 'stride': an action decoder reads"):
        pairs_of(config, [WrittenEpisode(number=0)])
