"""The split: by video, independent of the order, stable while a dataset grows, and the authors' if they made one."""

from dataclasses import dataclass

import pytest

from vampo_core.data import split_episodes


@dataclass(frozen=True)
class FakeEpisode:
    """What a split needs to know."""

    number: int
    dataset: str = "fake"
    video: str = ""
    is_held_out: bool | None = None

    @property
    def episode_id(self):
        return f"{self.number:03d}"

    @property
    def video_id(self):
        return self.video or self.episode_id


def test_split_is_by_episode_and_independent_of_order():
    episodes = [FakeEpisode(i) for i in range(40)]
    train, held_out = split_episodes(episodes, held_out=0.25)
    assert len(train) == 30 and len(held_out) == 10
    assert {e.episode_id for e in train}.isdisjoint(e.episode_id for e in held_out)
    again = split_episodes(episodes[::-1], held_out=0.25)[1]
    assert {e.number for e in again} == {e.number for e in held_out}
    assert {e.number for e in split_episodes(episodes, held_out=10, seed=1)[1]} != {e.number for e in held_out}


def test_growing_dataset_keeps_most_of_its_split():
    before = {e.number for e in split_episodes([FakeEpisode(i) for i in range(100)], held_out=0.2)[1]}
    after = {e.number for e in split_episodes([FakeEpisode(i) for i in range(110)], held_out=0.2)[1]}
    assert len(before - after) <= 5


@pytest.mark.parametrize(
    ("num_episodes", "held_out", "numbers"),
    [
        (3, 0.1, "of 3 episodes 0 would be held out and 3"),
        (2, 2, "of 2 episodes 2 .* and 0"),
        (0, 0.5, "of 0 episodes"),
    ],
)
def test_empty_side_of_a_split_is_an_error(num_episodes, held_out, numbers):
    with pytest.raises(ValueError, match=rf"held_out is {held_out} \(data.held_out_fraction\): {numbers}"):
        split_episodes([FakeEpisode(i) for i in range(num_episodes)], held_out=held_out)


def test_episodes_of_one_video_stay_on_one_side():
    episodes = [FakeEpisode(i, video=f"video {i // 3}") for i in range(30)]
    for seed in range(20):
        train, held_out = split_episodes(episodes, held_out=0.2, seed=seed)
        assert {e.video for e in train}.isdisjoint(e.video for e in held_out)
        assert len(train) + len(held_out) == 30 and len(held_out) == 6
    with pytest.raises(ValueError, match=r"of 3 episodes \(1 videos\) 3 would be held out and 0 left"):
        split_episodes(episodes[:3], held_out=1)


def test_the_authors_split_is_used_without_training_episodes_of_held_out_videos():
    episodes = [FakeEpisode(i, is_held_out=i in (1, 4)) for i in range(6)]
    train, held_out = split_episodes(episodes, held_out=0.9)
    assert [e.number for e in train] == [0, 2, 3, 5] and [e.number for e in held_out] == [1, 4]
    leaky = [FakeEpisode(6, video="001", is_held_out=False), *episodes]
    with pytest.warns(RuntimeWarning, match="1 training episodes show a held-out video and are left out: '006'"):
        assert split_episodes(leaky) == (train, held_out)
    with pytest.warns(RuntimeWarning), pytest.raises(ValueError, match="every training episode shows a held-out video"):
        split_episodes([leaky[0], episodes[1]])
