"""Clips: windows of a fixed number of frames over episodes, as a torch dataset."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset

from vampo_core.data.episode import Episode, EpisodeError, Skipped, reason_of
from vampo_core.data.sampler import ClipSampler
from vampo_core.data.windows import WindowedEpisode
from vampo_core.data.workers import outlive_signals


class ClipItem(TypedDict, total=False):
    """What a ClipDataset gives; actions between frames only for clips with a stride, of data with actions."""

    latents: Tensor  # [F, C, h, w] float32
    actions: Tensor  # [F, A] float32, A = 0 if the data has none
    action_chunks: Tensor  # [F - 1, stride, A] float32, those from each frame to the next
    action_valid: Tensor  # [F - 1] bool, whether they count: False past the episode's end, and from a push on
    states: Tensor  # [F, S] float32, S = 0 if the data has none
    instruction: str
    clip_id: str
    episode_id: str


@dataclass(frozen=True)
class Clip:
    """Frames ``indices`` of an episode; ``clip_id`` distinguishes clips that share an instruction."""

    episode: Episode
    indices: tuple[int, ...]

    @property
    def clip_id(self) -> str:
        return f"{self.episode.dataset}/{self.episode.episode_id}@{self.indices[0]}-{self.indices[-1]}"


class ClipDataset(Dataset[ClipItem]):
    """All clips of some episodes.

    An episode that turns out to be unreadable is reported by name once, listed in :attr:`skipped`, and replaced by the
    first clip of the next readable episode. So what an index gives depends only on the files, for any number of
    workers.

    Args:
        episodes: episodes of one dataset, or for evaluation of several.
        num_frames: number of frames per clip (F).
        mode: ``"stride"``: every ``stride``-th frame from a start, the last frame repeated past the end (robot data);
            ``"episode"``: one clip per episode, evenly spaced from its first frame to its last (internet-style data).
        stride: distance between neighboring frames of a clip, in ``"stride"`` mode.
        hop: distance between the starts of neighboring clips, in ``"stride"`` mode. Clips of episodes that are encoded
            in windows are these windows, whose distances ``stride`` and ``hop`` have to be.
        strict: whether an episode that cannot be read is an error instead of being skipped.

    Raises:
        ValueError: an argument is wrong.
        EpisodeError: on reading, when ``strict`` is set or no episode can be read.
    """

    def __init__(
        self,
        episodes: Sequence[Episode],
        *,
        num_frames: int = 16,
        mode: Literal["stride", "episode"] = "stride",
        stride: int = 1,
        hop: int = 1,
        strict: bool = False,
    ) -> None:
        for name, value in (("num_frames", num_frames), ("stride", stride), ("hop", hop)):
            if value < 1:
                raise ValueError(f"{name} is {value}, expected at least 1")
        if mode not in ("stride", "episode"):
            raise ValueError(f"mode is {mode!r}, expected 'stride' or 'episode'")
        if not episodes:
            raise ValueError("episodes is empty, expected at least 1")
        self.episodes = list(episodes)
        self._is_mixed = len({episode.dataset for episode in episodes}) > 1  # only then can two ids be equal
        self.num_frames, self.mode, self.stride, self.hop = num_frames, mode, stride, hop
        self.strict = strict
        counts = [1 if mode == "episode" else len(self._starts(e.length)) for e in self.episodes]
        self._first_clips = np.cumsum([0, *counts])  # [E + 1]
        self._reasons: dict[int, str] = {}
        # in shared memory, so that all workers and this process know what one of them found unreadable
        self._unreadable = torch.zeros(len(self.episodes), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return int(self._first_clips[-1])

    def __getitem__(self, index: int) -> ClipItem:
        if not 0 <= index < len(self):
            raise IndexError(f"index is {index}, expected 0 to {len(self) - 1}")
        for _ in self.episodes:
            number = self._episode_number(index)
            if not self._unreadable[number]:
                try:
                    return self._read(self.clip(index))
                except EpisodeError as error:
                    if self.strict:
                        raise
                    self._skip(number, error)
            index = int(self._first_clips[(number + 1) % len(self.episodes)])
        raise EpisodeError(
            f"none of the {len(self.episodes)} episodes can be read; "
            + "; ".join(f"{s.episode_id}: {s.reason}" for s in self.skipped[:3])
        )

    @property
    def skipped(self) -> list[Skipped]:
        """Episodes that any worker has found unreadable so far."""
        numbers = self._unreadable.nonzero().flatten().tolist()
        return [
            Skipped(self.episodes[n].episode_id, self._reasons.get(n, "see the warning of the worker that found it"))
            for n in numbers
        ]

    def clip(self, index: int) -> Clip:
        """Episode and frames of clip ``index``, without reading them."""
        number = self._episode_number(index)
        episode = self.episodes[number]
        if self.mode == "episode":
            return Clip(
                episode, tuple(np.linspace(0, episode.length - 1, self.num_frames).round().astype(int).tolist())
            )
        start = self._starts(episode.length)[index - int(self._first_clips[number])]
        last = episode.length - 1
        return Clip(episode, tuple(min(start + i * self.stride, last) for i in range(self.num_frames)))

    def _starts(self, length: int) -> range:
        return range(0, max(length - 1, 1), self.hop)  # a clip that starts at the very last frame would show no motion

    def _episode_number(self, index: int) -> int:
        return int(np.searchsorted(self._first_clips, index, side="right")) - 1

    def _read(self, clip: Clip) -> ClipItem:
        episode, indices = clip.episode, list(clip.indices)
        actions = episode.actions
        item = ClipItem(
            latents=episode.window(indices[0]) if isinstance(episode, WindowedEpisode) else episode.latents(indices),
            actions=actions[indices],
            states=episode.states[indices],
            instruction=episode.instruction,
            clip_id=clip.clip_id,
            episode_id=f"{episode.dataset}/{episode.episode_id}" if self._is_mixed else episode.episode_id,
        )
        if self.mode == "stride" and actions.shape[1]:
            # from the clip's own start: frames past the end are repeated, and no action leads to them
            start = torch.arange(self.num_frames - 1) * self.stride + indices[0]
            steps = start.view(-1, 1) + torch.arange(self.stride)  # [F - 1, stride]
            taken = steps.clamp(max=max(episode.length - 2, 0))
            item["action_chunks"] = actions[taken]
            # nothing in the first frame says that a push will come, nor how the expert will answer it
            foreseen = ~episode.is_pushed[taken].any(1).cummax(0).values
            item["action_valid"] = foreseen & (steps[:, -1] <= episode.length - 2)
        return item

    def _skip(self, number: int, error: EpisodeError) -> None:
        self._unreadable[number] = True
        self._reasons[number] = reason_of(error)
        count = f"{int(self._unreadable.sum())} of {len(self.episodes)} episodes skipped so far"
        warnings.warn(f"{error}; {count}", RuntimeWarning, stacklevel=3)


def collate(items: Sequence[Mapping[str, object]]) -> dict[str, Any]:
    """Stack clips into a batch: tensors get a leading axis B, texts become lists.

    Actions and states stay lists of tensors if their widths differ, as when robots are mixed. What only some clips have
    is left out: actions between frames, where the data of one robot has no actions.

    Raises:
        ValueError: latents differ in shape; the message names two such clips.
    """
    batch: dict[str, Any] = {}
    for key in (key for key in items[0] if all(key in item for item in items)):
        values: Any = [item[key] for item in items]
        if isinstance(values[0], Tensor):
            odd = next((i for i, value in enumerate(values) if value.shape != values[0].shape), None)
            if odd is None:
                values = torch.stack(values)
            elif key == "latents":
                raise ValueError(
                    f"{key} of clip {items[odd]['clip_id']!r} has shape {tuple(values[odd].shape)}, "
                    f"expected {tuple(values[0].shape)} as in {items[0]['clip_id']!r}"
                )
        batch[key] = values
    return batch


@dataclass(frozen=True)
class Clips:
    """Training and held-out clips of different episodes."""

    train: tuple[ClipDataset, ...]
    """Training clips, one dataset for each folder of ``data.root``."""
    held_out: ClipDataset
    """Clips that nothing is trained on."""


def clip_loader(
    datasets: Sequence[ClipDataset],
    *,
    batch_size: int,
    weights: Sequence[float] | None = None,
    seed: int = 0,
    num_workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    start_batch: int = 0,
    pin_memory: bool = False,
) -> DataLoader:
    """Endless loader of training batches from one dataset or a weighted mix; arguments as in :class:`ClipSampler`.

    Raises:
        ValueError: an argument is wrong, or two datasets have the same name.
    """
    names = [dataset.episodes[0].dataset for dataset in datasets]
    if len(set(names)) < len(names):
        raise ValueError(f"datasets are named {names}, expected different names (name=… when opening them)")
    sampler = ClipSampler(
        [len(dataset) for dataset in datasets],
        batch_size=batch_size,
        weights=weights,
        seed=seed,
        rank=rank,
        world_size=world_size,
        start_batch=start_batch,
    )
    return DataLoader(
        ConcatDataset(datasets),
        batch_sampler=sampler,
        collate_fn=collate,
        generator=torch.Generator().manual_seed(seed),  # for the workers' seeds; keeps the global generator
        num_workers=num_workers,
        worker_init_fn=outlive_signals,
        persistent_workers=num_workers > 0,
        pin_memory=pin_memory,
    )
