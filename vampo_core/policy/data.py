"""Frames of expert episodes with the chunk of actions that begins there."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, TypedDict

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vampo_core.data.clips import collate
from vampo_core.data.episode import Episode, EpisodeError, Skipped, reading, reason_of, report_skipped
from vampo_core.data.sampler import ClipSampler
from vampo_core.data.windows import WindowedEpisode
from vampo_core.data.workers import outlive_signals
from vampo_core.policy.normalization import Ranges


class FrameFeatures(Protocol):
    """Features of episodes' frames that were computed before training."""

    folder: Path
    """Folder of the files."""

    def read(self, episode: Episode, index: int) -> Tensor:  # [F, D, h, w]
        """Features of frame ``index``."""
        ...


class ActionItem(TypedDict, total=False):
    """What an ActionDataset gives."""

    latents: Tensor  # [C, h, w] float32, of frame t
    features: Tensor  # [F, D, h, w] float16, of frame t, if there is a cache
    actions: Tensor  # [H, A] float32, of frames t to t + H - 1, the last valid one repeated
    valid: Tensor  # [H] bool, False past the episode's end and after the first push, which frame t cannot foretell
    state: Tensor  # [S] float32, at frame t
    instruction: str
    clip_id: str
    episode_id: str


class _Table(NamedTuple):
    """What is kept in memory of an episode."""

    episode: Episode
    actions: Tensor  # [T, A]
    states: Tensor  # [T, S]
    ends: Tensor  # [T], see _ends

    @property
    def widths(self) -> tuple[int, int]:
        """Numbers in an action and in a state."""
        return self.actions.shape[1], self.states.shape[1]


class ActionDataset(Dataset[ActionItem]):
    """Every frame of some episodes at which an action was taken.

    Actions and states are kept in memory; latents and features are read when they are needed.

    Args:
        episodes: episodes with latents.
        horizon: number of actions in a chunk (H).
        widths: expected numbers in an action and in a state (A, S), such as those of the training episodes; by default
            those that most of these episodes have.
        strict: whether an episode that cannot be used is an error instead of being left out with a warning: one whose
            files cannot be read, without actions, or with other widths.

    Attributes:
        cache: features of the episodes' frames, if they have been computed.

    Raises:
        EpisodeError: no episode can be used, or one cannot and ``strict`` is set.
    """

    def __init__(
        self,
        episodes: Sequence[Episode],
        *,
        horizon: int,
        widths: tuple[int, int] | None = None,
        strict: bool = False,
    ) -> None:
        self.horizon = horizon
        self.cache: FrameFeatures | None = None
        tables, skipped = _read_each(episodes)
        most_common = Counter(table.widths for table in tables).most_common(1)
        self.widths = widths or (most_common[0][0] if most_common else (0, 0))
        source = "most episodes" if widths is None else "the training episodes"
        for table in tables:
            if table.widths != self.widths:
                reason = f"its actions and states have widths {table.widths}, expected {self.widths}, as in {source}"
                skipped.append(Skipped(table.episode.episode_id, reason))
        report_skipped(episodes[0].dataset, skipped, len(episodes), strict)
        self._tables = [table for table in tables if table.widths == self.widths]
        # no action is taken at the last frame: it shows what the last action led to
        self._frames = [(n, t) for n, table in enumerate(self._tables) for t in range(table.episode.length - 1)]

    @property
    def action_dim(self) -> int:
        """Numbers in an action (A)."""
        return self.widths[0]

    @property
    def state_dim(self) -> int:
        """Numbers in a state (S)."""
        return self.widths[1]

    @property
    def episodes(self) -> list[Episode]:
        """Episodes that can be used."""
        return [table.episode for table in self._tables]

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
        """Smallest and largest value of each number in actions and states."""
        actions = torch.cat([table.actions[:-1] for table in self._tables])
        states = torch.cat([table.states[:-1] for table in self._tables])
        return Ranges(*(torch.stack([x.amin(0), x.amax(0)]) for x in (actions, states)))


def _read_each(episodes: Sequence[Episode]) -> tuple[list[_Table], list[Skipped]]:
    """Actions and states of the episodes that can be read, and the episodes that cannot."""
    tables, skipped = [], []
    for episode in episodes:
        try:
            tables.append(_read(episode))
        except EpisodeError as error:  # noqa: PERF203
            skipped.append(Skipped(episode.episode_id, reason_of(error)))
    return tables, skipped


def _read(episode: Episode) -> _Table:
    with reading(episode.dataset, episode.episode_id):
        width = episode.actions.shape[1]
        if episode.length < 2 or width == 0:
            raise ValueError(
                f"its length is {episode.length} and its actions have width {width}, expected at least 2 frames and an "
                "action between them"
            )
        if isinstance(episode, WindowedEpisode):
            episode.window(0)
        else:
            episode.latents([0, episode.length - 1])
        actions, states = _finite(episode, "actions"), _finite(episode, "states")
        return _Table(episode, actions, states, _ends(episode))


def _finite(episode: Episode, name: str) -> Tensor:  # [T, D]
    """An episode's ``actions`` or ``states``. Only policies need them, so its reader does not check them."""
    rows: Tensor = getattr(episode, name)
    wrong = (~rows[:-1].isfinite()).any(1).nonzero()  # the last row is not used
    if len(wrong):
        t = int(wrong[0])
        raise ValueError(f"{name} at frame {t} are {rows[t].tolist()}, expected finite numbers")
    return rows


def _ends(episode: Episode) -> Tensor:  # [T]
    """The last action of the chunk that begins at each frame: the first one with a push, or the episode's last."""
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
    pin_memory: bool = False,
) -> DataLoader:
    """Endless loader of training batches; other arguments are those of :class:`ClipSampler`.

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
        generator=torch.Generator().manual_seed(seed),  # for the workers' seeds; keeps the global generator
        num_workers=num_workers,
        worker_init_fn=outlive_signals,
        persistent_workers=num_workers > 0,
        pin_memory=pin_memory,
    )
