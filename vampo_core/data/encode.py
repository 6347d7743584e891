"""Videos → latents, once: one file per episode, kept as long as codec and video stay the same.

Episodes are read a few hundred frames at a time, by threads while the codec works if there are any. Several processes
may encode the same dataset together.
"""

import contextlib
import errno
import os
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vampo_core.data.episode import Episode, EpisodeError, EpisodeSource, Skipped, reading, reason_of, report_skipped
from vampo_core.data.folder import derived_folder, safe_name, writing_to
from vampo_core.data.latent_files import latents_path, read_header, write_latents
from vampo_core.data.prefetch import read_each_ahead
from vampo_core.data.shared_work import SharedWork
from vampo_core.data.video import image_hw, resize_frames
from vampo_core.data.windows import Windows
from vampo_core.files import remove_leftovers
from vampo_core.progress import progress as progress_bar

_FRAMES_AT_ONCE = 256
"""Number of frames that are decoded and kept in memory together."""


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
    num_workers: int = 0,
    cache: str | Path | None = None,
    strict: bool = False,
    progress: bool = True,
) -> EncodeResult:
    """Encode every episode of a dataset into ``<root>/latents/<name>/``; latents that are current are kept.

    Latents of a read-only dataset are kept in the user's cache, see :func:`~vampo_core.data.folder.derived_folder`.
    Processes that call this at the same time share the work, and each returns when all of it is done.

    A codec gets its frames on its ``device`` where it has one, else on that of its parameters where it is a module,
    else on the CPU.

    Args:
        dataset: dataset of any format, opened without an encoding.
        codec: see :class:`Codec`.
        image_size: size that frames are resized to first (one number for a square, or height and width); None to keep
            their size.
        windows: windows to encode each on its own, for a codec that compresses time; None for single frames.
        batch_size: number of frames per call of the codec; unused with windows.
        num_workers: number of threads that decode videos while the codec works; 0 for none.
        cache: folder to keep latents in instead of the dataset's own.
        strict: whether an episode that cannot be read is an error instead of being skipped with a warning.
        progress: whether to show a progress bar.

    Returns:
        The name to open the dataset's latents with, and the numbers of episodes encoded, reused and skipped.

    Raises:
        ValueError: an argument is wrong, or the codec returns something that is not latents.
        EpisodeError: no episode can be read, or one cannot and ``strict`` is set.
        PermissionError: a folder cannot be written to, and episodes have to be encoded.
    """
    for argument, value, least in (("batch_size", batch_size, 1), ("num_workers", num_workers, 0)):
        if value < least:
            raise ValueError(f"{argument} is {value}, expected at least {least}")
    size = None if image_size is None else image_hw(image_size)
    name = latents_name(codec, image_size, windows)
    place = _Place(dataset.root, name, cache)
    episodes = dataset.episodes
    missing = [episode for episode in episodes if not _is_current(place, episode)]
    encoder = _Encoder(place, codec, size, windows, batch_size, num_workers, strict)
    if missing:
        num_frames = sum(episode.length for episode in episodes)
        num_left = sum(episode.length for episode in missing)
        encoder.bar = progress_bar(
            desc=f"encode {dataset.name}", total=num_frames, initial=num_frames - num_left, unit="frame",
            disable=not progress, delay=0.5,
        )  # fmt: skip
        work = SharedWork(episodes, place.folder / ".locks")
        with _writing(dataset.root, cache), encoder.bar, work:
            encoder.run(work.free())
            with contextlib.closing(work.taken()) as taken:
                for part in taken:
                    encoder.run([(part, _nothing)])
    skipped = encoder.skipped
    report_skipped(dataset.name, skipped, len(episodes), strict)
    num_reused = len(episodes) - encoder.num_encoded - len(skipped)
    return EncodeResult(name, encoder.num_encoded, num_reused, tuple(skipped))


class _Encoder:
    """Encodes parts of a dataset, and counts."""

    def __init__(
        self,
        place: "_Place",
        codec: Codec,
        size: tuple[int, int] | None,
        windows: Windows | None,
        batch_size: int,
        num_workers: int,
        strict: bool,
    ) -> None:
        self._place, self._codec, self._size, self._windows = place, codec, size, windows
        self._batch_size, self._num_workers, self._strict = batch_size, num_workers, strict
        self.num_encoded, self.skipped = 0, list[Skipped]()
        self.bar: Any = None

    def run(self, parts: "Iterable[_Part]") -> None:
        """Encode what is missing of locked parts."""
        latents: list[Tensor] = []
        with (
            contextlib.closing(self._chunks(parts)) as chunks,
            contextlib.closing(read_each_ahead(_Chunk.read, chunks, self._num_workers)) as read_ahead,
        ):
            for chunk, read in read_ahead:
                if self._strict and self.skipped:
                    return
                if chunk.is_first:
                    latents = []
                try:
                    if not chunk.is_first and not latents:  # an earlier part could not be read
                        continue
                    frames, path, header = read()
                    latents += _encoded(frames, chunk, self._codec, self._size, self._windows)
                    self.bar.update(chunk.num_frames)
                    if chunk.is_last:
                        write_latents(path, _whole(latents, chunk.episode), header)
                        self.num_encoded += 1
                except EpisodeError as error:
                    latents = []
                    self.skipped.append(Skipped(chunk.episode.episode_id, reason_of(error)))
                finally:
                    chunk.release()

    def _chunks(self, parts: "Iterable[_Part]") -> "Generator[_Chunk, None, None]":
        """Chunks of the episodes that are missing."""
        skipped = {episode.episode_id for episode in self.skipped}
        for part, release in parts:
            _remove_leftovers(self._place, part)
            left = [e for e in part if e.episode_id not in skipped and not _is_current(self._place, e)]
            for episode in left:
                last = release if episode is left[-1] else _nothing
                yield from _chunks_of(episode, self._place, self._windows, self._batch_size, last)
            if not left:
                release()


@contextlib.contextmanager
def _writing(root: Path, cache: str | Path | None) -> Iterator[None]:
    """Name the folder that cannot be written to."""
    if cache is None:
        with writing_to(root, "latents"):
            yield
        return
    try:
        Path(cache).mkdir(parents=True, exist_ok=True)
        if not os.access(cache, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        message = f"cache is {str(cache)!r}, expected a folder that can be written to ({error.strerror})"
        raise PermissionError(message) from error
    yield


_Part = tuple[Sequence[Episode], Callable[[], None]]


@dataclass(frozen=True)
class _Place:
    """Where the latents of an encoding are kept."""

    root: Path
    name: str
    cache: str | Path | None

    @property
    def folder(self) -> Path:
        return derived_folder(self.root, "latents", self.cache) / self.name

    def path(self, episode: Episode) -> Path:
        """Where an episode's latents are found."""
        return latents_path(self.root, self.name, episode.episode_id, self.cache)

    def new_path(self, episode: Episode) -> Path:
        """Where they are written."""
        return self.folder / f"{safe_name(episode.episode_id)}.safetensors"


@dataclass(frozen=True, kw_only=True)
class _Chunk:
    """Inputs of the codec from one episode, few enough to be in memory together."""

    episode: Episode
    place: _Place
    inputs: Sequence[Sequence[int]]  # the frames of each
    num_frames: int  # that no chunk before had
    is_first: bool
    is_last: bool
    release: Callable[[], None]  # after which another process may work on its part of the dataset

    @property
    def indices(self) -> list[int]:
        """Its frames, each once."""
        return sorted({index for frames in self.inputs for index in frames})

    def read(self) -> tuple[Tensor, Path, dict[str, object]]:  # frames [N, H, W, 3] uint8, file, its header
        episode = self.episode
        with reading(episode.dataset, episode.episode_id):
            path, header = self.place.new_path(episode), _header(episode)  # the header first: the video might change
            return episode.frames(self.indices), path, header


def _chunks_of(
    episode: Episode, place: _Place, windows: Windows | None, batch_size: int, release: Callable[[], None]
) -> Generator[_Chunk, None, None]:
    length = episode.length
    inputs: list[Sequence[int]] = (
        [range(start, min(start + batch_size, length)) for start in range(0, length, batch_size)]
        if windows is None
        else [windows.frames(start, length) for start in windows.starts(length)]
    )
    begin = reached = 0
    for i in range(len(inputs)):
        is_last = i == len(inputs) - 1
        if is_last or inputs[i + 1][-1] - inputs[begin][0] >= _FRAMES_AT_ONCE:
            end = length if is_last else inputs[i][-1] + 1
            yield _Chunk(
                episode=episode,
                place=place,
                inputs=inputs[begin : i + 1],
                num_frames=end - reached,
                is_first=begin == 0,
                is_last=is_last,
                release=release if is_last else _nothing,
            )
            begin, reached = i + 1, end


def _nothing() -> None:
    pass


def _remove_leftovers(place: _Place, episodes: Sequence[Episode]) -> None:
    """Remove what an interrupted process left of these episodes, which nobody else may touch now."""
    with contextlib.suppress(EpisodeError, ValueError):  # of an episode whose name cannot be a file's
        paths = [place.new_path(episode) for episode in episodes]
        for folder in {path.parent for path in paths}:
            remove_leftovers(folder, of={path.name for path in paths})


def _header(episode: Episode) -> dict[str, object]:
    """Entries that show whether latents still belong to the video."""
    return {"length": episode.length, **episode.fingerprint}


def _is_current(place: _Place, episode: Episode) -> bool:
    try:
        with reading(episode.dataset, episode.episode_id):
            path = place.path(episode)
            return path.is_file() and read_header(path) == _header(episode)
    except EpisodeError:
        return False


def _device_of(codec: Codec) -> torch.device:
    if hasattr(codec, "device"):
        return torch.device(codec.device)
    return next(codec.parameters()).device if isinstance(codec, nn.Module) else torch.device("cpu")


@torch.inference_mode()
def _encoded(
    frames: Tensor,  # [N, H, W, 3] uint8, of chunk.indices
    chunk: _Chunk,
    codec: Codec,
    size: tuple[int, int] | None,
    windows: Windows | None,
) -> list[Tensor]:  # of each input [n, C, h, w] float32
    device, row = _device_of(codec), {index: i for i, index in enumerate(chunk.indices)}
    encoded = []
    for indices in chunk.inputs:
        # as bytes, and without a copy where the frames lie one after the other: memory is what this costs
        first = row[indices[0]]
        follow = len(set(indices)) == len(indices) == indices[-1] - indices[0] + 1
        part = frames[first : first + len(indices)] if follow else frames[[row[index] for index in indices]]
        images = part.to(device).permute(0, 3, 1, 2).to(torch.float32).div_(255)
        if size is not None:
            images = resize_frames(images, size)
        latents = codec.encode(images) if windows is None else codec.encode(images.unsqueeze(0))[0]
        expected = len(images) if windows is None else windows.num_latents
        if not isinstance(latents, Tensor) or latents.ndim != 4 or len(latents) != expected:
            shape = tuple(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
            raise ValueError(f"codec.encode returned {shape} for {len(images)} frames, expected [{expected}, C, h, w]")
        encoded.append(latents.to("cpu", torch.float32))
    return encoded


def _whole(latents: Sequence[Tensor], episode: Episode) -> Tensor:
    """The parts of an episode's latents, one after the other."""
    whole = torch.cat(list(latents))
    if not whole.isfinite().all():
        raise ValueError(f"codec.encode returned values that are not finite for episode {episode.episode_id!r}")
    return whole
