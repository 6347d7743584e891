"""Episodes on disk, latents of their videos, and clips for training."""

from vampo_core.data.clips import Clip, ClipDataset, ClipItem, clip_loader, collate
from vampo_core.data.encode import Codec, EncodeResult, encode, latents_name
from vampo_core.data.episode import Episode, EpisodeError, EpisodeSource, Skipped
from vampo_core.data.formats import FORMATS, open_dataset_of
from vampo_core.data.formats.recorded import RecordedDataset, RecordedEpisode
from vampo_core.data.formats.vpp import VppDataset, VppEpisode
from vampo_core.data.record import record
from vampo_core.data.sampler import ClipSampler
from vampo_core.data.split import split_episodes

__all__ = [
    "FORMATS",
    "Clip",
    "ClipDataset",
    "ClipItem",
    "ClipSampler",
    "Codec",
    "EncodeResult",
    "Episode",
    "EpisodeError",
    "EpisodeSource",
    "RecordedDataset",
    "RecordedEpisode",
    "Skipped",
    "VppDataset",
    "VppEpisode",
    "clip_loader",
    "collate",
    "encode",
    "latents_name",
    "open_dataset_of",
    "record",
    "split_episodes",
]
