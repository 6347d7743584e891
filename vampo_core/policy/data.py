"""Frames of expert episodes with the chunk of actions that begins there."""

import collections
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, TypedDict

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vampo_core.data.clips import collate
from vampo_core.data.episode import Episode, EpisodeError, Skipped, reading, reason_of, report_skipped
from vampo_core.data.sampler import ClipSampler
from vampo_core.data.workers import outlive_signals
from vampo_core.policy.normalization import Ranges


class FrameFeatures(Protocol):
    """Features of episodes' frames, computed before training."""

    folder: Path

    def read(self, episode: Episode, index: int) -> Tensor:  # [F, D, h, w]
        """Features of frame ``index``."""
        ...


class ActionItem(TypedDict, total=False):
    """What an ActionDataset gives."""

    latents: Tensor  # [C, h, w] float32, of frame t
    features: Tensor  # [F, D, h, w] float16, of frame t, where there is a cache
    actions: Tensor  # [H, A] float32, of frames t to t + H - 1, the last valid one repeated
    valid: Tensor  # [H] bool, false past the end, and behind the first push: answers to what nobody foresees
    state: Tensor  # [S] float32, at frame t
    instruction: str
    clip_id: str
    episode_id: str


class ActionDataset(Dataset[ActionItem]):
    """Every frame that an action was taken at, of some episodes.

    Actions and states are kept in memory; latents and features are read when asked for.

    Args:
        episodes: with latents.
        horizon: H, actions of a chunk.
        strict: an episode that cannot be used is an error instead of being left out with a warning: one whose files
            cannot be read, without actions, or with actions or states of another width than most.

    Attributes:
        cache: features of the episodes' frames, where there are any.

    Raises:
        EpisodeError: no episode can be used, or one cannot and ``strict`` is set.
    """

    def __init__(self, episodes: Sequence[Episode], *, horizon: int, strict: bool = False) -> None:
        self.horizon = horizon
        self.cache: FrameFeatures | None = None
        self._tables: list[tuple[Episode, Tensor, Tensor, Tensor]] = []  # actions [T, A], states [T, S], ends [T]
        skipped: list[Skipped] = []

        def read(episode: Episode) -> None:
            try:
                episode.latents([0, episode.length - 1])
                with reading(episode.dataset, episode.episode_id):
                    if episode.length < 2 or episode.actions.shape[1] == 0:
                        given = f"{episode.length} frames and actions of width {episode.actions.shape[1]}"
                        raise ValueError(f"it has {given}, expected at least 2 frames and an action between them")
                actions, states = _finite(episode, "actions"), _finite(episode, "states")
                self._tables.append((episode, actions, states, _ends(episode)))
            except EpisodeError as error:
                skipped.append(Skipped(episode.episode_id, reason_of(error)))

        for episode in episodes:
            read(episode)
        widths = collections.Counter((actions.shape[1], states.shape[1]) for _, actions, states, _ in self._tables)
        usual = widths.most_common(1)[0][0] if widths else (0, 0)
        for episode, actions, states, _ in self._tables:
            if (width := (actions.shape[1], states.shape[1])) != usual:
                reason = f"its actions and states have widths {width}, expected {usual}, as in most episodes"
                skipped.append(Skipped(episode.episode_id, reason))
        self._tables = [table for table in self._tables if (table[1].shape[1], table[2].shape[1]) == usual]
        report_skipped(episodes[0].dataset, skipped, len(episodes), strict)
        self.action_dim, self.state_dim = usual
        # the last frame shows where the last action has led: nothing is done there any more
        self._frames = [(n, t) for n, (episode, *_) in enumerate(self._tables) for t in range(episode.length - 1)]

    @property
    def episodes(self) -> list[Episode]:
        """Those that can be read."""
        return [episode for episode, *_ in self._tables]

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: int) -> ActionItem:
        number, t = self._frames[index]
        episode, actions, states, ends = self._tables[number]
        steps, last = torch.arange(t, t + self.horizon), ends[t]
        item = ActionItem(
            latents=episode.latents([t])[0],
            actions=actions[steps.clamp(max=last)],
            valid=steps <= last,
            state=states[t],
            instruction=episode.instruction,
            clip_id=f"{episode.dataset}/{episode.episode_id}@{t}",
            episode_id=episode.episode_id,
        )
        if self.cache is not None:
            item["features"] = self.cache.read(episode, t)
        return item

    def ranges(self) -> Ranges:
        """Smallest and largest action and state."""
        actions = torch.cat([rows[:-1] for _, rows, *_ in self._tables])
        states = torch.cat([rows[:-1] for _, _, rows, _ in self._tables])
        return Ranges(*(torch.stack([x.amin(0), x.amax(0)]) for x in (actions, states)))


def _finite(episode: Episode, name: str) -> Tensor:  # [T, D]
    """Actions or states, which a video can do without, so that its reader takes what there is."""
    rows: Tensor = getattr(episode, name)
    with reading(episode.dataset, episode.episode_id):
        wrong = (~rows[:-1].isfinite()).any(1).nonzero()  # the last row is not used
        if len(wrong):
            t = int(wrong[0])
            raise ValueError(f"{name} at frame {t} are {rows[t].tolist()}, expected finite numbers")
    return rows


def _ends(episode: Episode) -> Tensor:  # [T]
    """The last action of a chunk that begins at each frame: the first one with a push, or the episode's last."""
    is_last = episode.is_pushed.clone()
    is_last[episode.length - 2 :] = True
    places = torch.where(is_last, torch.arange(episode.length), episode.length)
    return places.flip(0).cummin(0).values.flip(0).clamp(max=episode.length - 2)


def action_loader(
    dataset: ActionDataset,
    *,
    batch_size: int,
    seed: int = 0,
    num_workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    start_batch: int = 0,
) -> DataLoader:
    """Endless loader of training batches; arguments as in :class:`ClipSampler`.

    Raises:
        ValueError: an argument is wrong.
    """
    sampler = ClipSampler(
        [len(dataset)], batch_size=batch_size, seed=seed, rank=rank, world_size=world_size, start_batch=start_batch
    )
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=collate,
        generator=torch.Generator().manual_seed(seed),  # of the workers' seeds: the global one is left as it is
        num_workers=num_workers,
        worker_init_fn=outlive_signals,
        persistent_workers=num_workers > 0,
    )
