"""From ``data`` in a configuration to training and held-out clips: recorded, encoded and split.

What is missing on the way is made once. Each product lies in a folder whose name or contents say what it was made
from, so it is used again as long as it is valid and made again when the settings behind it change.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from vampo_core.config import ConfigError, VampoConfig
from vampo_core.data.clips import ClipDataset, Clips
from vampo_core.data.encode import encode
from vampo_core.data.episode import Episode, EpisodeSource
from vampo_core.data.formats import open_dataset_of
from vampo_core.data.hub import dataset_folder
from vampo_core.data.published import published_episodes
from vampo_core.data.record import OtherSettingsError, check_recording, record
from vampo_core.data.split import split_episodes
from vampo_core.data.windows import WindowedEpisode, Windows
from vampo_core.models.codecs.base import Codec
from vampo_core.models.codecs.wan_vae import WanVAECodec
from vampo_core.training.processes import new_accelerator


def prepare_clips(config: VampoConfig, codec: Codec, *, single_frames: bool = False) -> Clips:
    """Clips with the codec's latents, which came with the data or are encoded first if they are missing.

    Args:
        config: configuration of the run.
        codec: codec of the latents.
        single_frames: whether each frame is to have latents of its own, as a policy sees them; otherwise a codec that
            compresses time encodes whole clips.

    Raises:
        ConfigError: clips do not divide into the latent frames of a codec that compresses time.
        ValueError: the dataset does not fit the codec, or the split is empty.
    """
    windows = None if single_frames else windows_of(config, codec)
    parts = [split(config, _encoded(config, codec, root, windows)) for root in config.data.roots]
    held_out = [episode for part in parts for episode in part[1]]
    return Clips(tuple(_clips(config, train, windows) for train, _ in parts), _clips(config, held_out, windows))


def windows_of(config: VampoConfig, codec: Codec) -> Windows | None:
    """How a codec that compresses time cuts episodes into clips; None for other codecs.

    Raises:
        ConfigError: clips do not divide into its latent frames.
    """
    ratio, data = codec.temporal_ratio, config.data
    if ratio == 1:
        return None
    if data.num_frames % ratio != 1:
        raise ConfigError(
            f"data.num_frames is {data.num_frames}, expected {ratio} n + 1 with this model's codec: {ratio + 1}, "
            f"{2 * ratio + 1}, {3 * ratio + 1}, …"
        )
    if data.sampling != "stride":
        raise ConfigError(
            f"data.sampling is {data.sampling!r}, expected 'stride' with this model's codec, which compresses time"
        )
    return Windows(num_latents=data.num_frames // ratio + 1, temporal_ratio=ratio, stride=data.stride)


def _encoded(config: VampoConfig, codec: Codec, root: str, windows: Windows | None) -> Sequence[Episode]:
    """Episodes of a folder with latents of the codec."""
    dataset = open_dataset(config, root)
    if codec.takes_published_latents:
        published = published_episodes(
            dataset,
            latent_channels=codec.latent_channels,
            can_encode=codec.can_decode,
            strict=config.data.strict,
        )
        if published is not None:
            return published
    with _on_device(codec, new_accelerator().device):
        encoded = encode(
            dataset,
            codec,
            image_size=image_size(config),
            windows=windows,
            batch_size=config.data.batch_size,
            num_workers=config.data.num_workers,
            cache=config.data.cache,
            strict=config.data.strict,
        )
    episodes = open_dataset(config, root, latents=encoded.latents).episodes
    return episodes if windows is None else [cast(Episode, WindowedEpisode(episode, windows)) for episode in episodes]


def open_dataset(
    config: VampoConfig, root: str | None = None, *, latents: str | None = None, include_failures: bool = False
) -> EpisodeSource:
    """A dataset of ``data``. If there is a simulator for it, missing episodes are recorded first.

    Args:
        config: configuration of the run.
        root: one of the folders of ``data.root``, the first by default.
        latents: name of an encoding of the dataset's videos; None for frames, or for latents that came with the data.
        include_failures: whether to keep recorded episodes that were no success.

    Raises:
        ConfigError: the folder was recorded with other settings, or an environment variable is not set.
        FileNotFoundError: there is no such dataset.
    """
    data, folder = config.data, expanded(config, root)
    if data.env is not None and latents is None:
        with _naming_the_setting(config, folder):
            record(
                data.env,
                folder,
                num_episodes=data.num_episodes,
                num_workers=max(1, data.num_workers),
                **_recording(config),
            )
    num_episodes = None if data.env is None else data.num_episodes  # the folder may hold more, recorded for another run
    options = dataset_options(config)
    if data.format == "recorded":
        options = {"include_failures": include_failures}
    return open_dataset_of(
        data.format,
        folder,
        latents=latents,
        cache=data.cache,
        num_episodes=num_episodes,
        strict=data.strict,
        **options,
    )


def check_recorded(config: VampoConfig, folder: Path) -> None:
    """Refuse a folder that was recorded with other settings than those of ``data``.

    Raises:
        ConfigError: it was; the message names the setting.
        ValueError: it holds something else.
    """
    assert config.data.env is not None
    with _naming_the_setting(config, folder):
        check_recording(folder, config.data.env, **_recording(config))


def _recording(config: VampoConfig) -> dict[str, Any]:
    return {"env_kwargs": {"image_size": config.data.resolution}, "action_noise": config.data.action_noise}


@contextlib.contextmanager
def _naming_the_setting(config: VampoConfig, folder: Path) -> Iterator[None]:
    """Name the setting of ``data`` with which a folder was not recorded."""
    data = config.data
    try:
        yield
    except OtherSettingsError as error:
        key = "resolution" if error.name == "env_kwargs" else error.name
        if not hasattr(data, key):  # not a setting of the configuration
            raise
        raise ConfigError(
            f"data.{key} is {getattr(data, key)!r}, but {str(folder)!r} was recorded with {error.found!r}: choose "
            "another data.root, or delete that folder"
        ) from error


def dataset_options(config: VampoConfig) -> dict[str, Any]:
    """Arguments that only the dataset of ``data.format`` has."""
    data = config.data
    if data.format != "lerobot":
        return {}
    return {"camera": data.camera, "state": data.state, "action": data.action}


def data_folder(config: VampoConfig) -> Path:
    """The first folder of ``data.root``, or that of a dataset on the hub.

    Raises:
        ConfigError: an environment variable is not set.
        FileNotFoundError: it is the name of a dataset on the hub that cannot be had.
    """
    folder = expanded(config, None)
    return dataset_folder(folder, camera=config.data.camera) if config.data.format == "lerobot" else folder


def expanded(config: VampoConfig, root: str | None) -> Path:
    """A folder of ``data.root``, the first by default, with what its environment variables stand for.

    Raises:
        ConfigError: one is not set.
    """
    root = config.data.roots[0] if root is None else root
    folder = Path(os.path.expandvars(root)).expanduser()
    if "$" in str(folder):
        raise ConfigError(f"data.root is {root!r}, expected its environment variable to be set")
    return folder


@contextlib.contextmanager
def _on_device(codec: Any, device: torch.device) -> Iterator[None]:
    """Within the context the codec is on a device, afterwards back with the rest of its model."""
    home = codec.device
    codec.to(device)
    try:
        yield
    finally:
        codec.to(home)
        if isinstance(codec, WanVAECodec):
            codec.release()


def image_size(config: VampoConfig) -> tuple[int, int] | None:
    """Height and width that videos are resized to; None for recorded ones, which have their size already."""
    return None if config.data.format == "recorded" else config.data.image_size


def split(config: VampoConfig, episodes: Sequence[Episode]) -> tuple[list[Episode], list[Episode]]:
    """Training and held-out episodes."""
    return split_episodes(episodes, held_out=config.data.held_out_fraction)


def _clips(config: VampoConfig, episodes: list[Episode], windows: Windows | None) -> ClipDataset:
    data = config.data
    if windows is not None:
        distance = windows.latent_stride
        return ClipDataset(episodes, num_frames=windows.num_latents, stride=distance, hop=distance, strict=data.strict)
    return ClipDataset(episodes, num_frames=data.num_frames, mode=data.sampling, stride=data.stride, strict=data.strict)
