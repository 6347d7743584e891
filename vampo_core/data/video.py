"""Video files: write, read chosen frames as a player shows them, count frames, resize."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from torch import Tensor
from torch.nn import functional

_ONE_THREAD: dict[str, Any] = {"threads": 1} if int(av.__version__.partition(".")[0]) >= 17 else {}
"""Option of a conversion: from PyAV 17 on it would start threads, which take ten times as long as a small frame."""
_ONE_FRAME_PER_PACKET = frozenset(("h264", "hevc", "av1", "libdav1d", "libaom-av1", "mjpeg"))
"""Decoders whose packets each hold one frame that is shown; packets for others may hold none, or several."""


@dataclass(frozen=True)
class Encoding:
    """How a video is compressed."""

    codec: str
    """FFmpeg's encoder."""
    pixel_format: str
    """FFmpeg's pixel format; "yuv420p" needs an even height and width."""
    options: tuple[tuple[str, str], ...]
    """Options of the encoder, such as ``crf``, where 0 is the best quality, and ``g``, frames between key frames."""
    movflags: str | None = None
    """Flags of the mp4 file."""


LOSSLESS = Encoding("libx264rgb", "rgb24", (("crf", "0"),))
"""H.264 in RGB without loss. Robot scenes are small and flat: this takes half as much space again as a high quality,
but decodes faster (no color conversion), and no later stage has to ask what compression did. Browsers do not show it.
"""
FOR_VIEWING = Encoding("libx264", "yuv420p", (("crf", "18"),), "faststart")
"""H.264 that browsers and players show."""


def write_video(
    path: Path,
    frames: Iterable[np.ndarray],  # each [H, W, 3] uint8
    fps: float,
    encoding: Encoding = LOSSLESS,
) -> int:
    """Write an mp4 file; the same frames give the same bytes.

    Args:
        path: path of the file.
        frames: frames of equal size.
        fps: frames per second.
        encoding: how it is compressed.

    Returns:
        Number of frames written.
    """
    num_frames = 0
    flags = {} if encoding.movflags is None else {"movflags": encoding.movflags}
    with open_container(path, "w", format="mp4", options=flags) as container:
        stream = None
        for frame in frames:
            if stream is None:
                rate = Fraction(fps).limit_denominator(1000)
                stream = container.add_stream(encoding.codec, rate=rate, options=dict(encoding.options))
                stream.height, stream.width = frame.shape[:2]
                stream.pix_fmt = encoding.pixel_format
                stream.codec_context.thread_count = 1
            image = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(stream.encode(image))
            num_frames += 1
        if stream is None:
            raise ValueError("frames is empty, expected at least one")
        container.mux(stream.encode())
    return num_frames


def read_frames(path: Path, indices: Sequence[int]) -> Tensor:  # [N, H, W, 3] uint8
    """Decode the frames ``indices`` of a video, in this order.

    Frames are counted and shown as by a player: cut, turned, mirrored and with square pixels, as the file's edit list,
    display matrix and pixel aspect ratio ask for.

    Raises:
        ValueError: the file has no video stream, or the video ends before the last of these frames.
        OSError, av.error.FFmpegError: the file cannot be opened or decoded.
    """
    wanted = set(indices)
    last = max(wanted)
    images: dict[int, np.ndarray] = {}
    converter = VideoReformatter()  # one for all frames, because each starts threads
    display = None
    with open_container(path) as container:
        stream = video_stream(container, path)
        i = -1
        for i, frame in enumerate(container.decode(stream)):
            if i in wanted:
                display = display or Display(frame, stream.sample_aspect_ratio)
                images[i] = display.show(frame, converter)
            if i == last:
                break
    if i < last:
        raise ValueError(f"{path.name} ends after {i + 1} frames, expected at least {last + 1}")
    return torch.from_numpy(np.stack([images[i] for i in indices]))


def frame_rate(path: Path) -> float:
    """Average number of frames per second that the file states.

    Raises:
        ValueError: the file has no video stream, or does not state it.
        OSError, av.error.FFmpegError: the file cannot be opened.
    """
    with open_container(path) as container:
        rate = video_stream(container, path).average_rate
    if not rate:
        raise ValueError(f"{path.name} does not state its frame rate")
    return float(rate)


def count_frames(path: Path) -> int:
    """Number of frames that :func:`read_frames` can read.

    Containers do not say it: an edit list may hide frames, and a file that was cut off ends before its header says.
    Packets are counted if each holds one frame; otherwise the video is decoded.

    Raises:
        ValueError: the file has no video stream.
        OSError, av.error.FFmpegError: the file cannot be opened or decoded.
    """
    with open_container(path) as container:
        stream = video_stream(container, path)
        packets = [packet for packet in container.demux(stream) if packet.size > 0]
        if stream.codec_context.name in _ONE_FRAME_PER_PACKET and _is_whole(packets):
            return sum(not packet.is_discard for packet in packets)
    with open_container(path) as container:
        stream = video_stream(container, path)
        return sum(1 for _ in container.decode(stream))


def _is_whole(packets: Sequence[av.Packet]) -> bool:
    """Whether the frame of every packet can be shown: none is damaged or refers to frames that were cut off."""
    first = packets[0] if packets else None
    if first is None or first.pts is None or not first.is_keyframe:
        return False
    return all(p.pts is not None and p.pts >= first.pts and not p.is_corrupt for p in packets)


class Display:
    """How a player shows the frames of a video: turned, mirrored, with square pixels.

    Args:
        frame: any frame of the video.
        aspect_ratio: width of a pixel over its height; None or 0 if unknown.
    """

    def __init__(self, frame: av.VideoFrame, aspect_ratio: Fraction | None) -> None:
        self._width = round(frame.width * aspect_ratio) if aspect_ratio else frame.width
        matrix: Any = frame.side_data.get("DISPLAYMATRIX")
        # (a, b, u, c, d, v, x, y, w) of libavutil/display.h: column p and row q go to column a·p + c·q, row b·p + d·q
        a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist() if matrix is not None else (1, 0, 0, 0, 1)
        self._is_transposed = abs(b) > abs(a)
        self._flips_columns, self._flips_rows = (c < 0, b < 0) if self._is_transposed else (a < 0, d < 0)

    def show(self, frame: av.VideoFrame, converter: VideoReformatter) -> np.ndarray:  # [H, W, 3] uint8
        """Convert a frame to RGB as it is shown."""
        is_rgb = frame.format.name == "gbrp" and self._width == frame.width  # in planes, as write_video leaves it
        options: Any = {"width": self._width, "format": "rgb24"} | _ONE_THREAD
        image: Any = (frame if is_rgb else converter.reformat(frame, **options)).to_ndarray()
        if self._is_transposed:
            image = image.transpose(1, 0, 2)
        if self._flips_rows:
            image = image[::-1]
        return image[:, ::-1] if self._flips_columns else image


def open_container(path: Path, mode: Any = "r", **options: Any) -> Any:
    """Open a container by its absolute path: FFmpeg takes a relative one with a colon for a protocol."""
    return av.open(str(path.absolute()), mode, **options)


def video_stream(container: Any, path: Path) -> Any:
    """The first video stream of a container, decoded in one thread: parallelism belongs to the loader's workers.

    Raises:
        ValueError: there is none.
    """
    if not container.streams.video:
        raise ValueError(f"{path.name} has no video stream")
    stream = container.streams.video[0]
    stream.codec_context.thread_count = 1
    return stream


def resize_frames(
    frames: Tensor,  # [N, 3, H, W] float32 in [0, 1]
    size: tuple[int, int],
) -> Tensor:  # [N, 3, *size]
    """Resize with antialiasing (bilinear)."""
    if frames.shape[-2:] == torch.Size(size):
        return frames
    return functional.interpolate(frames, size=size, mode="bilinear", antialias=True, align_corners=False)


def image_hw(image_size: int | tuple[int, int]) -> tuple[int, int]:
    """Read an image size, one number for a square or (height, width)."""
    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(size) != 2 or not all(isinstance(s, int) and s > 0 for s in size):
        raise ValueError(f"image_size is {image_size!r}, expected a positive integer or a pair (height, width)")
    return size
