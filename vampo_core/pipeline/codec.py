"""The codec of the embedded default: fitted once to the training frames of a dataset."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vampo_core.config import VampoConfig, deciding
from vampo_core.data.episode import Episode
from vampo_core.data.spread_frames import spread_frames
from vampo_core.files import publish, temporary_beside
from vampo_core.models.codecs.latent import LatentCodec
from vampo_core.models.codecs.patch import PatchCodec
from vampo_core.pipeline.clips import image_size, open_dataset, split
from vampo_core.pipeline.names import beside_run, digest
from vampo_core.pipeline.waiting import made_by_one_process

SVD_SCALING_FACTOR = 0.18215
_CODEC_FRAMES = 2000


def prepare_codec(config: VampoConfig) -> PatchCodec | LatentCodec:
    """The codec of the embedded default, kept beside the runs.

    Data that comes as latents needs none: a :class:`LatentCodec` stands for the one that made them.

    Raises:
        ValueError: frames, resized to ``data.resolution``, do not divide into patches.
        EpisodeError: no training video can be read, or one cannot and ``data.strict`` is set.
    """
    datasets = [open_dataset(config, root) for root in config.data.roots]
    episodes = [episode for dataset in datasets for episode in dataset.episodes]
    sizes = {f"{e.dataset}/{e.episode_id}": e.latents_fingerprint for e in episodes if e.has_latents}
    if sizes:
        return LatentCodec(
            latent_channels=config.model.latent_channels,
            scaling_factor=SVD_SCALING_FACTOR if config.model.backbone == "svd" else 1.0,
            data=digest(sizes),
        )
    config.check_resolution()
    parts = [split(config, dataset.episodes)[0] for dataset in datasets]
    names = [[episode.episode_id, episode.fingerprint] for train in parts for episode in train]
    folder = beside_run(config, f"codec-{digest([names, deciding(config, 'codec'), _CODEC_FRAMES])}")
    if not folder.is_dir():
        with made_by_one_process(folder):
            if not folder.is_dir():  # another process may have made it in the meantime
                print(f"fitting a codec to {len(names)} episodes: {folder}")
                codec = PatchCodec.fit(
                    _codec_frames(config, parts),
                    patch_size=config.model.patch_size,
                    latent_channels=config.model.latent_channels,
                )
                temporary = temporary_beside(folder)
                codec.save_pretrained(temporary)
                publish(temporary, folder)
    return PatchCodec.from_pretrained(folder).requires_grad_(False)


def _codec_frames(config: VampoConfig, parts: Sequence[Sequence[Episode]]) -> Tensor:  # [N, 3, H, W] uint8
    """Training frames of every folder of ``data.root``, at most an equal share of each."""
    share, size = _CODEC_FRAMES // len(parts), image_size(config)
    frames = [spread_frames(part, max_frames=share, image_size=size, strict=config.data.strict) for part in parts]
    sizes = sorted({tuple(part.shape[-2:]) for part in frames})
    if len(sizes) > 1:
        raise ValueError(f"data.root holds {list(config.data.roots)} with frames of sizes {sizes}, expected one size")
    return torch.cat(frames)
