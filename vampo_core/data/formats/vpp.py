"""The layout of Video Prediction Policy (Hu et al. 2024, arXiv 2412.14803): annotations, videos, encoded latents.

::

    <root>/annotation/<split>/<id>.json     texts, videos[camera].video_path, latent_videos[camera].latent_video_path,
                                            state(s) or video_length, action(s)
    <root>/videos/<split>/<id>/….mp4
    <root>/latent_videos/<split>/<id>/<camera>.pt       [T, 4, h, w], times the VAE's scaling factor

Published data names ``latent_videos`` in the annotations but stores ``latent_videos_svd``: both are tried. If both
splits ``train`` and ``val`` exist, the episodes of ``val`` are the held-out ones.
"""

import functools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from vampo_core.data.encoded_episode import EncodedEpisode
from vampo_core.data.episode import check_indices, open_each, per_frame, reading
from vampo_core.data.latent_files import latents_path, read_latents, shape_of
from vampo_core.data.video import count_frames, frame_rate, read_frames

_SPLITS = ("train", "val")
_LATENT_FOLDERS = ("latent_videos", "latent_videos_svd")


@dataclass(frozen=True, kw_only=True)
class VppEpisode(EncodedEpisode):
    """An episode in the VPP layout; see :class:`vampo_core.data.Episode`."""

    annotation: Path
    video_id: str
    video_path: Path

    @property
    def fingerprint(self) -> dict[str, object]:
        with reading(self.dataset, self.episode_id):
            return {"video_bytes": self.video_path.stat().st_size}

    @property
    def latents_shape(self) -> tuple[int, ...] | None:  # (C, h, w)
        if self.latents_file is None:
            return None
        with reading(self.dataset, self.episode_id):
            if self.latents_file.suffix == ".pt":
                return tuple(_load_pt(self.latents_file, self.length).shape[1:])
            return shape_of(self.latents_file)

    @property
    def actions(self) -> Tensor:  # [T, A] float32; A = 0 if the annotation has none
        return self._rows("action", "actions")

    @property
    def states(self) -> Tensor:  # [T, S] float32; S = 0 if the annotation has none
        return self._rows("state", "states")

    @property
    def is_pushed(self) -> Tensor:  # [T] bool
        return torch.zeros(self.length, dtype=torch.bool)

    def frames(self, indices: Sequence[int]) -> Tensor:  # [N, H, W, 3] uint8
        indices = check_indices(indices, self.length)
        with reading(self.dataset, self.episode_id):
            return read_frames(self.video_path, indices)

    def latents(self, indices: Sequence[int]) -> Tensor:  # [N, C, h, w] float32
        indices = check_indices(indices, self.length)
        if self.latents_file is None:
            raise ValueError(f"dataset {self.dataset!r} has no latents here, expected some; `vampo encode` makes them")
        with reading(self.dataset, self.episode_id):
            if self.latents_file.suffix != ".pt":
                return read_latents(self.latents_file, indices)
            state = self.latents_file.stat()
            _check_finite(self.latents_file, self.length, state.st_mtime_ns, state.st_size)
            return _load_pt(self.latents_file, self.length)[indices].to(torch.float32)

    def _rows(self, *keys: str) -> Tensor:
        with reading(self.dataset, self.episode_id):
            key, rows = _first(_read_annotation(self.annotation), keys)
            if rows and not all(isinstance(row, list) and all(map(_is_number, row)) for row in rows):
                raise ValueError(f"{key} holds something else than rows of numbers")
            return per_frame(torch.tensor(rows, dtype=torch.float32), self.length, key)


class VppDataset:
    """Reader of the VPP layout.

    Args:
        root: folder that holds ``annotation/``.
        split: folder under ``annotation/``, e.g. ``"train"`` or ``"val"``; None for both of these that exist.
        camera: index of the video to read, of each episode's videos.
        latents: name of an encoding of ours under ``<root>/latents``; None for the ``.pt`` files that came with the
            data, if there are any.
        cache: folder where latents are kept if not in the dataset's own, as given to :func:`vampo_core.data.encode`.
        num_episodes: number of episodes to open of each split, from the first one; None for all.
        name: name of the dataset, part of the clips' identity; by default the folder's name.
        strict: whether an episode that cannot be read is an error instead of being skipped with a warning.

    Raises:
        FileNotFoundError: there are no annotations for ``split`` under ``root``.
        EpisodeError: no episode can be read, or one cannot and ``strict`` is set.
    """

    def __init__(
        self,
        root: str | Path,
        split: str | None = None,
        *,
        camera: int = 0,
        latents: str | None = None,
        cache: str | Path | None = None,
        num_episodes: int | None = None,
        name: str | None = None,
        strict: bool = False,
    ) -> None:
        self.root = Path(root)
        self.name = name or self.root.resolve().name
        folder = self.root / "annotation"
        splits = [s for s in _SPLITS if (folder / s).is_dir()] or [_SPLITS[0]] if split is None else [split]
        files: dict[str, Path] = {}
        for split in splits:
            for path in _annotations(folder / split)[:num_episodes]:
                files[f"{split}/{path.stem}" + (f"/{camera}" if camera else "")] = path
        self.episodes, self.skipped = open_each(
            self.name,
            list(files),
            lambda name: self._open(files[name], name, camera, latents, cache, knows_split=len(splits) > 1),
            strict,
        )

    def __len__(self) -> int:
        return len(self.episodes)

    @property
    def fps(self) -> float:
        """Frames per second of the first episode's video."""
        episode = self.episodes[0]
        with reading(self.name, episode.episode_id):
            return frame_rate(episode.video_path)

    def _open(
        self,
        annotation: Path,
        episode_id: str,
        camera: int,
        latents: str | None,
        cache: str | Path | None,
        *,
        knows_split: bool,
    ) -> VppEpisode:
        entries = _read_annotation(annotation)
        video_name = _of_camera(entries, "videos", "video_path", camera)
        video = self._inside(video_name)
        if latents is None:
            file = self._published_latents(entries, camera)
        else:
            file = latents_path(self.root, latents, episode_id, cache)
            if not file.is_file():
                raise ValueError(f"it has no latents {latents!r}; `vampo encode` makes them")
        if file is None and not video.is_file():
            raise ValueError(f"there are neither latents nor a video {str(video.relative_to(self.root))!r}")
        return VppEpisode(
            dataset=self.name,
            episode_id=episode_id,
            instruction=_instruction(entries),
            length=_length(entries, video, file),
            annotation=annotation,
            video_id=video_name,
            video_path=video,
            latents_file=file,
            is_held_out=annotation.parent.name == _SPLITS[1] if knows_split else None,
        )

    def _published_latents(self, entries: dict[str, Any], camera: int) -> Path | None:
        if not entries.get("latent_videos"):
            return None
        path = PurePosixPath(_of_camera(entries, "latent_videos", "latent_video_path", camera))
        candidates = [path, *(PurePosixPath(folder, *path.parts[1:]) for folder in _LATENT_FOLDERS)]
        return next((file for p in candidates if (file := self._inside(str(p))).is_file()), None)

    def _inside(self, path: str) -> Path:
        relative = PurePosixPath(path)
        if relative.is_absolute() or ".." in relative.parts:
            raise ValueError(f"path {path!r} leads out of the dataset, expected one below its root")
        return self.root / relative


def _annotations(folder: Path) -> list[Path]:
    """Annotations of a split, in natural order."""
    found = sorted((path for path in folder.glob("*.json") if not path.name.startswith(".")), key=_natural)
    if not found:
        parent = folder.parent
        names = sorted(p.name for p in parent.iterdir() if p.is_dir()) if parent.is_dir() else []
        splits = f"; splits found: {', '.join(names)}" if names else ""
        raise FileNotFoundError(f"no annotations at {str(folder)!r}, expected *.json files{splits}")
    return found


def _read_annotation(path: Path) -> dict[str, Any]:
    entries = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(entries, dict):
        raise ValueError(f"{path.name} holds a {type(entries).__name__}, expected an object")
    return entries


def _of_camera(entries: dict[str, Any], key: str, path_key: str, camera: int) -> str:
    """Path of one camera's video or latents."""
    videos = entries[key]
    is_list = isinstance(videos, list) and all(isinstance(video, dict) for video in videos)
    if not is_list or not all(isinstance(video.get(path_key), str) for video in videos):
        raise ValueError(f"{key} is {_shown(videos)}, expected a list of objects that each have a {path_key!r}")
    if not 0 <= camera < len(videos):
        raise ValueError(f"camera is {camera}, expected 0 to {len(videos) - 1} of {key!r}")
    return videos[camera][path_key]


def _instruction(entries: dict[str, Any]) -> str:
    texts = entries["texts"]
    if isinstance(texts, str):
        return texts
    if not isinstance(texts, list) or not texts or not isinstance(texts[0], str):
        raise ValueError(f"texts is {_shown(texts)}, expected an instruction or a list that begins with one")
    return texts[0]


def _length(entries: dict[str, Any], video: Path, latents_file: Path | None) -> int:
    length = entries.get("video_length") or len(_first(entries, ("state", "states"))[1])
    if not length and latents_file is not None and latents_file.suffix == ".pt":
        length = len(_load_pt(latents_file, 0))
    length = length or count_frames(video)
    if not _is_number(length) or length < 1 or length != int(length):
        raise ValueError(f"its length is {_shown(length)}, expected a whole number of at least 1")
    return int(length)


def _load_pt(path: Path, length: int) -> Tensor:  # [T, C, h, w]
    """Map the file instead of reading it: only the pages of the requested frames are touched."""
    latents = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if not isinstance(latents, Tensor) or latents.ndim != 4 or not latents.is_floating_point():
        kind = f"{latents.dtype} {tuple(latents.shape)}" if isinstance(latents, Tensor) else type(latents).__name__
        raise ValueError(f"{path.name} holds {kind}, expected a tensor [T, C, h, w] of floating-point numbers")
    if len(latents) < length:
        raise ValueError(f"{path.name} holds {len(latents)} latents, expected {length}")
    return latents.detach()  # one that requires a gradient cannot be sent from a data loader's worker


@functools.lru_cache(maxsize=100_000)
def _check_finite(path: Path, length: int, mtime_ns: int, num_bytes: int) -> None:
    """Check all latents of an episode before the first is used, so that its clips are all used or all skipped.

    Raises:
        ValueError: some are not finite.
    """
    wrong = (~_load_pt(path, length)[:length].isfinite()).flatten(1).any(1).nonzero()
    if len(wrong):
        raise ValueError(f"{path.name} holds latents that are not finite, first at frame {int(wrong[0])}")


def _first(entries: dict[str, Any], keys: Sequence[str]) -> tuple[str, list[Any]]:
    """The first of these entries that is not empty, with its name; an empty list if there is none."""
    key = next((key for key in keys if entries.get(key)), keys[0])
    rows = entries.get(key) or []
    if not isinstance(rows, list):
        raise ValueError(f"{key} is {_shown(rows)}, expected a list with a row of numbers for each frame")
    return key, rows


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _natural(path: Path) -> list[tuple[int, int | str]]:
    """Sort key that puts 2 before 10."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", path.stem) if part]
