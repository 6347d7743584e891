"""From ``data`` in a configuration to training and held-out clips: recorded, encoded and split.

What is missing on the way is made once. Each product lies in a folder whose name or contents say what it was made
from, so it is used again as long as it is valid and made again when the settings behind it change.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from vampo_core.config import ConfigError, VampoConfig
from vampo_core.data.clips import ClipDataset, Clips
from vampo_core.data.encode import encode
from vampo_core.data.episode import Episode, EpisodeError, EpisodeSource, Skipped, report_skipped
from vampo_core.data.formats.recorded import RecordedDataset
from vampo_core.data.formats.vpp import VppDataset, VppEpisode
from vampo_core.data.record import OtherSettingsError, record
from vampo_core.data.split import split_episodes
from vampo_core.models.codecs.base import Codec
from vampo_core.training.processes import new_accelerator


def prepare_clips(config: VampoConfig, codec: Codec) -> Clips:
    """Clips with the codec's latents, which came with the data or are encoded first if they are missing.

    Raises:
        ValueError: the dataset does not fit the codec, or the split is empty.
    """
    parts = [split(config, _encoded(config, codec, root)) for root in config.data.roots]
    held_out = [episode for part in parts for episode in part[1]]
    return Clips(tuple(_clips(config, train) for train, _ in parts), _clips(config, held_out))


def _encoded(config: VampoConfig, codec: Codec, root: str) -> Sequence[Episode]:
    """Episodes of a folder with latents of the codec."""
    dataset = open_dataset(config, root)
    if not codec.can_decode:
        return _with_latents(dataset, config.data.strict)
    if _came_with_latents(dataset, codec):
        return dataset.episodes
    with _on_device(codec, new_accelerator().device):
        encoded = encode(
            dataset,
            codec,
            image_size=image_size(config),
            batch_size=config.data.batch_size,
            strict=config.data.strict,
        )
    return open_dataset(config, root, latents=encoded.latents).episodes


def _came_with_latents(dataset: EpisodeSource, codec: Codec) -> bool:
    """Whether every episode came with latents that can be the codec's: it is a VAE with as many channels."""
    if not isinstance(dataset, VppDataset) or not codec.takes_published_latents:
        return False
    if any(episode.latents_file is None for episode in dataset.episodes):
        return False
    return {_channels(episode) for episode in dataset.episodes} <= {codec.latent_channels, None}


def _channels(episode: Episode) -> int | None:
    """C of an episode's latents; None if they are damaged, which is reported when a clip is read."""
    try:
        return episode.latents([0]).shape[1]
    except EpisodeError:
        return None


def open_dataset(config: VampoConfig, root: str | None = None, *, latents: str | None = None) -> EpisodeSource:
    """A dataset of ``data``. If there is a simulator for it, missing episodes are recorded first.

    Args:
        config: configuration of the run.
        root: one of the folders of ``data.root``, the first by default.
        latents: name of an encoding of the dataset's videos; None for frames, or for latents that came with the data.

    Raises:
        ConfigError: the folder was recorded with other settings, or an environment variable is not set.
    """
    data = config.data
    root = data.roots[0] if root is None else root
    folder = Path(os.path.expandvars(root)).expanduser()
    if "$" in str(folder):
        raise ConfigError(f"data.root is {root!r}, expected its environment variable to be set")
    if data.format == "vpp":
        part = "train" if (folder / "annotation" / "train").is_dir() else "val"
        return VppDataset(folder, part, latents=latents, strict=data.strict)
    if data.env is not None and latents is None:
        try:
            record(
                data.env,
                folder,
                num_episodes=data.num_episodes,
                num_workers=max(1, data.num_workers),
                env_kwargs={"image_size": data.resolution},
                action_noise=data.action_noise,
                steps_after_success=data.steps_after_success,
            )
        except OtherSettingsError as error:
            key = "resolution" if error.name == "env_kwargs" else error.name
            if not hasattr(data, key):  # not a setting of the configuration
                raise
            raise ConfigError(
                f"data.{key} is {getattr(data, key)!r}, but {str(folder)!r} was recorded with {error.found!r}: choose "
                "another data.root, or delete that folder"
            ) from error
    num_episodes = None if data.env is None else data.num_episodes  # the folder may hold more, recorded for another run
    return RecordedDataset(folder, latents=latents, num_episodes=num_episodes, strict=data.strict)


@contextlib.contextmanager
def _on_device(codec: object, device: torch.device) -> Iterator[None]:
    """Within the context the codec is on a device, afterwards back with the rest of its model."""
    assert isinstance(codec, torch.nn.Module), codec
    home = next(codec.parameters()).device
    codec.to(device)
    try:
        yield
    finally:
        codec.to(home)


def image_size(config: VampoConfig) -> tuple[int, int] | None:
    """Height and width that videos are resized to; None for recorded ones, which have their size already."""
    return config.data.image_size if config.data.format == "vpp" else None


def _with_latents(dataset: EpisodeSource, strict: bool) -> list[Episode]:
    """Episodes that came with latents; without a codec the videos of the others cannot be used."""
    reason = "it has no latents, and there is no codec to encode its video"
    without = {e.episode_id for e in dataset.episodes if isinstance(e, VppEpisode) and e.latents_file is None}
    report_skipped(dataset.name, [Skipped(name, reason) for name in sorted(without)], len(dataset.episodes), strict)
    return [episode for episode in dataset.episodes if episode.episode_id not in without]


def split(config: VampoConfig, episodes: Sequence[Episode]) -> tuple[list[Episode], list[Episode]]:
    """Training and held-out episodes."""
    return split_episodes(episodes, held_out=config.data.held_out_fraction)


def _clips(config: VampoConfig, episodes: list[Episode]) -> ClipDataset:
    data = config.data
    return ClipDataset(episodes, num_frames=data.num_frames, mode=data.sampling, stride=data.stride, strict=data.strict)
