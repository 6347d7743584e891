"""Frames with chunks of actions, and episodes that cannot be used."""

import pytest
import tiny_run
import torch
from policy_runs import HORIZON, TINY_POLICY, ActingEpisode, policy_config
from safetensors import safe_open
from safetensors.torch import save_file
from training_runs import MadeUpEpisode, make_model

import vampo_core
from vampo_core.config import load_config
from vampo_core.data.clips import ClipDataset, Clips
from vampo_core.data.episode import EpisodeError
from vampo_core.data.formats.recorded import episode_folder
from vampo_core.policy.data import ActionDataset
from vampo_core.policy.normalization import normalize, unnormalize
from vampo_core.policy.train import action_datasets


def test_items_are_chunks_padded_with_the_last_action():
    episodes = [ActingEpisode(0, 5), ActingEpisode(1, 9)]
    dataset = ActionDataset(episodes, horizon=HORIZON)
    assert len(dataset) == 4 + 8
    item, actions = dataset[2], episodes[0].actions
    assert torch.equal(item["actions"], actions[[2, 3, 3, 3, 3, 3]])
    assert item["valid"].tolist() == [True, True, False, False, False, False]
    assert torch.equal(item["state"], episodes[0].states[2]) and item["clip_id"] == "made-up/000@2"
    assert torch.equal(item["latents"], episodes[0].latents([2])[0])
    assert dataset[4]["clip_id"] == "made-up/001@0" and dataset[4]["valid"].all()
    ranges = dataset.ranges()
    rows = torch.cat([episode.actions[:-1] for episode in episodes])
    assert torch.equal(ranges.action, torch.stack([rows.min(0).values, rows.max(0).values]))


def test_chunks_end_with_the_first_push_as_no_frame_foretells_what_follows():
    class Pushed(ActingEpisode):
        @property
        def is_pushed(self):
            return torch.tensor([False, False, True, True, False, False, False])

    episode = Pushed(0)
    dataset = ActionDataset([episode], horizon=HORIZON)
    last = [2, 2, 2, 3, 5, 5]  # of the chunk at each frame; 5 is the episode's last action
    assert len(dataset) == len(last) and episode.length == 7
    for t, end in enumerate(last):
        places = torch.arange(t, t + HORIZON)
        assert dataset[t]["valid"].tolist() == (places <= end).tolist()
        assert torch.equal(dataset[t]["actions"], episode.actions[places.clamp(max=end)])


def test_an_episode_with_damaged_latents_is_left_out(tmp_path):
    class Damaged(ActingEpisode):
        def latents(self, indices):
            raise EpisodeError(f"episode {self.episode_id!r} of {self.dataset!r}: cut short")

    model, config = make_model(policy_config(tmp_path)).eval(), policy_config(tmp_path)
    episodes = [ActingEpisode(0), Damaged(1), ActingEpisode(2)]
    clips = Clips((ClipDataset(episodes, num_frames=3),), ClipDataset([ActingEpisode(3)], num_frames=3))
    with pytest.warns(RuntimeWarning, match=r"1 of 3 episodes of .* cannot be read: 001 \(cut short\); skipped"):
        train, _ = action_datasets(config, model, clips, tmp_path)
    assert {item["episode_id"] for item in train} == {"000", "002"}
    with pytest.raises(EpisodeError, match="1 of 3 episodes"):
        action_datasets(load_config(config, "data.strict=true"), model, clips, tmp_path)


def test_an_episode_with_a_nan_among_its_actions_is_left_out(tmp_path):
    root = tmp_path / "data"
    tiny_run.write_dataset(root)
    file = episode_folder(root, 1) / "episode.safetensors"
    with safe_open(file, "pt") as opened:
        arrays, header = {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata()  # noqa: SIM118
    arrays["actions"][4, 1] = float("nan")
    save_file(arrays, file, metadata=header)
    with pytest.warns(RuntimeWarning, match=r"000001 \(actions at frame 4 are \[0.0, nan\], expected finite .*\)"):
        vampo_core.train_policy(tiny_run.settings(tmp_path, *TINY_POLICY))


def test_episodes_without_actions():
    with pytest.raises(EpisodeError, match=r"000 \(its length is 7 and its actions have width 0, expected at least"):
        ActionDataset([MadeUpEpisode(0)], horizon=4)


def test_odd_episodes_are_named_and_left_out():
    """One frame, no actions, or actions of another width than most: none of them refuses a whole training."""
    wide = WideEpisode(3)
    odd = [ActingEpisode(1, length=1), MadeUpEpisode(2), wide]
    usual = [ActingEpisode(number) for number in (0, 4)]
    with pytest.warns(RuntimeWarning) as caught:
        dataset = ActionDataset([*odd, *usual], horizon=4)
    message = str(caught[0].message)
    assert message.startswith("3 of 5 episodes of 'made-up' cannot be read: 001 (its length is 1 ")
    assert "002 (its length is 7 and its actions have width 0" in message
    assert "003 (its actions and states have widths (3, 3), expected (2, 3), as in most episodes)" in message
    assert [episode.episode_id for episode in dataset.episodes] == ["000", "004"]
    assert len(dataset) == 12 and dataset.action_dim == 2
    with pytest.raises(EpisodeError, match="003"):
        ActionDataset([wide, *usual], horizon=4, strict=True)


def test_held_out_episodes_have_the_widths_of_the_training_episodes():
    training, wide, usual = ActionDataset([ActingEpisode(0)], horizon=4), WideEpisode(1), ActingEpisode(2)
    with pytest.warns(RuntimeWarning, match=r"001 \(.* widths \(3, 3\), expected \(2, 3\), as in the training ep"):
        held_out = ActionDataset([wide, usual], horizon=4, widths=training.widths)
    assert held_out.episodes == [usual]
    with pytest.raises(EpisodeError, match="1 of 1 episodes"):
        ActionDataset([wide], horizon=4, widths=training.widths)


class WideEpisode(ActingEpisode):
    """One number more in each action."""

    @property
    def actions(self):
        return torch.cat([super().actions, super().states[:, :1]], dim=1)


def test_ranges():
    limits = torch.tensor([[0.0, -1.0, 7.0], [512.0, 3.0, 7.0]])
    values = torch.tensor([[0.0, 3.0, 7.0], [256.0, 1.0, 7.0]])
    expected = torch.tensor([[-1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    assert torch.equal(normalize(values, limits), expected) and torch.equal(unnormalize(expected, limits), values)
    assert unnormalize(torch.ones(3), limits)[2] == 7  # what never varied keeps its value
