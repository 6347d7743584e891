"""What ``meta/`` of a LeRobotDataset v3.0 says: features, cameras, splits, episodes, tasks."""

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

INFO = "meta/info.json"
STATE, ACTION = "observation.state", "action"
"""Names that the format's own library gives to state and action."""
SUCCESS, PUSHED = "next.success", "is_pushed"
"""Features of bools: whether the task was solved by the next frame, and see ``Episode.is_pushed``."""
HELD_OUT = ("val", "valid", "validation", "test", "eval")
"""Names of splits whose episodes are held out."""
_CONVERTER = "lerobot's convert_dataset_v21_to_v30"


def read_info(root: Path) -> dict[str, Any]:
    """Read ``meta/info.json`` and check its version.

    Raises:
        FileNotFoundError: it is missing.
        ValueError: it is no JSON, or of another version.
    """
    path = root / INFO
    if not path.is_file():
        raise FileNotFoundError(f"root is {str(root)!r}, expected a folder with a LeRobotDataset ({INFO})")
    with _reading_meta(path):
        info = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(info, dict):
            raise ValueError(f"it holds a {type(info).__name__}, expected an object")
    version = str(info.get("codebase_version"))
    if not version.startswith("v3."):
        raise ValueError(f"{path} says codebase_version {version!r}, expected 'v3.0'; {_CONVERTER} converts v2.1")
    with _reading_meta(path):
        fps = info.get("fps")
        if isinstance(fps, bool) or not isinstance(fps, (int, float)) or not fps > 0:
            raise ValueError(f"fps is {fps!r}, expected a number above 0")
        features = info.get("features")
        if not isinstance(features, dict) or not all(isinstance(f, dict) and "dtype" in f for f in features.values()):
            raise ValueError("features is not an object of features with a dtype each")
        splits = info.get("splits") or {}
        if not isinstance(splits, dict) or not all(re.fullmatch(r"\d+:\d+", str(part)) for part in splits.values()):
            raise ValueError(f"splits is {splits!r}, expected ranges of episodes such as {{'train': '0:50'}}")
    return info


@contextlib.contextmanager
def _reading_meta(path: Path) -> Iterator[None]:
    """Name a file of ``meta/`` that is damaged.

    Parsers raise all kinds of errors, and miss what they look for.
    """
    try:
        yield
    except ImportError:
        raise
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON ({error})") from error
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        reason = f"no entry {reason}" if isinstance(error, KeyError) else reason
        raise ValueError(f"{path} cannot be read: {reason}") from error


def cameras_of(features: dict[str, Any]) -> list[str]:
    """Names of the features that are cameras."""
    return [name for name, feature in features.items() if feature["dtype"] in ("video", "image")]


def choose_camera(features: dict[str, Any], camera: str | None) -> str:
    """The feature of the camera that a name stands for.

    Raises:
        ValueError: there is none, or the name fits none or several.
    """
    cameras = cameras_of(features)
    found = [name for name in cameras if camera in (None, name) or name.endswith(f".{camera}")]
    if len(found) == 1:
        return found[0]
    if not cameras:
        raise ValueError("the dataset has no camera, expected a feature of dtype video or image")
    raise ValueError(f"camera is {camera!r}, expected one of {', '.join(cameras)}")


def held_out_by(splits: dict[str, str]) -> Any:
    """A function from an episode's number to whether the authors hold it out; None where they do not say."""
    ranges = [tuple(map(int, splits[name].split(":"))) for name in splits if name.lower() in HELD_OUT]

    def is_held_out(number: int) -> bool | None:
        return any(first <= number < end for first, end in ranges) if ranges else None

    return is_held_out


def episode_rows(root: Path) -> dict[int, dict[str, Any]]:
    """What ``meta/episodes`` says of each episode, by number; statistics are left out."""
    rows: dict[int, dict[str, Any]] = {}
    for file in sorted((root / "meta" / "episodes").rglob("*.parquet")):
        with _reading_meta(file):
            names = [name for name in parquet().read_schema(file).names if not name.startswith(("stats/", "meta/"))]
            for row in parquet().read_table(file, columns=names).to_pylist():
                rows[row["episode_index"]] = row
    if not rows:
        raise ValueError(f"{root / 'meta' / 'episodes'} holds no episodes, expected *.parquet")
    return rows


def read_tasks(root: Path) -> dict[int, str]:
    """Texts of tasks by number; the text is the table's index, whatever its name."""
    path = root / "meta" / "tasks.parquet"
    with _reading_meta(path):
        table = parquet().read_table(path).to_pydict()
        numbers = table.pop("task_index")
        if not table:
            raise ValueError("it has no texts")
        texts = table.get("task") or next(iter(table.values()))
        return dict(zip(numbers, texts, strict=True))


def parquet() -> Any:
    """The module ``pyarrow.parquet``.

    Raises:
        ImportError: pyarrow is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("LeRobot datasets need pyarrow: pip install vampo_core[lerobot]") from error
    return pyarrow.parquet
