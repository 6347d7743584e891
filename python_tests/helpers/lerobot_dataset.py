"""Small datasets in the layout of LeRobotDataset v3.0, written with pyarrow and PyAV only."""

import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from vampo_core.data.video import write_video

FPS = 10
SIZE = 32


@dataclass
class Written:
    """One episode."""

    frames: np.ndarray  # [T, SIZE, SIZE, 3] uint8
    actions: np.ndarray  # [T, ...]
    states: np.ndarray  # [T, ...]
    tasks: list[str]  # of each frame


def make_episode(number: int, length: int, task: str | list[str] = "push the block") -> Written:
    rng = np.random.default_rng(number)
    base = rng.integers(0, 200, (SIZE, SIZE, 3), dtype=np.uint8)
    frames = np.stack([np.roll(base, 3 * t, axis=1) for t in range(length)])
    actions = rng.normal(size=(length, 3)).astype(np.float32)
    states = rng.normal(size=(length, 2)).astype(np.float32)
    tasks = [task] * length if isinstance(task, str) else task
    return Written(frames, actions, states, tasks)


def write(
    root: Path, episodes: list[Written], *, cameras: tuple[str, ...] = ("front",), images: bool = False,
    per_file: int = 100, features: dict | None = None, info: dict | None = None, state: bool = True,
) -> Path:  # fmt: skip
    """Write a dataset; every camera shows the same, the second one upside down."""
    texts = sorted({task for episode in episodes for task in episode.tasks})
    (root / "meta").mkdir(parents=True)
    pq.write_table(
        pa.table({"task_index": list(range(len(texts))), "__index_level_0__": texts}), root / "meta/tasks.parquet"
    )
    rows, index = [], 0
    for file, start in enumerate(range(0, len(episodes), per_file)):
        group = episodes[start : start + per_file]
        table: dict[str, list] = {
            name: [] for name in ("action", "frame_index", "episode_index", "index", "task_index")
        }
        if state:
            table["observation.state"] = []
        pictures: dict[str, list] = {camera: [] for camera in cameras}
        time = 0.0
        for offset, episode in enumerate(group):
            number, length = start + offset, len(episode.frames)
            row = {
                "episode_index": number, "length": length, "tasks": sorted(set(episode.tasks)),
                "data/chunk_index": 0, "data/file_index": file,
                "dataset_from_index": index, "dataset_to_index": index + length, "stats/action/min": [0.0],
            }  # fmt: skip
            for number_of_camera, camera in enumerate(cameras):
                shown = episode.frames[:, ::-1] if number_of_camera else episode.frames
                pictures[camera] += list(shown)
                if not images:
                    key = f"videos/observation.images.{camera}"
                    row |= {f"{key}/chunk_index": 0, f"{key}/file_index": file}
                    row |= {f"{key}/from_timestamp": time, f"{key}/to_timestamp": time + length / FPS}
            table["action"] += episode.actions.tolist()
            if state:
                table["observation.state"] += episode.states.tolist()
            table["frame_index"] += list(range(length))
            table["episode_index"] += [number] * length
            table["index"] += list(range(index, index + length))
            table["task_index"] += [texts.index(task) for task in episode.tasks]
            rows.append(row)
            index, time = index + length, time + length / FPS
        for camera in cameras:
            if images:
                table[f"observation.images.{camera}"] = [{"bytes": _png(p), "path": None} for p in pictures[camera]]
            else:
                path = root / f"videos/observation.images.{camera}/chunk-000/file-{file:03d}.mp4"
                path.parent.mkdir(parents=True, exist_ok=True)
                write_video(path, pictures[camera], FPS)
        path = root / f"data/chunk-000/file-{file:03d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(table), path)
    (root / "meta/episodes/chunk-000").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), root / "meta/episodes/chunk-000/file-000.parquet")
    kind = "image" if images else "video"
    described = {f"observation.images.{camera}": {"dtype": kind, "shape": [SIZE, SIZE, 3]} for camera in cameras}
    described |= {"action": {"dtype": "float32", "shape": [3]}}
    described |= {"observation.state": {"dtype": "float32", "shape": [2]}} if state else {}
    written = {
        "codebase_version": "v3.0", "fps": FPS, "splits": {"train": f"0:{len(episodes)}"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "features": described | (features or {}),
    }  # fmt: skip
    (root / "meta/info.json").write_text(json.dumps(written | (info or {})))
    return root


def _png(frame: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(frame).save(file, format="PNG")
    return file.getvalue()
