"""Train / held-out split by episode."""

import hashlib
import warnings
from collections.abc import Sequence

from vampo_core.data.episode import Episode

Split = tuple[list[Episode], list[Episode]]  # training, held out


def split_episodes(episodes: Sequence[Episode], *, held_out: float | int = 0.1, seed: int = 0) -> Split:
    """Split episodes into training and held-out ones, each in the given order.

    A split that the dataset's authors made is used as it is. Otherwise episodes are ranked by a hash of ``seed``,
    dataset and episode id, and the first ranks are held out: the order of ``episodes`` does not matter, and when a
    dataset grows, its held-out share grows with it. Episodes of the same video stay together, so that no frame is on
    both sides.

    Args:
        episodes: episodes of one dataset or several.
        held_out: share of the episodes (below 1) or number of episodes (from 1) to hold out.
        seed: seed of the ranking; another one holds out other episodes.

    Raises:
        ValueError: one of the two sides would be empty.
    """
    num_held_out = held_out if isinstance(held_out, int) else round(held_out * len(episodes))
    if {True, False} <= {episode.is_held_out for episode in episodes}:
        return _authors_split(episodes)
    if all(episode.is_held_out for episode in episodes):
        message = (
            f"all {len(episodes)} episodes are held out by their authors: some of them are trained on all the same"
        )
        warnings.warn(message, RuntimeWarning, stacklevel=2)
    videos: dict[tuple[str, str], list[int]] = {}
    for i, episode in enumerate(episodes):
        videos.setdefault((episode.dataset, episode.video_id), []).append(i)
    chosen: set[int] = set()
    for numbers in sorted(videos.values(), key=lambda numbers: _rank([episodes[i] for i in numbers], seed)):
        if len(chosen) >= num_held_out:
            break
        chosen.update(numbers)
    if not 0 < len(chosen) < len(episodes):
        together = f" ({len(videos)} videos)" if len(videos) < len(episodes) else ""
        raise ValueError(
            f"held_out is {held_out} (data.held_out_fraction): of {len(episodes)} episodes{together} {len(chosen)} "
            f"would be held out and {len(episodes) - len(chosen)} left for training, expected at least 1 each"
        )
    return _sides(episodes, chosen)


def _authors_split(episodes: Sequence[Episode]) -> Split:
    """The split that the episodes name, except for training episodes whose video is held out."""
    held_out = {(episode.dataset, episode.video_id) for episode in episodes if episode.is_held_out}
    leaked = [e for e in episodes if not e.is_held_out and (e.dataset, e.video_id) in held_out]
    if leaked:
        names = ", ".join(repr(episode.episode_id) for episode in leaked[:5]) + (", …" if len(leaked) > 5 else "")
        message = f"{len(leaked)} training episodes show a held-out video and are left out: {names}"
        warnings.warn(message, RuntimeWarning, stacklevel=3)
    leaked_ids = {(episode.dataset, episode.episode_id) for episode in leaked}
    left = [episode for episode in episodes if (episode.dataset, episode.episode_id) not in leaked_ids]
    if all(episode.is_held_out for episode in left):
        raise ValueError("every training episode shows a held-out video, expected at least 1 that does not")
    return _sides(left, {i for i, episode in enumerate(left) if episode.is_held_out})


def _sides(episodes: Sequence[Episode], held_out: set[int]) -> Split:
    train = [episode for i, episode in enumerate(episodes) if i not in held_out]
    return train, [episodes[i] for i in sorted(held_out)]


def _rank(episodes: Sequence[Episode], seed: int) -> bytes:
    """Rank of episodes of one video: the hash of the one whose id comes first."""
    first = min(episodes, key=lambda episode: episode.episode_id)
    return hashlib.sha256(f"{seed}\0{first.dataset}\0{first.episode_id}".encode()).digest()
