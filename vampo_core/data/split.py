"""Train / held-out split by episode."""

import hashlib
from collections.abc import Sequence

from vampo_core.data.episode import Episode


def split_episodes(
    episodes: Sequence[Episode], *, held_out: float | int = 0.1, seed: int = 0
) -> tuple[list[Episode], list[Episode]]:
    """Split episodes into training and held-out ones, each in the order given.

    Episodes are ranked by a hash of ``seed``, dataset and episode id, and the first ranks are held out: the order in
    which they are given does not matter. When a dataset grows, a share of it held out grows with it.

    Args:
        episodes: of one dataset or several.
        held_out: a share below 1, or a number of episodes from 1.
        seed: another seed holds out other episodes.

    Raises:
        ValueError: one of the two sides would be empty.
    """
    num_held_out = held_out if isinstance(held_out, int) else round(held_out * len(episodes))
    if not 0 < num_held_out < len(episodes):
        raise ValueError(
            f"held_out is {held_out}: of {len(episodes)} episodes {num_held_out} would be held out and "
            f"{len(episodes) - num_held_out} left for training, expected at least 1 each"
        )
    ranked = sorted(range(len(episodes)), key=lambda i: _rank(episodes[i], seed))
    chosen = set(ranked[:num_held_out])
    train = [episode for i, episode in enumerate(episodes) if i not in chosen]
    return train, [episodes[i] for i in sorted(chosen)]


def _rank(episode: Episode, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}\0{episode.dataset}\0{episode.episode_id}".encode()).digest()
