"""The recorded format, written by :func:`vampo_core.data.record`.

::

    <root>/dataset.json              format, version, env, env_kwargs, action_noise, seed, fps
    <root>/episodes/000000/video.mp4        T frames, lossless H.264 in RGB
    <root>/episodes/000000/episode.safetensors
        actions [T-1, A], states [T, S], privileged_states [T, P], and with action_noise is_pushed [T-1, 1],
        all float32;
        header "vampo_core": JSON of episode_id, length (T), success, seed, instruction, fps, video_crc32, env
    <root>/latents/<name>/000000.safetensors
        latents [T, C, h, w], written by vampo_core.data.encode

Frame t shows ``states[t]``; ``actions[t]``, plus a push if ``is_pushed[t]``, leads from frame t to frame t+1. An
episode folder gets its name only when it is complete. The same seed gives the same bytes.
"""

import dataclasses
import json
import re
import warnings
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from torch import Tensor

from vampo_core.data.encoded_episode import EncodedEpisode
from vampo_core.data.episode import EpisodeError, check_indices, open_each, per_frame, reading
from vampo_core.data.latent_files import latents_path
from vampo_core.data.video import read_frames, write_video
from vampo_core.files import publish, temporary_beside

FORMAT, VERSION = "vampo_core.recorded", 1
INFO = "dataset.json"
_HEADER = "vampo_core"
_VIDEO, _ARRAYS = "video.mp4", "episode.safetensors"


@dataclass(frozen=True)
class EpisodeHeader:
    """Content of the header of ``episode.safetensors``."""

    episode_id: str
    """Name of the episode's folder."""
    length: int
    """Number of frames (T)."""
    success: bool
    """Whether the expert solved the task."""
    seed: int
    """Seed of the simulator's episode."""
    instruction: str
    """The task in words."""
    fps: float
    """Frames per second."""
    video_crc32: int = 0
    """Checksum of the video, set on writing: decoders return wrong pixels for a damaged video instead of failing."""
    env: str = ""
    """Name of the simulator; empty for data that comes from none."""


@dataclass(frozen=True, kw_only=True)
class RecordedEpisode(EncodedEpisode):
    """An episode in the recorded format; see :class:`vampo_core.data.Episode`."""

    folder: Path
    header: EpisodeHeader

    @property
    def video_id(self) -> str:
        return self.episode_id

    @property
    def fingerprint(self) -> dict[str, object]:
        with reading(self.dataset, self.episode_id):
            return {"video_bytes": (self.folder / _VIDEO).stat().st_size}

    @property
    def actions(self) -> Tensor:  # [T, A] float32
        return self._rows("actions")

    @property
    def states(self) -> Tensor:  # [T, S] float32
        return self._rows("states")

    @property
    def is_pushed(self) -> Tensor:  # [T] bool
        with reading(self.dataset, self.episode_id), safe_open(self.folder / _ARRAYS, "pt") as file:
            if "is_pushed" not in file.keys():  # noqa: SIM118 (not a dict)
                return torch.zeros(self.length, dtype=torch.bool)
            return per_frame(file.get_tensor("is_pushed"), self.length, "is_pushed")[:, 0] > 0

    @property
    def privileged_states(self) -> Tensor:  # [T, P] float32
        """Complete simulator state at each frame: for measurements, not for policies."""
        return self._rows("privileged_states")

    def frames(self, indices: Sequence[int]) -> Tensor:  # [N, H, W, 3] uint8
        indices = check_indices(indices, self.length)
        with reading(self.dataset, self.episode_id):
            _check_video(self.folder, self.header)
            return read_frames(self.folder / _VIDEO, indices)

    def _rows(self, name: str) -> Tensor:
        with reading(self.dataset, self.episode_id), safe_open(self.folder / _ARRAYS, "pt") as file:
            return per_frame(file.get_tensor(name), self.length, name)


class RecordedDataset:
    """Reader of the recorded format.

    Args:
        root: the dataset's folder.
        latents: name of an encoding under ``<root>/latents``; None for frames only.
        cache: folder where latents are kept if not in the dataset's own, as given to :func:`vampo_core.data.encode`.
        num_episodes: number of episodes to open, from the first one, failures of the expert included; None for all.
        include_failures: whether to keep episodes in which the expert did not succeed.
        name: name of the dataset, part of the clips' identity; by default the folder's name.
        strict: whether an episode that cannot be read is an error instead of being skipped with a warning.

    Raises:
        FileNotFoundError: there is no dataset at ``root``.
        ValueError: ``root`` holds another format, or no episodes.
        EpisodeError: no episode can be read, or one cannot and ``strict`` is set.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        latents: str | None = None,
        cache: str | Path | None = None,
        num_episodes: int | None = None,
        include_failures: bool = False,
        name: str | None = None,
        strict: bool = False,
    ) -> None:
        self.root = Path(root)
        self.name = name or self.root.resolve().name
        self.info = read_info(self.root)
        self.fps = float(self.info["fps"])
        names = _episode_names(self.root)
        if not names:
            raise ValueError(f"root is {str(self.root)!r}, expected a dataset with episodes in it")
        names = [name for name in names if num_episodes is None or int(name) < num_episodes]
        episodes, self.skipped = open_each(
            self.name, names, lambda name: self._open(name, latents, cache, include_failures), strict
        )
        self.episodes = [e for e in episodes if include_failures or e.header.success]
        if not self.episodes:
            raise ValueError(f"none of the {len(episodes)} episodes of {self.name!r} is a success, expected at least 1")

    def __len__(self) -> int:
        return len(self.episodes)

    def _open(
        self, episode_id: str, latents: str | None, cache: str | Path | None, include_failures: bool
    ) -> RecordedEpisode:
        folder = self.root / "episodes" / episode_id
        header = read_header(folder)
        if not (folder / _VIDEO).is_file():
            raise ValueError(f"{_VIDEO} is missing")
        file = latents_path(self.root, latents, episode_id, cache) if latents else None
        is_used = header.success or include_failures
        if is_used and file is not None and not file.is_file():
            raise ValueError(f"it has no latents {latents!r}; `vampo encode` makes them")
        return RecordedEpisode(
            dataset=self.name,
            episode_id=episode_id,
            instruction=header.instruction,
            length=header.length,
            folder=folder,
            header=header,
            latents_file=file,
        )


def _episode_names(root: Path) -> list[str]:
    """Names of the episodes' folders; warns of others, such as the copies that file managers make."""
    found = sorted(path.name for path in (root / "episodes").glob("*") if path.is_dir() and path.name[0] != ".")
    others = [name for name in found if not re.fullmatch("[0-9]{6,}", name, re.ASCII)]
    if others:
        names = ", ".join(map(repr, others[:5])) + (f" and {len(others) - 5} more" if len(others) > 5 else "")
        message = f"{str(root / 'episodes')!r} holds {names}, expected folders named like '000000'; ignored"
        warnings.warn(message, RuntimeWarning, stacklevel=3)
    return sorted(set(found) - set(others), key=int)


def read_info(root: Path) -> dict[str, Any]:
    """Read ``dataset.json`` and check its format and version."""
    path = root / INFO
    if not path.is_file():
        raise FileNotFoundError(f"root is {str(root)!r}, expected a folder with a recorded dataset (dataset.json)")
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error})") from None
    found = (info.get("format"), info.get("version")) if isinstance(info, dict) else (None, None)
    if found != (FORMAT, VERSION):
        raise ValueError(f"{path} says format {found[0]!r} version {found[1]!r}, expected {FORMAT!r} version {VERSION}")
    _check_type(info, "fps", (int, float))
    return info


def read_header(folder: Path) -> EpisodeHeader:
    """Read the header of an episode and check its types.

    Raises:
        ValueError: it has an entry of another type, or names another episode.
    """
    with safe_open(folder / _ARRAYS, "np") as file:
        header = json.loads((file.metadata() or {})[_HEADER])
    types: dict[str, tuple[type, ...]] = {
        **dict.fromkeys(("episode_id", "instruction"), (str,)),
        **dict.fromkeys(("length", "seed"), (int,)),
        "success": (bool,),
        "fps": (int, float),
    }
    for name, expected in types.items():
        _check_type(header, name, expected)
    if header["length"] < 1:
        raise ValueError(f"length is {header['length']}, expected at least 1")
    if header["episode_id"] != folder.name:
        raise ValueError(f"episode_id is {header['episode_id']!r}, expected {folder.name!r}, the name of its folder")
    return EpisodeHeader(**header)


def _check_type(entries: dict[str, Any], name: str, expected: tuple[type, ...]) -> None:
    value = entries.get(name)
    if not isinstance(value, expected) or (isinstance(value, bool) and bool not in expected):
        wanted = " or ".join(kind.__name__ for kind in expected)
        raise ValueError(f"{name} is {value!r}, expected a value of type {wanted}")


def episode_folder(root: Path, index: int) -> Path:
    return root / "episodes" / f"{index:06d}"


def is_whole(folder: Path) -> bool:
    """Whether the folder holds a complete and undamaged episode."""
    try:
        with reading("", folder.name):
            _check_video(folder, read_header(folder))
    except EpisodeError:
        return False
    return True


def _check_video(folder: Path, header: EpisodeHeader) -> None:
    if zlib.crc32((folder / _VIDEO).read_bytes()) != header.video_crc32:
        raise ValueError(f"{_VIDEO} is truncated or damaged (its checksum differs)")


def write_episode(
    folder: Path,
    header: EpisodeHeader,
    frames: Iterable[np.ndarray],  # T of [H, W, 3] uint8
    arrays: dict[str, np.ndarray],  # of T or T-1 rows, as above
) -> None:
    """Write an episode under a temporary name and rename it: it appears complete or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(folder)
    temporary.mkdir()
    num_frames = write_video(temporary / _VIDEO, frames, header.fps)
    assert num_frames == header.length, (num_frames, header.length)
    header = dataclasses.replace(header, video_crc32=zlib.crc32((temporary / _VIDEO).read_bytes()))
    arrays = {name: np.ascontiguousarray(rows, np.float32) for name, rows in arrays.items()}
    # one entry, because safetensors orders several at random, and equal episodes should give equal bytes
    save_file(arrays, temporary / _ARRAYS, metadata={_HEADER: json.dumps(vars(header))})
    publish(temporary, folder)
