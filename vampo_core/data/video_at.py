"""Frames of a video by their time stamps: sought, not decoded from the start; the last videos stay open."""

import math
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from torch import Tensor

from vampo_core.data.video import Display, open_container, video_stream

_SEEK_SECONDS = 1.0
"""Gap between wanted frames that is jumped over instead of decoded."""
_SAME_TIME = 1e-4
"""Difference of time stamps, in seconds, that comes from rounding only."""
_NUM_OPEN = 8


def read_frames_at(path: Path, times: Sequence[float], *, tolerance: float) -> Tensor:  # [N, H, W, 3] uint8
    """Decode the frames of a video that are shown at given times, in this order; nothing before them is decoded.

    Args:
        path: path of the video.
        times: times in seconds.
        tolerance: largest distance of a frame's time stamp from its time, in seconds.

    Raises:
        ValueError: the file has no video stream, or no frame near one of the times.
        OSError, av.error.FFmpegError: the file cannot be opened or decoded.
    """
    state = path.stat()
    key = (os.getpid(), path.absolute(), state.st_ino, state.st_mtime_ns, state.st_size)
    video = _open_videos.take(key, path)
    images = video.frames_at(times, tolerance)
    _open_videos.keep(key, video)
    missing = [time for time in times if time not in images]
    if missing:
        raise ValueError(f"{path.name} has no frame at {missing[0]:.3f} s")
    return torch.from_numpy(np.stack([images[time] for time in times]))


class _OpenVideo:
    """A video whose decoder is ready."""

    def __init__(self, path: Path) -> None:
        self._container = open_container(path)
        self._stream = video_stream(self._container, path)
        self._base = float(self._stream.time_base)
        self._converter = VideoReformatter()
        self._display: Display | None = None

    def frames_at(self, times: Sequence[float], tolerance: float) -> dict[float, np.ndarray]:  # [H, W, 3] uint8
        """The nearest frames within the tolerance, by time."""
        images: dict[float, np.ndarray] = {}
        distance: dict[float, float] = {}
        waiting = sorted(set(times))
        while waiting:
            # the frames on both sides of a time come after the last key frame up to it
            start = max(0, int((waiting[0] + _SAME_TIME) / self._base))
            self._container.seek(start, stream=self._stream, backward=True)
            target, is_at_end = waiting[0], True
            for frame in self._container.decode(self._stream):
                assert frame.pts is not None
                now = frame.pts * self._base
                for time in [t for t in waiting if abs(t - now) <= min(tolerance, distance.get(t, math.inf))]:
                    self._display = self._display or Display(frame, self._stream.sample_aspect_ratio)
                    images[time], distance[time] = self._display.show(frame, self._converter), abs(time - now)
                waiting = [t for t in waiting if now < t - _SAME_TIME]  # later frames are farther away
                # jumped over only once the place that was sought is behind: key frames may lie far apart
                if not waiting or (waiting[0] > target and waiting[0] - now > _SEEK_SECONDS):
                    is_at_end = False
                    break
            if is_at_end:
                break
        return images

    def close(self) -> None:
        self._container.close()


class _OpenVideos(threading.local):
    """The videos that this thread read last, by process and file: one that was forked opens its own."""

    def __init__(self) -> None:
        self._videos: OrderedDict[tuple[object, ...], _OpenVideo] = OrderedDict()

    def take(self, key: tuple[object, ...], path: Path) -> _OpenVideo:
        """A video that the caller gives back with :meth:`keep`, unless reading it failed."""
        return self._videos.pop(key, None) or _OpenVideo(path)

    def keep(self, key: tuple[object, ...], video: _OpenVideo) -> None:
        self._videos[key] = video
        while len(self._videos) > _NUM_OPEN:
            self._videos.popitem(last=False)[1].close()


_open_videos = _OpenVideos()
