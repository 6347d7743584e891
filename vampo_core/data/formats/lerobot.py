"""LeRobotDataset v3.0, the format in which robot data is published.

::

    <root>/meta/info.json                    codebase_version, fps, features, splits, path patterns
    <root>/meta/tasks.parquet                task_index, and the task's text as index
    <root>/meta/episodes/chunk-000/file-000.parquet       length, files, time stamps in the videos, for each episode
    <root>/data/chunk-000/file-000.parquet                a row for each frame, of many episodes
    <root>/videos/<camera>/chunk-000/file-000.mp4         many episodes, one after the other

Cameras are features of dtype ``video`` or, with encoded pictures in the rows, ``image``. An episode in which the task
changes is several episodes here, as each of ours has one instruction; they stay on the same side of a split.
"""

import dataclasses
import functools
import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vampo_core.data.encoded_episode import EncodedEpisode
from vampo_core.data.episode import check_indices, open_each, per_frame, reading
from vampo_core.data.formats.lerobot_meta import (
    ACTION,
    PUSHED,
    STATE,
    cameras_of,
    choose_camera,
    episode_rows,
    held_out_by,
    parquet,
    read_info,
    read_tasks,
)
from vampo_core.data.hub import dataset_folder
from vampo_core.data.latent_files import latents_path
from vampo_core.data.video_at import read_frames_at


@dataclass(frozen=True, kw_only=True)
class LeRobotEpisode(EncodedEpisode):
    """Frames ``begin`` to ``begin + length`` of an episode of the format; see :class:`vampo_core.data.Episode`."""

    root: Path
    number: int  # of the format's episode
    begin: int
    data_file: str
    camera: str
    video_file: str | None  # None for pictures in the rows
    video_begin: float  # time stamp of the format's episode in the video
    fps: float
    columns: tuple[str | None, str | None, str | None]  # of action, state, is_pushed; None where the data has none

    @property
    def video_id(self) -> str:
        return f"{self.number:06d}"

    @property
    def fingerprint(self) -> dict[str, object]:
        with reading(self.dataset, self.episode_id):
            file = self.root / (self.data_file if self.video_file is None else self.video_file)
            place = {"episode": self.number, "begin": self.video_begin, "from": self.begin}
            return {"bytes": file.stat().st_size, "camera": self.camera, **place}

    @property
    def actions(self) -> Tensor:  # [T, A] float32
        return self._rows(self.columns[0])

    @property
    def states(self) -> Tensor:  # [T, S] float32
        return self._rows(self.columns[1])

    @property
    def is_pushed(self) -> Tensor:  # [T] bool
        rows = self._rows(self.columns[2])
        return rows[:, 0] > 0 if rows.shape[1] else torch.zeros(self.length, dtype=torch.bool)

    def frames(self, indices: Sequence[int]) -> Tensor:  # [N, H, W, 3] uint8
        indices = check_indices(indices, self.length)
        with reading(self.dataset, self.episode_id):
            if self.video_file is not None:
                times = [self.video_begin + (self.begin + i) / self.fps for i in indices]
                return read_frames_at(self.root / self.video_file, times, tolerance=0.5 / self.fps)
            pictures = _pictures(self.root / self.data_file, self.camera, self.number)
            return torch.stack([_picture(pictures[self.begin + i], self.root) for i in indices])

    def _rows(self, column: str | None) -> Tensor:
        if column is None:
            return torch.zeros(self.length, 0)
        with reading(self.dataset, self.episode_id):
            values = _column(self.root / self.data_file, column, self.number)[self.begin : self.begin + self.length]
            return per_frame(torch.from_numpy(values.reshape(len(values), -1).astype(np.float32)), self.length, column)


class LeRobotDataset:
    """Reader of LeRobotDataset v3.0.

    Args:
        root: the dataset's folder, or its ``repo_id`` on the Hugging Face hub.
        latents: name of an encoding of ours; None for frames only.
        cache: folder where latents are kept if not in the dataset's own, as given to :func:`vampo_core.data.encode`.
        num_episodes: number of episodes to open, from the first one; None for all.
        camera: camera to read, by its feature's name or the end of it, such as ``"front"``; None for the only one.
        state: name of the state's feature; without it states have no width.
        action: name of the action's feature.
        name: name of the dataset, part of the clips' identity; by default the folder's name.
        strict: whether an episode that cannot be read is an error instead of being skipped with a warning.

    Raises:
        FileNotFoundError: there is no such dataset at ``root``.
        ImportError: pyarrow is not installed.
        ValueError: it has another version, no camera, or several and ``camera`` names none of them; or there is no
            feature of the name given for state or action.
        EpisodeError: no episode can be read, or one cannot and ``strict`` is set.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        latents: str | None = None,
        cache: str | Path | None = None,
        num_episodes: int | None = None,
        camera: str | None = None,
        state: str = STATE,
        action: str = ACTION,
        name: str | None = None,
        strict: bool = False,
    ) -> None:
        self.root = dataset_folder(root, camera=camera)
        self.name = name or (self.root.resolve() if Path(root).exists() else Path(root)).name
        self.info = read_info(self.root)
        self.fps = float(self.info["fps"])
        features = self.info["features"]
        self.camera = choose_camera(features, camera)
        # latents are kept by it: those of several cameras must not replace each other
        self._of_camera = f"/{self.camera.removeprefix('observation.images.')}" if len(cameras_of(features)) > 1 else ""
        numbers = sorted(set(features) - set(cameras_of(features)))
        for argument, given, default in (("state", state, STATE), ("action", action, ACTION)):
            if given not in numbers and (given != default or given in features):
                raise ValueError(f"{argument} is {given!r}, expected one of the features {', '.join(numbers)}")
        self._columns = tuple(column if column in features else None for column in (action, state, PUSHED))
        self._held_out = held_out_by(self.info.get("splits") or {})
        self._latents, self._cache = latents, cache
        rows = episode_rows(self.root)
        numbers = sorted(rows)[:num_episodes]
        self._tasks = read_tasks(self.root)
        opened, self.skipped = open_each(
            self.name, [f"{n:06d}" for n in numbers], lambda text: self._open(rows[int(text)]), strict
        )
        self.episodes = [episode for group in opened for episode in group]

    def __len__(self) -> int:
        return len(self.episodes)

    def _open(self, row: dict[str, Any]) -> list[LeRobotEpisode]:
        number, length, info = row["episode_index"], row["length"], self.info
        data_file = info["data_path"].format(chunk_index=row["data/chunk_index"], file_index=row["data/file_index"])
        if not self._inside(data_file).is_file():
            raise ValueError(f"{data_file} is missing")
        tasks = _column(self.root / data_file, "task_index", number)
        if len(tasks) != length:
            raise ValueError(f"{data_file} holds {len(tasks)} rows of it, expected {length}")
        video_file, begin = None, 0.0
        if info["features"][self.camera]["dtype"] == "video":
            places = {key: row[f"videos/{self.camera}/{key}"] for key in ("chunk_index", "file_index")}
            video_file = info["video_path"].format(video_key=self.camera, **places)
            begin = row[f"videos/{self.camera}/from_timestamp"]
            if not self._inside(video_file).is_file():
                raise ValueError(f"{video_file} is missing")
        changes = [0, *(t for t in range(1, length) if tasks[t] != tasks[t - 1]), length]
        parts = []
        for first, end in itertools.pairwise(changes):
            part = LeRobotEpisode(
                dataset=self.name,
                episode_id=f"{number:06d}" + (f"-{first}" if len(changes) > 2 else "") + self._of_camera,
                root=self.root,
                number=number,
                begin=first,
                length=end - first,
                instruction=self._tasks[int(tasks[first])],
                data_file=data_file,
                camera=self.camera,
                video_file=video_file,
                video_begin=begin,
                fps=self.fps,
                columns=self._columns,  # type: ignore[arg-type]
                is_held_out=self._held_out(number),
            )
            if self._latents is not None:
                file = latents_path(self.root, self._latents, part.episode_id, self._cache)
                if not file.is_file():
                    raise ValueError(f"it has no latents {self._latents!r}; `vampo encode` makes them")
                part = dataclasses.replace(part, latents_file=file)
            parts.append(part)
        return parts

    def _inside(self, file: str) -> Path:
        path = PurePosixPath(file)
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"path {file!r} leads out of the dataset, expected one below its root")
        return self.root / path


def _column(file: Path, name: str, number: int) -> np.ndarray:  # [T] or [T, D]
    """The values of a column in the rows of an episode, in the order of its frames."""
    state = file.stat()
    key = (file, state.st_mtime_ns, state.st_size)
    return _values(*key, name)[_rows_of(*key).get(number, np.zeros(0, np.int64))]


def _pictures(file: Path, name: str, number: int) -> list[Any]:
    """The pictures of an episode; those of a whole file are too large to keep."""
    table = parquet().read_table(file, columns=[name, "frame_index"], filters=[("episode_index", "==", number)])
    order = np.argsort(table.column("frame_index").to_numpy(), kind="stable")
    values = table.column(name).to_pylist()
    return [values[i] for i in order]


@functools.lru_cache(maxsize=64)
def _rows_of(file: Path, mtime: int, size: int) -> dict[int, np.ndarray]:
    """The rows of each episode in a file, in the order of its frames."""
    table = parquet().read_table(file, columns=["episode_index", "frame_index"])
    episodes, frames = (table.column(name).to_numpy() for name in ("episode_index", "frame_index"))
    order = np.lexsort((frames, episodes))
    numbers, firsts = np.unique(episodes[order], return_index=True)
    return dict(zip(numbers.tolist(), np.split(order, firsts[1:]), strict=True))


@functools.lru_cache(maxsize=256)
def _values(file: Path, mtime: int, size: int, name: str) -> np.ndarray:  # [N] or [N, D]
    """A whole column of a file, as numbers: clips come from everywhere in it, and a filtered read takes as long."""
    values = column = parquet().read_table(file, columns=[name]).column(name).combine_chunks()
    while True:
        values = getattr(values, "storage", values)  # of a type that another library has registered
        if values.null_count:
            raise ValueError(f"{file.name} has rows without a value of {name!r}")
        if not hasattr(values.type, "value_type"):
            break
        if len(set(values.value_lengths().to_pylist())) > 1:
            raise ValueError(f"{file.name} has rows of different lengths in {name!r}")
        values = values.flatten()
    numbers = values.to_numpy(zero_copy_only=False)
    return numbers if values is column else numbers.reshape(len(column), len(numbers) // max(len(column), 1))


def _picture(value: dict[str, Any], root: Path) -> Tensor:  # [H, W, 3] uint8
    """A picture of an ``image`` feature: encoded bytes, or the path of a file."""
    source: Any = io.BytesIO(value["bytes"]) if value.get("bytes") else root / str(value["path"])
    with Image.open(source) as image:
        return torch.from_numpy(np.array(image.convert("RGB")))
