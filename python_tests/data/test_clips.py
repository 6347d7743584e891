"""Clips: windows, identity, skipping, and an order that is a pure function of the seed."""

import itertools
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from vampo_core.data import ClipDataset, ClipSampler, EpisodeError, clip_loader, collate


@dataclass
class FakeEpisode:
    """Latents, actions and states show episode and frame; a broken one raises like a reader."""

    number: int
    length: int = 10
    dataset: str = "fake"
    broken: bool = False
    width: int = 2
    instruction: str = "the same text for all"

    @property
    def episode_id(self):
        return f"{self.number:03d}"

    @property
    def actions(self):
        return torch.arange(self.length)[:, None].repeat(1, self.width).float()

    @property
    def is_pushed(self):
        return torch.zeros(self.length, dtype=torch.bool)

    @property
    def states(self):
        return torch.full((self.length, 1), float(self.number))

    def latents(self, indices):
        if self.broken:
            raise EpisodeError(f"episode {self.episode_id!r} of {self.dataset!r}: cut short")
        return 100.0 * self.number + torch.tensor(list(indices)).view(-1, 1, 1, 1) * torch.ones(1, 4, 2, 2)


def frame_numbers(item):
    return item["latents"][:, 0, 0, 0].tolist()


def test_stride_windows_repeat_the_last_frame():
    dataset = ClipDataset([FakeEpisode(0, length=10)], num_frames=4, stride=3, hop=4)
    assert [dataset.clip(i).indices for i in range(len(dataset))] == [(0, 3, 6, 9), (4, 7, 9, 9), (8, 9, 9, 9)]
    item = dataset[1]
    assert frame_numbers(item) == [4, 7, 9, 9] and item["actions"][:, 0].tolist() == [4, 7, 9, 9]
    assert item["clip_id"] == "fake/000@4-9" and item["episode_id"] == "000"


def test_default_is_sixteen_frames_from_every_start_but_the_last():
    dataset = ClipDataset([FakeEpisode(0, length=20)])
    assert len(dataset) == 19 and dataset[0]["latents"].shape == (16, 4, 2, 2)
    assert len(ClipDataset([FakeEpisode(0, length=1)])) == 1


def test_episode_windows_span_the_episode():
    dataset = ClipDataset([FakeEpisode(0, length=31), FakeEpisode(1, length=2)], num_frames=4, mode="episode")
    assert [dataset.clip(i).indices for i in range(len(dataset))] == [(0, 10, 20, 30), (0, 0, 1, 1)]


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    num_frames=st.integers(1, 20),
    stride=st.integers(1, 5),
    hop=st.integers(1, 7),
)
def test_every_clip_is_in_its_episode_and_unique(lengths, num_frames, stride, hop):
    episodes = [FakeEpisode(i, length) for i, length in enumerate(lengths)]
    clips = [
        c
        for d in [ClipDataset(episodes, num_frames=num_frames, stride=stride, hop=hop)]
        for c in map(d.clip, range(len(d)))
    ]
    assert all(len(c.indices) == num_frames and 0 <= min(c.indices) <= max(c.indices) < c.episode.length for c in clips)
    assert len({(c.episode.number, c.indices[0]) for c in clips}) == len(clips)
    assert {c.episode.number for c in clips} == set(range(len(lengths)))


def test_collate_keeps_clips_apart_that_share_a_text():
    dataset = ClipDataset([FakeEpisode(0), FakeEpisode(1)], num_frames=3)
    batch = collate([dataset[0], dataset[9]])
    assert batch["latents"].shape == (2, 3, 4, 2, 2) and batch["actions"].shape == (2, 3, 2)
    assert batch["instruction"][0] == batch["instruction"][1] and len(set(batch["clip_id"])) == 2


def test_collate_of_different_robots_and_sizes():
    narrow = ClipDataset([FakeEpisode(0)], num_frames=3)
    wide = ClipDataset([FakeEpisode(1, width=7, dataset="wide")], num_frames=3)
    batch = collate([narrow[0], wide[0]])
    assert [a.shape[1] for a in batch["actions"]] == [2, 7] and batch["states"].shape == (2, 3, 1)
    odd = wide[0] | {"latents": torch.zeros(3, 4, 5, 5)}
    with pytest.raises(ValueError, match=r"latents of clip 'wide/001@0-2' has shape \(3, 4, 5, 5\), expected"):
        collate([narrow[0], odd])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_unreadable_episode_is_reported_and_replaced(num_workers):
    episodes = [FakeEpisode(i, broken=i in (1, 2)) for i in range(4)]
    dataset = ClipDataset(episodes, num_frames=2, hop=9)
    loader = DataLoader(dataset, batch_size=1, collate_fn=collate, num_workers=num_workers)
    if num_workers:
        batches = list(loader)  # workers warn in their own processes; the list of skipped episodes is shared
    else:
        with pytest.warns(RuntimeWarning, match="episode '001' of 'fake': cut short; 1 of 4 episodes skipped so far"):
            batches = list(loader)
    assert [b["episode_id"][0] for b in batches] == ["000", "003", "003", "003"]
    assert [s.episode_id for s in dataset.skipped] == ["001", "002"]


def test_strict_and_hopeless_datasets_raise():
    broken = [FakeEpisode(i, broken=True) for i in range(2)]
    with pytest.raises(EpisodeError, match="episode '001' of 'fake': cut short"):
        ClipDataset([FakeEpisode(0), broken[1]], strict=True)[9]
    with (
        pytest.warns(RuntimeWarning),
        pytest.raises(EpisodeError, match="none of the 2 episodes can be read; 000: cut"),
    ):
        ClipDataset(broken)[0]


def take(sampler, count):
    return list(itertools.islice(sampler, count))


def flatten(batches):
    return list(itertools.chain.from_iterable(batches))


def test_each_epoch_visits_every_clip_once():
    flat = flatten(take(ClipSampler([24], batch_size=6), 8))
    assert sorted(flat[:24]) == sorted(flat[24:]) == list(range(24))
    assert flat[:24] != flat[24:] and flat[:24] != list(range(24))


@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=3),
    share=st.integers(1, 4),
    world_size=st.integers(1, 4),
    start=st.integers(0, 50),
    seed=st.integers(0, 2**31),
)
def test_ranks_and_resumption_see_the_same_batches(sizes, share, world_size, start, seed):
    make = {"sizes": sizes, "batch_size": share * world_size, "seed": seed}
    whole = take(ClipSampler(**make), start + 3)[start:]
    assert take(ClipSampler(**make, start_batch=start), 3) == whole
    ranks = [ClipSampler(**make, rank=r, world_size=world_size, start_batch=start) for r in range(world_size)]
    assert [flatten(parts) for parts in zip(*(take(r, 3) for r in ranks), strict=True)] == whole


def test_mix_follows_the_weights_and_reaches_every_clip():
    flat = flatten(take(ClipSampler([10, 30, 5], batch_size=8, weights=[1, 2, 1]), 500))
    counts = [sum(low <= i < high for i in flat) / len(flat) for low, high in ((0, 10), (10, 40), (40, 45))]
    assert counts == pytest.approx([0.25, 0.5, 0.25], abs=0.03)
    assert set(flat) == set(range(45))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loader_resumes_and_shards(num_workers):
    datasets = [ClipDataset([FakeEpisode(i, dataset=name) for i in range(3)], num_frames=2) for name in ("one", "two")]
    make = {"batch_size": 4, "weights": [1, 2], "seed": 3, "num_workers": num_workers}

    def ids(count, **kwargs):
        return [b["clip_id"] for b in itertools.islice(iter(clip_loader(datasets, **make, **kwargs)), count)]

    whole = ids(6)
    assert ids(3, start_batch=3) == whole[3:]
    halves = zip(ids(2, rank=0, world_size=2), ids(2, rank=1, world_size=2), strict=True)
    assert [a + b for a, b in halves] == whole[:2]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ClipDataset([]), "episodes is empty"),
        (lambda: ClipDataset([FakeEpisode(0)], num_frames=0), "num_frames is 0, expected at least 1"),
        (lambda: ClipDataset([FakeEpisode(0)], mode="strides"), "mode is 'strides', expected 'stride' or 'episode'"),
        (lambda: ClipSampler([3], batch_size=3, world_size=2), "batch_size is 3, expected a positive multiple of"),
        (lambda: ClipSampler([3], batch_size=2, world_size=2, rank=2), "rank is 2, expected 0 to 1"),
        (lambda: ClipSampler([3, 0], batch_size=2), r"sizes is \[3, 0\], expected"),
        (lambda: ClipSampler([3, 3], batch_size=2, weights=[1, -1]), r"weights is \[1, -1\], expected 2 positive"),
        (
            lambda: clip_loader([ClipDataset([FakeEpisode(0)])] * 2, batch_size=1),
            r"datasets are named \['fake', 'fake'\]",
        ),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
