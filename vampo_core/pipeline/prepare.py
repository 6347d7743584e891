"""From a configuration to a model and its clips; whatever is missing on the way is made first, once.

A preset starts from nothing: episodes are recorded, a codec is fitted to them, their videos are encoded and a base is
pretrained. Each product lies in a folder whose name or contents say what it was made from, so it is used again as long
as it is valid and made anew when the settings behind it change.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from vampo_core.config import ConfigError, VampoConfig
from vampo_core.data.clips import ClipDataset
from vampo_core.data.encode import encode
from vampo_core.data.episode import Episode, EpisodeSource
from vampo_core.data.formats import open_dataset_of
from vampo_core.data.published import published_episodes
from vampo_core.data.record import OtherSettingsError, record
from vampo_core.data.split import split_episodes
from vampo_core.data.spread_frames import spread_frames
from vampo_core.files.atomic import publish, temporary_beside
from vampo_core.models.codecs.codec import AnyCodec, LatentCodec, PatchCodec, VAECodec
from vampo_core.models.predictor import VideoPredictor
from vampo_core.models.svd.default import SIGMA_MAX
from vampo_core.models.svd.folder import check_folder
from vampo_core.training.checkpoint import find_checkpoint
from vampo_core.training.processes import new_accelerator

SVD_SCALING_FACTOR = 0.18215
_DATA_KEYS = (
    *("format", "root", "weights", "env", "num_episodes", "action_noise", "resolution"),
    *("held_out_fraction", "num_frames", "stride", "sampling"),
)
_CODEC_FRAMES = 2000


@dataclass(frozen=True)
class Clips:
    """Training and held-out clips of different episodes."""

    train: tuple[ClipDataset, ...]  # of each folder of data.root
    held_out: ClipDataset


def load_predictor(config: VampoConfig, folder: str | Path) -> VideoPredictor:
    """A predictor from a model folder, a checkpoint or a run folder, with the adapters and precision of the config.

    Raises:
        ValueError: there is no such model.
    """
    path = predictor_folder(folder)
    model = VideoPredictor.from_pretrained(path, text_encoder=config.model.text_encoder, dtype=config.model.dtype)
    if config.model.lora:
        with torch.random.fork_rng():
            torch.manual_seed(config.run.seed)
            model.add_lora(rank=config.model.lora)
    if config.model.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    return model


def predictor_folder(folder: str | Path) -> Path:
    """The model folder that a model folder, a checkpoint or a run folder stands for.

    Raises:
        ValueError: there is none.
    """
    path = Path(folder)
    if not (path / "unet").is_dir():
        path = find_checkpoint(path)
    check_folder(path)
    return path


def inference_predictor(config: VampoConfig, folder: str | Path) -> VideoPredictor:
    """As :func:`load_predictor`, on the device of this process and ready to predict."""
    return load_predictor(config, folder).to(new_accelerator().device).eval()


def policy_predictor(config: VampoConfig, folder: str | Path) -> VideoPredictor:
    """As :func:`inference_predictor`, for a policy, with the configuration's sampler, which VAMPO trains it for.

    Raises:
        ConfigError: the predictor has not as many up blocks as ``policy.feature_layers`` asks for.
        ValueError: there is no such model.
    """
    model = inference_predictor(config, folder)
    layers, num_blocks = list(config.policy.feature_layers), len(model.unet.up_blocks)
    if config.policy.features == "predictive" and layers[-1] >= num_blocks:
        raise ConfigError(
            f"policy.feature_layers is {layers}, expected indices below {num_blocks}, the up blocks of the UNet at "
            f"{str(folder)!r}"
        )
    model.set_sampler(model.sampler(**config.sampler.overrides()))
    return model


def new_predictor(config: VampoConfig, codec: PatchCodec | LatentCodec) -> VideoPredictor:
    """The embedded default, untrained; its weights follow from ``run.seed``."""
    with torch.random.fork_rng():
        torch.manual_seed(config.run.seed)
        model = VideoPredictor.create(
            codec,
            num_frames=config.data.num_frames,
            sigma_max=_sigma_max(config),
            dtype=config.model.dtype,
            **config.model.unet_options(),
        )
    if config.model.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    return model


def _sigma_max(config: VampoConfig) -> float:
    """Largest noise level of a predictor made from scratch."""
    return config.sampler.sigma_max or SIGMA_MAX


def prepare_clips(config: VampoConfig, codec: AnyCodec) -> Clips:
    """Clips with the codec's latents: those that came with the data, else encoded first where they are not there yet.

    Raises:
        ValueError: the dataset does not fit the codec, or the split is empty.
    """
    parts = [_split(config, _encoded(config, codec, root)) for root in config.data.roots]
    held_out = [episode for part in parts for episode in part[1]]
    return Clips(tuple(_clips(config, train) for train, _ in parts), _clips(config, held_out))


def _encoded(config: VampoConfig, codec: AnyCodec, root: str) -> Sequence[Episode]:
    """Episodes of a folder with latents of the codec."""
    dataset = open_dataset(config, root)
    if not codec.can_decode or isinstance(codec, VAECodec):
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
            image_size=_image_size(config),
            batch_size=config.data.batch_size,
            strict=config.data.strict,
        )
    return open_dataset(config, root, latents=encoded.latents).episodes


def prepare_codec(config: VampoConfig) -> PatchCodec | LatentCodec:
    """The codec of the embedded default: fitted to training frames, kept beside the runs.

    Data that comes as latents needs none: a :class:`LatentCodec` stands in for the one that made them.

    Raises:
        ValueError: frames, brought to ``data.resolution``, do not divide into patches.
        EpisodeError: no training video can be read, or one cannot and ``data.strict`` is set.
    """
    datasets = [open_dataset(config, root) for root in config.data.roots]
    episodes = [episode for dataset in datasets for episode in dataset.episodes]
    sizes = {f"{e.dataset}/{e.episode_id}": e.latents_fingerprint for e in episodes if e.has_latents}
    if sizes:
        return LatentCodec(
            latent_channels=config.model.latent_channels,
            scaling_factor=SVD_SCALING_FACTOR,
            data=digest(sizes),
        )
    config.check_resolution()
    parts = [_split(config, dataset.episodes)[0] for dataset in datasets]
    names = [[episode.episode_id, episode.fingerprint] for train in parts for episode in train]
    settings = [config.model.patch_size, config.model.latent_channels, config.data.resolution, _CODEC_FRAMES]
    folder = Path(config.run.dir).parent / f"codec-{digest([names, settings])}"
    if not folder.is_dir():
        print(f"fitting a codec to {len(names)} episodes: {folder}")
        codec = PatchCodec.fit(
            _codec_frames(config, parts),
            patch_size=config.model.patch_size,
            latent_channels=config.model.latent_channels,
        )
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_beside(folder)
        codec.save_pretrained(temporary)
        publish(temporary, folder)
    return PatchCodec.from_pretrained(folder).requires_grad_(False)


def _codec_frames(config: VampoConfig, parts: Sequence[Sequence[Episode]]) -> Tensor:  # [N, 3, H, W] uint8
    """Training frames of every folder of ``data.root``, of each at most an equal share."""
    share, size = _CODEC_FRAMES // len(parts), _image_size(config)
    frames = [spread_frames(part, max_frames=share, image_size=size, strict=config.data.strict) for part in parts]
    sizes = sorted({tuple(part.shape[-2:]) for part in frames})
    if len(sizes) > 1:
        raise ValueError(f"data.root holds {list(config.data.roots)} with frames of sizes {sizes}, expected one size")
    return torch.cat(frames)


def base_config(config: VampoConfig, codec: PatchCodec | LatentCodec) -> VampoConfig:
    """The pretraining run behind a configuration without ``model.pretrained``.

    Its folder lies beside ``run.dir`` and is named after everything that the base depends on.
    """
    depends_on = {
        "codec": codec.fingerprint(),
        "data": data_settings(config),
        "model": {**config.model.unet_options(), "dtype": config.model.dtype},
        "pretrain": config.to_dict()["pretrain"],
        "sigma_max": _sigma_max(config),
        "seed": config.run.seed,
    }
    folder = Path(config.run.dir).parent / f"base-{digest(depends_on)}"
    plain = replace(config.model, lora=0, gradient_checkpointing=False)
    return replace(config, model=plain, run=replace(config.run, dir=str(folder), overwrite=False))


def data_settings(config: VampoConfig) -> dict[str, object]:
    """What decides on the clips of training and evaluation."""
    return {key: getattr(config.data, key) for key in _DATA_KEYS}


def find_base(config: VampoConfig, codec: AnyCodec) -> Path | None:
    """The model that a run started from; None where it is no longer there, or the run is the base's own."""
    if config.model.pretrained is not None:
        path = Path(config.model.pretrained)
    elif isinstance(codec, PatchCodec | LatentCodec):
        path = Path(base_config(config, codec).run.dir)
    else:
        return None
    is_there = (path / "unet").is_dir() or (path / "checkpoints" / "latest").is_dir()
    return path if is_there and path.resolve() != Path(config.run.dir).resolve() else None


def open_dataset(config: VampoConfig, root: str | None = None, *, latents: str | None = None) -> EpisodeSource:
    """A dataset of ``data``, recorded or completed first where there is a simulator for it.

    Args:
        config: of the run.
        root: a folder of ``data.root``, the first by default.
        latents: name of an encoding of its videos; None for frames, or for latents that came with the data.
    """
    data = config.data
    root = data.roots[0] if root is None else root
    folder = Path(os.path.expandvars(root)).expanduser()
    if "$" in str(folder):
        raise ConfigError(f"data.root is {root!r}, expected its environment variable to be set")
    if data.env is not None and latents is None:
        try:
            record(
                data.env,
                folder,
                num_episodes=data.num_episodes,
                num_workers=max(1, data.num_workers),
                env_kwargs={"image_size": data.resolution},
                action_noise=data.action_noise,
            )
        except OtherSettingsError as error:
            key = "resolution" if error.name == "env_kwargs" else error.name
            if not hasattr(data, key):  # nothing that a configuration says
                raise
            raise ConfigError(
                f"data.{key} is {getattr(data, key)!r}, but {str(folder)!r} was recorded with {error.found!r}: choose "
                "another data.root, or delete that folder"
            ) from error
    num_episodes = None if data.env is None else data.num_episodes  # the folder may hold more, recorded for another run
    return open_dataset_of(data.format, folder, latents=latents, num_episodes=num_episodes, strict=data.strict)


@contextlib.contextmanager
def _on_device(codec: object, device: torch.device) -> Iterator[None]:
    """The codec on a device for a while, then back where the rest of its model is."""
    assert isinstance(codec, torch.nn.Module), codec
    home = next(codec.parameters()).device
    codec.to(device)
    try:
        yield
    finally:
        codec.to(home)


def _image_size(config: VampoConfig) -> tuple[int, int] | None:
    """What videos are brought to; recorded ones have their size already."""
    return None if config.data.format == "recorded" else config.data.image_size


def _split(config: VampoConfig, episodes: Sequence[Episode]) -> tuple[list[Episode], list[Episode]]:
    return split_episodes(episodes, held_out=config.data.held_out_fraction)


def _clips(config: VampoConfig, episodes: list[Episode]) -> ClipDataset:
    data = config.data
    return ClipDataset(episodes, num_frames=data.num_frames, mode=data.sampling, stride=data.stride, strict=data.strict)


def digest(value: object) -> str:
    """Twelve hexadecimal digits that name a folder after everything that its content depends on."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=list).encode()).hexdigest()[:12]
