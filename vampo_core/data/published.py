"""Latents that came with a dataset: which episodes fit together, found before any work instead of hours later."""

from collections import Counter
from collections.abc import Sequence

from vampo_core.data.episode import Episode, EpisodeError, EpisodeSource, Skipped, report_skipped


def published_episodes(
    dataset: EpisodeSource, *, latent_channels: int, can_encode: bool, strict: bool
) -> Sequence[Episode] | None:
    """Episodes whose latents came with the dataset and fit together.

    Latents fit if they have ``latent_channels`` channels and the size that most of these episodes have. Damaged latents
    count as fitting: they are reported when they are read.

    Args:
        dataset: dataset opened without an encoding.
        latent_channels: number of channels that the model expects (C).
        can_encode: whether there is a codec that can encode the videos instead.
        strict: whether an episode that is left out is an error instead of a warning.

    Returns:
        All episodes if all fit. Otherwise None if every video can be encoded instead, or else the episodes that fit,
        with a warning about the others.

    Raises:
        EpisodeError: no episode fits, or one does not and ``strict`` is set.
    """
    shapes = [_shape(episode) for episode in dataset.episodes]
    common = Counter(shape for shape in shapes if shape and shape[0] == latent_channels).most_common(1)
    fitting = {*(shape for shape, _ in common), None}
    odd = [
        Skipped(episode.episode_id, _reason(shape, latent_channels, common[0][0] if common else None))
        for episode, shape in zip(dataset.episodes, shapes, strict=True)
        if shape not in fitting
    ]
    if not odd:
        return dataset.episodes
    if can_encode and (not common or all(map(_has_video, dataset.episodes))):
        return None
    report_skipped(dataset.name, odd, len(dataset.episodes), strict)
    left_out = {skipped.episode_id for skipped in odd}
    return [episode for episode in dataset.episodes if episode.episode_id not in left_out]


def _shape(episode: Episode) -> tuple[int, ...] | None:
    """Shape of an episode's latents, () if it has none, None if they are damaged."""
    try:
        return episode.latents_shape or ()
    except EpisodeError:
        return None


def _has_video(episode: Episode) -> bool:
    try:
        return bool(episode.fingerprint)
    except EpisodeError:
        return False


def _reason(shape: tuple[int, ...] | None, latent_channels: int, common: tuple[int, ...] | None) -> str:
    if not shape:
        return "it has no latents, and there is no codec to encode its video"
    if shape[0] != latent_channels:
        return f"its latents have {shape[0]} channels, expected {latent_channels}"
    return f"its latents are {list(shape)}, those of most episodes {list(common or ())}"
