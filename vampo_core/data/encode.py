"""Videos → latents, once: one file per episode, kept as long as codec and video stay the same."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from vampo_core.data.episode import Episode, EpisodeError, EpisodeSource, Skipped, reading, reason_of, report_skipped
from vampo_core.data.folder import derived_folder, writing_to
from vampo_core.data.latent_files import latents_path, read_header, write_latents
from vampo_core.data.video import image_hw, resize_frames
from vampo_core.data.windows import Windows
from vampo_core.files import locked, remove_leftovers
from vampo_core.progress import progress as progress_bar


class Codec(Protocol):
    """Turns frames into latents; codecs that give different latents have different fingerprints."""

    def encode(self, frames: Tensor) -> Tensor:
        """Frames ``[N, 3, H, W]`` float32 in [0, 1] to ``[N, C, h, w]``; with windows videos [1, T, 3, H, W]."""
        ...

    def fingerprint(self) -> str: ...


@dataclass(frozen=True)
class EncodeResult:
    """What :func:`encode` did."""

    latents: str
    """Name of the encoding, for the readers' argument ``latents``."""
    num_encoded: int
    """Number of episodes that were encoded."""
    num_reused: int
    """Number of episodes whose latents were there and current."""
    skipped: tuple[Skipped, ...]
    """Episodes that cannot be read."""


def latents_name(codec: Codec, image_size: int | tuple[int, int] | None = None, windows: Windows | None = None) -> str:
    """Folder name of a codec's latents: its fingerprint, the size that frames are resized to beforehand, windows."""
    fingerprint = codec.fingerprint()
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", fingerprint):
        raise ValueError(f"codec.fingerprint() is {fingerprint!r}, expected only letters, digits, '.', '_' and '-'")
    size = "" if image_size is None else "-{}x{}".format(*image_hw(image_size))
    return f"{fingerprint}{size}" + ("" if windows is None else f"-w{windows.name}")


def encode(
    dataset: EpisodeSource,
    codec: Codec,
    *,
    image_size: int | tuple[int, int] | None = None,
    windows: Windows | None = None,
    batch_size: int = 32,
    strict: bool = False,
    progress: bool = True,
) -> EncodeResult:
    """Encode every episode of a dataset into ``<root>/latents/<name>/``; latents that are current are kept.

    Latents of a read-only dataset are kept in the user's cache, see :func:`~vampo_core.data.folder.derived_folder`.

    A codec gets its frames on its ``device`` where it has one, else on that of its parameters where it is a module,
    else on the CPU.

    Args:
        dataset: dataset of any format, opened without an encoding.
        codec: see :class:`Codec`.
        image_size: size that frames are resized to first (one number for a square, or height and width); None to keep
            their size.
        windows: windows to encode each on its own, for a codec that compresses time; None for single frames.
        batch_size: number of frames per call of the codec; unused with windows.
        strict: whether an episode that cannot be read is an error instead of being skipped with a warning.
        progress: whether to show a progress bar.

    Returns:
        The name to open the dataset's latents with, and the numbers of episodes encoded, reused and skipped.

    Raises:
        ValueError: an argument is wrong, or the codec returns something that is not latents.
        EpisodeError: no episode can be read, or one cannot and ``strict`` is set.
        PermissionError: a folder cannot be written to, and episodes have to be encoded.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, expected at least 1")
    name = latents_name(codec, image_size, windows)
    size = None if image_size is None else image_hw(image_size)
    folder, episodes = derived_folder(dataset.root, "latents") / name, dataset.episodes
    skipped: list[Skipped] = []
    num_encoded = 0
    if not all(_is_current(dataset.root, name, episode) for episode in episodes):
        with writing_to(dataset.root, "latents"), locked(folder):
            remove_leftovers(folder, recursive=True)
            for episode in progress_bar(episodes, desc=f"encode {dataset.name}", disable=not progress, delay=0.5):
                if _is_current(dataset.root, name, episode):
                    continue
                try:
                    path, header, frames = _read(dataset.root, name, episode)
                except EpisodeError as error:
                    skipped.append(Skipped(episode.episode_id, reason_of(error)))
                    if strict:
                        break
                    continue
                write_latents(path, _encoded(frames, codec, size, windows, batch_size, episode), header)
                num_encoded += 1
    report_skipped(dataset.name, skipped, len(episodes), strict)
    num_reused = len(episodes) - num_encoded - len(skipped)
    return EncodeResult(name, num_encoded, num_reused, tuple(skipped))


def _read(
    root: Path, name: str, episode: Episode
) -> tuple[Path, dict[str, object], Tensor]:  # file, header, frames [T, H, W, 3] uint8
    with reading(episode.dataset, episode.episode_id):
        path = latents_path(root, name, episode.episode_id)
        return path, _header(episode), episode.frames(range(episode.length))


def _header(episode: Episode) -> dict[str, object]:
    """Entries that show whether latents still belong to the video."""
    return {"length": episode.length, **episode.fingerprint}


def _is_current(root: Path, name: str, episode: Episode) -> bool:
    try:
        with reading(episode.dataset, episode.episode_id):
            path = latents_path(root, name, episode.episode_id)
            return path.is_file() and read_header(path) == _header(episode)
    except EpisodeError:
        return False


def _device_of(codec: Codec) -> torch.device:
    if hasattr(codec, "device"):
        return torch.device(codec.device)
    return next(codec.parameters()).device if isinstance(codec, nn.Module) else torch.device("cpu")


@torch.inference_mode()
def _encoded(
    frames: Tensor,  # [T, H, W, 3] uint8
    codec: Codec,
    size: tuple[int, int] | None,
    windows: Windows | None,
    batch_size: int,
    episode: Episode,
) -> Tensor:  # [T, C, h, w] float32, or with windows [number of windows * F, C, h, w]
    device = _device_of(codec)
    encoded = []
    parts = (
        frames.split(batch_size)
        if windows is None
        else (frames[windows.frames(start, len(frames))] for start in windows.starts(len(frames)))
    )
    for part in parts:
        images = part.permute(0, 3, 1, 2).to(device, torch.float32) / 255
        if size is not None:
            images = resize_frames(images, size)
        latents = codec.encode(images) if windows is None else codec.encode(images.unsqueeze(0))[0]
        expected = len(images) if windows is None else windows.num_latents
        if not isinstance(latents, Tensor) or latents.ndim != 4 or len(latents) != expected:
            shape = tuple(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
            raise ValueError(f"codec.encode returned {shape} for {len(images)} frames, expected [{expected}, C, h, w]")
        encoded.append(latents.to("cpu", torch.float32))
    latents = torch.cat(encoded)
    if not latents.isfinite().all():
        raise ValueError(f"codec.encode returned values that are not finite for episode {episode.episode_id!r}")
    return latents
