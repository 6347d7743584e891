"""A bounded number of frames spread evenly over many episodes, to fit a codec to."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vampo_core.data.episode import Episode, open_each
from vampo_core.data.video import resize_frames

_EVERY = 2  # neighboring frames hardly differ


def spread_frames(
    episodes: Sequence[Episode],  # of one dataset
    *,
    max_frames: int,
    image_size: tuple[int, int] | None,
    strict: bool,
) -> Tensor:  # [N, 3, H, W] uint8
    """Every second frame of the episodes, or an evenly spaced subset if these are more than ``max_frames``.

    Args:
        episodes: episodes with videos.
        max_frames: largest number of frames to return (N).
        image_size: height and width to resize frames to; None to keep their size.
        strict: whether an episode that cannot be read is an error instead of being skipped with a warning.

    Raises:
        EpisodeError: no episode can be read, or one cannot and ``strict`` is set.
    """
    found = [(episode, t) for episode in episodes for t in range(0, episode.length, _EVERY)]
    chosen: dict[str, tuple[Episode, list[int]]] = {}
    for episode, t in found[:: -(-len(found) // max_frames)]:
        chosen.setdefault(episode.episode_id, (episode, []))[1].append(t)

    def read(episode_id: str) -> Tensor:  # [n, 3, H, W] uint8
        episode, indices = chosen[episode_id]
        frames = episode.frames(indices).permute(0, 3, 1, 2)
        if image_size is None or frames.shape[-2:] == torch.Size(image_size):
            return frames
        return (resize_frames(frames / 255, image_size) * 255).round().to(torch.uint8)

    parts, _ = open_each(episodes[0].dataset, list(chosen), read, strict)
    return torch.cat(parts)
