"""Episodes of any format → LeRobotDataset v3.0, which :mod:`vampo_core.data.formats.lerobot` and lerobot read."""

import errno
import itertools
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from vampo_core.data.episode import Episode
from vampo_core.data.formats.lerobot_meta import ACTION, INFO, PUSHED, STATE, SUCCESS, parquet
from vampo_core.data.formats.lerobot_stats import ImageStats, json_lists, row_stats
from vampo_core.data.video import Encoding, write_video
from vampo_core.files import publish, remove_leftovers, temporary_beside
from vampo_core.progress import progress as progress_bar

CAMERA = "observation.images.front"
"""Name of the camera's feature where the source has none."""
ENCODINGS = {
    # key frames close together, because clips are read from the middle of long files
    "lossless": Encoding("libx264rgb", "rgb24", (("crf", "0"), ("g", "8"))),
    "av1": Encoding("libsvtav1", "yuv420p", (("crf", "30"), ("g", "2"), ("svtav1-params", "lp=1"))),
}
"""Ways to compress videos: without loss, or as lerobot does it by default, which browsers show."""
_DATA, _VIDEO = "data/chunk-{:03d}/file-{:03d}.parquet", "videos/{}/chunk-{:03d}/file-{:03d}.mp4"
_CHUNK, _DATA_MB, _VIDEO_MB = 1000, 100, 200  # files a folder, sizes at which a new file begins
_FRAMES_AT_ONCE = 256


def write_lerobot(
    episodes: Sequence[Episode],
    root: str | Path,
    *,
    fps: float,
    successes: Sequence[bool] | None = None,
    camera: str = CAMERA,
    encoding: str = "lossless",
    progress: bool = True,
) -> Path:
    """Write episodes as a LeRobotDataset v3.0, which appears complete or not at all.

    Rows hold ``observation.state``, ``action`` and, where they are known, ``next.success`` at the last frame and
    ``is_pushed``. Held-out episodes of a dataset that has its own split come last, as the split ``val``.

    Args:
        episodes: episodes of equal frame size, state and action width.
        root: folder to make.
        fps: frames per second.
        successes: whether each episode was a success; None where it is not known.
        camera: name of the camera's feature.
        encoding: how videos are compressed, one of :data:`ENCODINGS`.
        progress: whether to show a progress bar.

    Returns:
        ``root``.

    Raises:
        ValueError: an argument is wrong, or episodes do not fit together.
        FileExistsError: there is something at ``root``.
        ImportError: pyarrow is not installed.
        EpisodeError: an episode cannot be read.
    """
    root = Path(root)
    check_target(root, encoding)
    if not episodes:
        raise ValueError("episodes is empty, expected at least one")
    if successes is not None and len(successes) != len(episodes):
        raise ValueError(f"successes has {len(successes)} entries, expected one for each of {len(episodes)} episodes")
    os.environ.setdefault("SVT_LOG", "1")  # the AV1 encoder: errors only
    remove_leftovers(root.parent, of={root.name})
    temporary = temporary_beside(root)
    temporary.mkdir()
    order = sorted(range(len(episodes)), key=lambda i: bool(episodes[i].is_held_out))
    try:
        _Writer(temporary, fps, camera, ENCODINGS[encoding], progress).write(
            [
                _Entry(number, episodes[i], None if successes is None else bool(successes[i]))
                for number, i in enumerate(order)
            ]
        )
        if root.exists():
            root.rmdir()  # an empty folder
        publish(temporary, root)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return root


def check_target(root: Path, encoding: str) -> None:
    """Refuse a place that cannot be written to, before hours go into what is to be written.

    Raises:
        ValueError: there is no such encoding.
        FileExistsError: there is something at ``root``.
        PermissionError: the folder that it is to lie in cannot be written to.
        ImportError: pyarrow is not installed.
    """
    if encoding not in ENCODINGS:
        raise ValueError(f"encoding is {encoding!r}, expected one of {', '.join(ENCODINGS)}")
    if os.path.lexists(root) and (root.is_symlink() or not root.is_dir() or any(root.iterdir())):
        raise FileExistsError(f"output is {str(root)!r}, expected a new folder: nothing there is replaced")
    parquet()
    try:
        root.absolute().parent.mkdir(parents=True, exist_ok=True)
        if not os.access(root.absolute().parent, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        message = f"output is {str(root)!r}, expected a folder that can be made there ({error.strerror})"
        raise PermissionError(message) from error


@dataclass(frozen=True)
class _Entry:
    """An episode and its number in the new dataset."""

    number: int
    episode: Episode
    success: bool | None


class _Writer:
    """The files of one dataset."""

    def __init__(self, root: Path, fps: float, camera: str, encoding: Encoding, progress: bool) -> None:
        self._root, self._fps, self._camera, self._encoding = root, fps, camera, encoding
        self._progress = progress
        self._tasks: dict[str, int] = {}
        self._images = ImageStats()
        self._columns: dict[str, list[np.ndarray]] = {}
        self._episodes: list[dict[str, Any]] = []
        self._size: tuple[int, ...] | None = None
        self._widths: dict[str, int] = {}
        self._num_frames = 0

    def write(self, entries: Sequence[_Entry]) -> None:
        total = sum(entry.episode.length for entry in entries)
        has_pushes = any(bool(entry.episode.is_pushed.any()) for entry in entries)
        remaining = list(reversed(entries))
        with progress_bar(desc="export", total=total, unit="frame", disable=not self._progress, delay=0.5) as bar:
            for file in itertools.count():
                self._write_file(divmod(file, _CHUNK), remaining, has_pushes, bar)
                if not remaining:
                    break
        self._write_meta(entries)

    def _write_file(self, place: tuple[int, int], remaining: list[_Entry], has_pushes: bool, bar: Any) -> None:
        """One video and one table with as many of the remaining episodes as fit."""
        video, table = (
            self._root / _VIDEO.format(self._camera, *place),
            self._root / _DATA.format(*place),
        )
        video.parent.mkdir(parents=True, exist_ok=True)
        table.parent.mkdir(parents=True, exist_ok=True)
        columns: dict[str, list[np.ndarray]] = {}
        num_frames = 0

        def frames() -> Iterator[np.ndarray]:
            nonlocal num_frames
            while remaining and (num_frames == 0 or not self._is_full(video, columns)):
                entry = remaining.pop()
                rows = self._rows(entry, has_pushes)
                for name, values in rows.items():
                    columns.setdefault(name, []).append(values)
                images = ImageStats()
                for pictures in _pictures(entry.episode):
                    self._check_size(entry.episode, pictures)
                    images.add(pictures)
                    bar.update(len(pictures))
                    yield from pictures.numpy()
                self._note(entry, rows, images, place, num_frames)
                num_frames += entry.episode.length
                self._num_frames += entry.episode.length

        write_video(video, frames(), self._fps, self._encoding)
        whole = {name: np.concatenate(parts) for name, parts in columns.items()}
        _write_table(table, whole)
        for name, values in whole.items():
            self._columns.setdefault(name, []).append(values)

    def _is_full(self, video: Path, columns: Mapping[str, Sequence[np.ndarray]]) -> bool:
        size = sum(part.nbytes for parts in columns.values() for part in parts)
        has_begun = video.is_file()  # an encoder may hold the first frames back
        return (has_begun and video.stat().st_size > _VIDEO_MB * 2**20) or size > _DATA_MB * 2**20

    def _rows(self, entry: _Entry, has_pushes: bool) -> dict[str, np.ndarray]:
        """The columns of an episode; those of one number have one axis."""
        episode, length = entry.episode, entry.episode.length
        rows: dict[str, np.ndarray] = {}
        for name, values in ((STATE, episode.states), (ACTION, episode.actions)):
            width = values.shape[1]
            if width != self._widths.setdefault(name, width):
                raise ValueError(
                    f"episode {episode.episode_id!r} has {width} numbers in {name}, expected {self._widths[name]} as "
                    "in the others"
                )
            if not values.isfinite().all():
                raise ValueError(f"episode {episode.episode_id!r} has numbers in {name} that are not finite")
            if width:
                rows[name] = values.numpy()[:, 0] if width == 1 else values.numpy()
        if entry.success is not None:
            rows[SUCCESS] = np.arange(length) == (length - 1 if entry.success else length)
        if has_pushes:
            rows[PUSHED] = episode.is_pushed.numpy()
        rows["timestamp"] = np.arange(length, dtype=np.float32) / np.float32(self._fps)
        rows["frame_index"] = np.arange(length)
        rows["episode_index"] = np.full(length, entry.number)
        rows["index"] = self._num_frames + np.arange(length)
        rows["task_index"] = np.full(length, self._tasks.setdefault(episode.instruction, len(self._tasks)))
        return rows

    def _check_size(self, episode: Episode, pictures: Tensor) -> None:
        size = tuple(pictures.shape[1:3])
        self._size = self._size or size
        if size != self._size:
            raise ValueError(
                f"episode {episode.episode_id!r} has frames of {size[0]}x{size[1]}, expected "
                f"{self._size[0]}x{self._size[1]} as in the others"
            )
        if self._encoding.pixel_format == "yuv420p" and any(side % 2 for side in size):
            raise ValueError(f"frames are {size[0]}x{size[1]}, expected an even height and width for this encoding")

    def _note(
        self, entry: _Entry, rows: Mapping[str, np.ndarray], images: ImageStats, place: tuple[int, int], frame: int
    ) -> None:
        length, first = entry.episode.length, int(rows["index"][0])
        self._images.merge(images)
        stats = {self._camera: images.result(), **{name: row_stats(values) for name, values in rows.items()}}
        self._episodes.append(
            {
                "episode_index": entry.number,
                "tasks": [entry.episode.instruction],
                "length": length,
                "data/chunk_index": place[0],
                "data/file_index": place[1],
                "dataset_from_index": first,
                "dataset_to_index": first + length,
                f"videos/{self._camera}/chunk_index": place[0],
                f"videos/{self._camera}/file_index": place[1],
                f"videos/{self._camera}/from_timestamp": frame / self._fps,
                f"videos/{self._camera}/to_timestamp": (frame + length) / self._fps,
                **{f"stats/{name}/{key}": value for name, s in stats.items() for key, value in json_lists(s).items()},
                "meta/episodes/chunk_index": 0,
                "meta/episodes/file_index": 0,
            }
        )

    def _write_meta(self, entries: Sequence[_Entry]) -> None:
        import pyarrow

        meta = self._root / "meta"
        (meta / "episodes" / "chunk-000").mkdir(parents=True)
        parquet().write_table(
            pyarrow.Table.from_pylist(self._episodes), meta / "episodes" / "chunk-000" / "file-000.parquet"
        )
        tasks = pyarrow.table({"task_index": list(self._tasks.values()), "task": list(self._tasks)})
        parquet().write_table(_indexed_by(tasks, "task"), meta / "tasks.parquet")
        columns = {name: np.concatenate(parts) for name, parts in self._columns.items()}
        stats = {self._camera: self._images.result(), **{name: row_stats(values) for name, values in columns.items()}}
        (meta / "stats.json").write_text(json.dumps({name: json_lists(s) for name, s in stats.items()}, indent=4))
        num_trained = sum(not entry.episode.is_held_out for entry in entries)
        splits = {"train": f"0:{num_trained}", "val": f"{num_trained}:{len(entries)}"}
        info = {
            "codebase_version": "v3.0",
            "robot_type": None,
            "total_episodes": len(entries),
            "total_frames": len(columns["index"]),
            "total_tasks": len(self._tasks),
            "chunks_size": _CHUNK,
            "data_files_size_in_mb": _DATA_MB,
            "video_files_size_in_mb": _VIDEO_MB,
            "fps": int(self._fps) if self._fps == int(self._fps) else self._fps,
            "splits": {name: part for name, part in splits.items() if part.split(":")[0] != part.split(":")[1]},
            "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
            "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
            "features": self._features(columns),
        }
        (self._root / INFO).write_text(json.dumps(info, indent=4, ensure_ascii=False), encoding="utf-8")

    def _features(self, columns: Mapping[str, np.ndarray]) -> dict[str, Any]:
        assert self._size is not None
        height, width = self._size
        codec = {"libx264rgb": "h264", "libsvtav1": "av1"}[self._encoding.codec]
        camera = {
            "dtype": "video",
            "shape": [height, width, 3],
            "names": ["height", "width", "channels"],
            "info": {
                "video.height": height,
                "video.width": width,
                "video.codec": codec,
                "video.pix_fmt": {"rgb24": "gbrp"}.get(self._encoding.pixel_format, self._encoding.pixel_format),
                "video.is_depth_map": False,
                "video.fps": self._fps,
                "video.channels": 3,
                "has_audio": False,
            },
        }
        rows = {
            name: {"dtype": str(values.dtype), "shape": list(values.shape[1:] or (1,)), "names": None}
            for name, values in columns.items()
        }
        return {self._camera: camera, **rows}


def _pictures(episode: Episode) -> Iterator[Tensor]:  # of [N, H, W, 3] uint8
    for start in range(0, episode.length, _FRAMES_AT_ONCE):
        yield episode.frames(range(start, min(start + _FRAMES_AT_ONCE, episode.length)))


def _write_table(path: Path, columns: Mapping[str, np.ndarray]) -> None:
    import pyarrow

    arrays = {}
    for name, values in columns.items():
        flat = pyarrow.array(values.reshape(-1))
        arrays[name] = flat if values.ndim == 1 else pyarrow.FixedSizeListArray.from_arrays(flat, values.shape[1])
    parquet().write_table(pyarrow.table(arrays), path)


def _indexed_by(table: Any, column: str) -> Any:
    """The table with a column that pandas reads as its index, as the format has it for tasks."""
    kinds = {"int64": ("int64", "int64"), "string": ("unicode", "object")}
    columns = [
        {
            "name": f.name,
            "field_name": f.name,
            "pandas_type": kinds[str(f.type)][0],
            "numpy_type": kinds[str(f.type)][1],
        }
        for f in table.schema
    ]
    metadata = {"index_columns": [column], "column_indexes": [], "columns": columns, "pandas_version": "2.0.0"}
    return table.replace_schema_metadata({"pandas": json.dumps(metadata)})
