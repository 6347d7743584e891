"""What every reader gives: episodes with one small interface, and one error for what cannot be read."""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from torch import Tensor

E = TypeVar("E")


class EpisodeError(RuntimeError):
    """An episode is corrupt, truncated or incomplete; the message names it and says why."""


class Episode(Protocol):
    """One recorded trajectory of ``length`` (T) frames. It reads its files when asked and keeps none open.

    What reads files raises an :class:`EpisodeError` if they are missing or damaged.
    """

    @property
    def dataset(self) -> str:
        """Name of the dataset that the episode belongs to; part of a clip's identity."""
        ...

    @property
    def episode_id(self) -> str:
        """Name of the episode, unique within the dataset; may contain slashes."""
        ...

    @property
    def instruction(self) -> str:
        """What the robot was asked to do."""
        ...

    @property
    def length(self) -> int:
        """Number of frames (T)."""
        ...

    @property
    def video_id(self) -> str:
        """Name of the recording; episodes that share it stay on the same side of a split."""
        ...

    @property
    def is_held_out(self) -> bool | None:
        """The side of the split that the dataset's authors chose; None if they did not."""
        ...

    @property
    def fingerprint(self) -> Mapping[str, object]:
        """JSON values that change when the video changes; latents are kept as long as these stay the same."""
        ...

    @property
    def has_latents(self) -> bool:
        """Whether :meth:`latents` can be called."""
        ...

    @property
    def latents_fingerprint(self) -> object:
        """A JSON value that changes when the latents change; None without latents."""
        ...

    @property
    def latents_shape(self) -> tuple[int, ...] | None:  # (C, h, w)
        """Shape of one frame's latents, found without reading them; None without latents."""
        ...

    @property
    def actions(self) -> Tensor:  # [T, A] float32
        """Action taken at each frame; the last one is repeated if the data has none for the last frame."""
        ...

    @property
    def states(self) -> Tensor:  # [T, S] float32
        """Readings of the robot's own sensors at each frame."""
        ...

    @property
    def is_pushed(self) -> Tensor:  # [T] bool
        """Frames at which a push was added to the executed action; no frame shows that it will come."""
        ...

    def frames(self, indices: Sequence[int]) -> Tensor:  # [N, H, W, 3] uint8
        """Read RGB frames in the order of ``indices``."""
        ...

    def latents(self, indices: Sequence[int]) -> Tensor:  # [N, C, h, w] float32
        """Read latents in the order of ``indices``."""
        ...


class EpisodeSource(Protocol):
    """A dataset: a folder, and the episodes in it that can be read."""

    name: str
    root: Path

    @property
    def episodes(self) -> "Sequence[Episode]":
        """Episodes that can be read."""
        ...

    @property
    def skipped(self) -> "Sequence[Skipped]":
        """Episodes that cannot be read."""
        ...


@dataclass(frozen=True)
class Skipped:
    """An episode that was left out, and the reason."""

    episode_id: str
    reason: str


@contextlib.contextmanager
def reading(dataset: str, episode_id: str) -> Iterator[None]:
    """Turn any error of reading an episode's files into an EpisodeError that names the episode.

    Every exception counts: decoders and parsers raise all kinds for damaged files, and one bad file must not end a run.
    """
    try:
        yield
    except EpisodeError:
        raise
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        reason = f"no entry {reason}" if isinstance(error, KeyError) else reason
        raise EpisodeError(f"episode {episode_id!r} of {dataset!r}: {reason}") from error


def reason_of(error: EpisodeError) -> str:
    """The error's text without the names that :func:`reading` put in front."""
    return str(error).partition("': ")[2] or str(error)


def open_each(
    dataset: str, names: Sequence[str], open_episode: Callable[[str], E], strict: bool
) -> tuple[list[E], list[Skipped]]:
    """Open episodes by name; report those that cannot be opened and leave them out."""
    episodes, skipped = [], []

    def try_open(name: str) -> None:
        try:
            with reading(dataset, name):
                episodes.append(open_episode(name))
        except EpisodeError as error:
            skipped.append(Skipped(name, reason_of(error)))

    for name in names:
        try_open(name)
    report_skipped(dataset, skipped, len(names), strict)
    return episodes, skipped


def report_skipped(dataset: str, skipped: Sequence[Skipped], num_episodes: int, strict: bool) -> None:
    """Warn that some of ``num_episodes`` are left out, by name; raise an EpisodeError if strict or if none remain."""
    if not skipped:
        return
    names = "; ".join(f"{s.episode_id} ({s.reason})" for s in skipped[:5])
    more = f"; and {len(skipped) - 5} more" if len(skipped) > 5 else ""
    message = f"{len(skipped)} of {num_episodes} episodes of {dataset!r} cannot be read: {names}{more}"
    if strict or len(skipped) == num_episodes:
        raise EpisodeError(message)
    warnings.warn(f"{message}; skipped", RuntimeWarning, stacklevel=4)


def check_indices(indices: Sequence[int], length: int) -> list[int]:
    """Return frame indices as a list, or raise an IndexError that names the one out of range."""
    indices = [int(i) for i in indices]
    for i in indices:
        if not 0 <= i < length:
            raise IndexError(f"indices contains {i}, expected 0 to {length - 1}, the frames of the episode")
    return indices


def per_frame(rows: Tensor, length: int, name: str) -> Tensor:  # [T, D] float32
    """Fit rows [T or T-1, D] to T frames by repeating the last row; no rows give [T, 0]."""
    if rows.numel() == 0:
        return torch.zeros(length, 0)
    if rows.ndim != 2 or len(rows) not in (length, length - 1):
        raise ValueError(f"{name} has shape {tuple(rows.shape)}, expected {length} or {length - 1} rows")
    rows = rows.to(torch.float32)
    return rows if len(rows) == length else torch.cat([rows, rows[-1:]])
