"""Videos of closed-loop episodes, a few of every kind, with what was imagined beside what happened."""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vampo_core.data.video import FOR_VIEWING, write_video
from vampo_core.evaluation.episodes import EpisodeResult
from vampo_core.evaluation.panels import side_by_side
from vampo_core.files.atomic import publish, temporary_beside

Imagine = Callable[[Tensor, str, int], Tensor]
"""From an episode's frames [T, 3, H, W] in [0, 1], its instruction and its seed to as many images of that size."""


class EpisodeVideos:
    """Writes videos under ``<folder>/videos``.

    Args:
        folder: folder of the evaluation; None for no videos.
        num_videos: number of videos of successes, and of failures, of each environment.
        imagine: function that makes what is shown beside an episode's frames; None for the frames only.
    """

    def __init__(self, folder: Path | None, num_videos: int, imagine: Imagine | None) -> None:
        self._folder, self._num_videos, self._imagine = folder, num_videos, imagine

    @property
    def needs_frames(self) -> bool:
        """Whether frames of episodes have to be collected."""
        return self._folder is not None and self._num_videos > 0

    def save(
        self,
        pictures: Sequence[np.ndarray],  # each [H, W, 3] uint8
        *,
        env: str,
        seed: int,
        success: bool,
        instruction: str,
        fps: float,
        done: Collection[EpisodeResult],
    ) -> str | None:
        """Write an episode's video unless ``done`` episodes have enough of its kind; return its file name."""
        alike = [e for e in done if e.video and (e.env, e.success) == (env, success)]
        if self._folder is None or len(alike) >= self._num_videos:
            return None
        outcome = "success" if success else "failure"
        name = f"{env.replace('/', '-').replace(':', '-')}-{outcome}-{seed}.mp4"
        frames = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255  # [T, 3, H, W]
        columns = {"simulator": frames}
        if self._imagine is not None:
            columns["imagined"] = self._imagine(frames, instruction, seed)
        path = self._folder / "videos" / name
        path.parent.mkdir(exist_ok=True)
        temporary = temporary_beside(path)
        write_video(temporary, side_by_side([list(columns.values())], list(columns)), fps, FOR_VIEWING)
        publish(temporary, path)
        return name
