"""Episodes of a codec that compresses time: clips are encoded one by one, as latents depend on all frames before."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from vampo_core.data.episode import Episode, reading
from vampo_core.data.latent_files import read_latents


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Windows over an episode, each as far from the one before as latent frames are from each other.

    A file of latents holds them one after the other, ``num_latents`` rows each.
    """

    num_latents: int
    """Latent frames of a window (F): the first video frame's own, and one for every ``temporal_ratio`` later ones."""
    temporal_ratio: int
    """Video frames of each latent frame but the first."""
    stride: int
    """Episode frames from one video frame to the next."""

    @property
    def latent_stride(self) -> int:
        """Episode frames from one latent frame to the next."""
        return self.temporal_ratio * self.stride

    @property
    def name(self) -> str:
        """Part of the encoding's name."""
        return f"{self.num_latents}x{self.temporal_ratio}x{self.stride}"

    def starts(self, length: int) -> range:
        """First frames of the windows of an episode; one at its very last frame would show no motion."""
        return range(0, max(length - 1, 1), self.latent_stride)

    def frames(self, start: int, length: int) -> list[int]:
        """Video frames of a window; the last frame is repeated past the episode's end."""
        num_frames = self.temporal_ratio * (self.num_latents - 1) + 1
        return [min(start + i * self.stride, length - 1) for i in range(num_frames)]


class WindowedEpisode:
    """An episode whose latents come in windows; everything else is the episode's own.

    Args:
        episode: episode that was opened with an encoding in windows.
        windows: the windows.
    """

    def __init__(self, episode: Episode, windows: Windows) -> None:
        self.episode, self.windows = episode, windows

    def __getattr__(self, name: str) -> Any:
        if name == "episode" or name.startswith("__"):  # while it is copied or unpickled
            raise AttributeError(name)
        return getattr(self.episode, name)

    def window(self, start: int) -> Tensor:  # [F, C, h, w] float32
        """Latents of the window that begins at frame ``start``.

        Raises:
            EpisodeError: the file is missing or damaged.
            ValueError: no window begins there.
        """
        number, rest = divmod(start, self.windows.latent_stride)
        if rest:
            raise ValueError(f"start is {start}, expected a multiple of {self.windows.latent_stride}")
        size = self.windows.num_latents
        return self.rows(range(number * size, (number + 1) * size))

    def rows(self, rows: Sequence[int]) -> Tensor:  # [N, C, h, w] float32
        """Latents by their place in the file, where windows lie one after the other.

        Raises:
            EpisodeError: the file is missing or damaged.
        """
        file = self.latents_file
        assert isinstance(file, Path)
        with reading(self.dataset, self.episode_id):
            return read_latents(file, rows)

    def latents(self, indices: Sequence[int]) -> Tensor:
        """Not possible: a frame's latents depend on the window that it is in.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            f"episode {self.episode_id!r} is encoded in windows, expected an encoding of single frames to read frames "
            f"{list(indices)[:3]} from"
        )
