"""Video files: write, read chosen frames, count, resize."""

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from torch import Tensor
from torch.nn import functional


def write_video(
    path: Path,
    frames: Iterable[np.ndarray],  # each [H, W, 3] uint8
    fps: float,
    *,
    crf: int = 0,
    for_viewing: bool = False,
) -> int:
    """Write an H.264 mp4 in RGB, without loss at ``crf`` 0; the same frames give the same bytes.

    Robot scenes are small and flat: without loss they take half as much space again as at a high quality, decode
    faster (no colour conversion) and spare every later stage the question of what compression did.

    Args:
        path: of the file.
        frames: of even height and width where they are ``for_viewing``.
        fps: frames per second.
        crf: quality, 0 the best.
        for_viewing: in YUV 4:2:0, which browsers and players show, unlike RGB.

    Returns:
        Number of frames written.
    """
    codec, pixel_format = ("libx264", "yuv420p") if for_viewing else ("libx264rgb", "rgb24")
    num_frames = 0
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"} if for_viewing else {}) as container:
        stream = None
        for frame in frames:
            if stream is None:
                stream = container.add_stream(
                    codec, rate=Fraction(fps).limit_denominator(1000), options={"crf": str(crf)}
                )
                stream.height, stream.width = frame.shape[:2]
                stream.pix_fmt = pixel_format
                stream.codec_context.thread_count = 1
            image = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(stream.encode(image))
            num_frames += 1
        if stream is None:
            raise ValueError("frames is empty, expected at least one")
        container.mux(stream.encode())
    return num_frames


def read_frames(path: Path, indices: Sequence[int]) -> Tensor:  # [N, H, W, 3] uint8
    """Decode the frames ``indices`` of a video, in the order asked.

    Raises:
        ValueError: the video ends before the last of them.
        OSError, av.error.FFmpegError: the file cannot be opened or decoded.
    """
    wanted = set(indices)
    last = max(wanted)
    images: dict[int, np.ndarray] = {}
    converter = VideoReformatter()  # one for all frames, as each starts threads
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1  # parallelism belongs to the data loader's workers
        i = -1
        for i, frame in enumerate(container.decode(stream)):
            if i in wanted:
                is_rgb = frame.format.name == "gbrp"  # in planes, as write_video leaves it
                images[i] = (frame if is_rgb else converter.reformat(frame, format="rgb24")).to_ndarray()
            if i == last:
                break
    if i < last:
        raise ValueError(f"{path.name} ends after {i + 1} frames, expected at least {last + 1}")
    return torch.from_numpy(np.stack([images[i] for i in indices]))


def count_frames(path: Path) -> int:
    """Number of frames, from the header where it tells, else by reading the packets."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return stream.frames or sum(packet.size > 0 for packet in container.demux(stream))


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
