"""From a configuration to a model and its clips; whatever is missing on the way is made first, once.

A preset starts from nothing: episodes are recorded, a codec is fitted to them, their videos are encoded and a base is
pretrained. Each product lies in a folder whose name or contents say what it was made from, so it is used again as long
as it is valid and made anew when the settings behind it change.
"""

import hashlib
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import Accelerator

from vampo_core.checkpoint import find_checkpoint
from vampo_core.config import ConfigError, VampoConfig
from vampo_core.data.clips import ClipDataset
from vampo_core.data.encode import encode
from vampo_core.data.episode import Episode, EpisodeSource
from vampo_core.data.record import record
from vampo_core.data.recorded import RecordedDataset
from vampo_core.data.split import split_episodes
from vampo_core.data.vpp import VppDataset
from vampo_core.files import publish, temporary_beside
from vampo_core.models.codec import AnyCodec, LatentCodec, PatchCodec
from vampo_core.models.video_predictor import VideoPredictor

SVD_SCALING_FACTOR = 0.18215
_DATA_KEYS = ("root", "env", "num_episodes", "resolution", "held_out_fraction", "num_frames", "stride", "sampling")
_CODEC_FRAMES = 2000


@dataclass(frozen=True)
class Clips:
    """Training and held-out clips of different episodes."""

    train: ClipDataset
    held_out: ClipDataset


def load_predictor(config: VampoConfig, folder: str | Path) -> VideoPredictor:
    """A predictor from a model folder, a checkpoint or a run folder, with the adapters and precision of the config.

    Raises:
        ValueError: there is no such model.
    """
    path = Path(folder)
    if not (path / "unet").is_dir():
        path = find_checkpoint(path)
    model = VideoPredictor.from_pretrained(path, text_encoder=config.model.text_encoder, dtype=config.model.dtype)
    if config.model.lora:
        with torch.random.fork_rng():
            torch.manual_seed(config.run.seed)
            model.add_lora(rank=config.model.lora)
    if config.model.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    return model


def inference_predictor(config: VampoConfig, folder: str | Path) -> VideoPredictor:
    """As :func:`load_predictor`, on the device of this process and ready to predict."""
    return load_predictor(config, folder).to(Accelerator().device).eval()


def new_predictor(config: VampoConfig, codec: PatchCodec | LatentCodec) -> VideoPredictor:
    """The embedded default, untrained; its weights follow from ``run.seed``."""
    with torch.random.fork_rng():
        torch.manual_seed(config.run.seed)
        model = VideoPredictor.create(
            codec,
            num_frames=config.data.num_frames,
            sigma_max=config.sampler.sigma_max,
            dtype=config.model.dtype,
            **config.model.unet_options(),
        )
    if config.model.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    return model


def prepare_clips(config: VampoConfig, codec: AnyCodec) -> Clips:
    """Clips with the codec's latents, encoded first where they are not there yet.

    Raises:
        ValueError: the dataset does not fit the codec, or the split is empty.
    """
    dataset = open_dataset(config, latents=None)
    if not isinstance(codec, LatentCodec):
        encoded = encode(
            dataset,
            codec,
            image_size=config.data.resolution if config.data.format == "vpp" else None,
            batch_size=config.data.batch_size,
            strict=config.data.strict,
        )
        dataset = open_dataset(config, latents=encoded.latents)
    train, held_out = _split(config, dataset)
    return Clips(_clips(config, train), _clips(config, held_out))


def prepare_codec(config: VampoConfig) -> PatchCodec | LatentCodec:
    """The codec of the embedded default: fitted to training frames, kept beside the runs.

    Data that comes as latents needs none: a :class:`LatentCodec` stands in for the one that made them.
    """
    if config.data.format == "vpp":
        return LatentCodec(latent_channels=config.model.latent_channels, scaling_factor=SVD_SCALING_FACTOR)
    dataset = open_dataset(config, latents=None)
    train, _ = _split(config, dataset)
    names = [f"{episode.episode_id}:{episode.video_path.stat().st_size}" for episode in train]
    settings = [config.model.patch_size, config.model.latent_channels, config.data.resolution, _CODEC_FRAMES]
    folder = Path(config.run.dir).parent / f"codec-{digest([names, settings])}"
    if not folder.is_dir():
        print(f"fitting a codec to {len(train)} episodes: {folder}")
        frames = torch.cat([episode.frames(range(0, episode.length, 2)) for episode in train])
        codec = PatchCodec.fit(
            frames.permute(0, 3, 1, 2),
            patch_size=config.model.patch_size,
            latent_channels=config.model.latent_channels,
            max_frames=_CODEC_FRAMES,
        )
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_beside(folder)
        codec.save_pretrained(temporary)
        publish(temporary, folder)
    return PatchCodec.from_pretrained(folder).requires_grad_(False)


def base_config(config: VampoConfig, codec: PatchCodec | LatentCodec) -> VampoConfig:
    """The pretraining run behind a configuration without ``model.pretrained``.

    Its folder lies beside ``run.dir`` and is named after everything that the base depends on.
    """
    depends_on = {
        "codec": codec.fingerprint(),
        "data": data_settings(config),
        "model": config.model.unet_options(),
        "pretrain": config.to_dict()["pretrain"],
        "sigma_max": config.sampler.sigma_max,
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


def open_dataset(config: VampoConfig, latents: str | None = None) -> EpisodeSource:
    """The dataset of ``data``, recorded or completed first where there is a simulator for it.

    Args:
        config: of the run.
        latents: name of an encoding of its videos; None for frames, or for latents that came with the data.
    """
    data = config.data
    root = Path(os.path.expandvars(data.root)).expanduser()
    if "$" in str(root):
        raise ConfigError(f"data.root is {data.root!r}, expected its environment variable to be set")
    if data.format == "vpp":
        split = "train" if (root / "annotation" / "train").is_dir() else "val"
        return VppDataset(root, split, latents=latents, strict=data.strict)
    if data.env is not None and latents is None:
        record(
            data.env,
            root,
            num_episodes=data.num_episodes,
            num_workers=max(1, data.num_workers),
            env_kwargs={"image_size": data.resolution},
        )
    return RecordedDataset(root, latents=latents, strict=data.strict)


def _split(config: VampoConfig, dataset: EpisodeSource) -> tuple[list[Episode], list[Episode]]:
    return split_episodes(dataset.episodes, held_out=config.data.held_out_fraction)


def _clips(config: VampoConfig, episodes: list[Episode]) -> ClipDataset:
    data = config.data
    return ClipDataset(episodes, num_frames=data.num_frames, mode=data.sampling, stride=data.stride, strict=data.strict)


def digest(value: object) -> str:
    """Twelve hexadecimal digits that name a folder after everything that its content depends on."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=list).encode()).hexdigest()[:12]
