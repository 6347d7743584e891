"""Video files: exact round trips, and frames counted and shown as a player does, also of files that others made."""

from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from av.video.stream import VideoStream
from real_data import ROOT, needs

from vampo_core.data import EpisodeError
from vampo_core.data.episode import reading
from vampo_core.data.video import count_frames, read_frames, write_video

ODD = ROOT / "odd"


def test_video_round_trip_is_exact(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (7, 48, 64, 3), dtype=np.uint8)
    write_video(tmp_path / "video.mp4", frames, fps=10)
    assert count_frames(tmp_path / "video.mp4") == 7
    assert np.array_equal(read_frames(tmp_path / "video.mp4", range(7)), frames)
    assert np.array_equal(read_frames(tmp_path / "video.mp4", [5, 0, 5]), frames[[5, 0, 5]])


@needs("odd")
def test_an_edit_list_hides_frames():
    assert count_frames(ODD / "edit-list.mp4") == 25
    frames = read_frames(ODD / "edit-list.mp4", range(25))
    assert abs(int(frames[0].float().mean()) - 75) <= 1, "the sixteenth frame that was drawn"
    with pytest.raises(ValueError, match=r"edit-list.mp4 ends after 25 frames, expected at least 26"):
        read_frames(ODD / "edit-list.mp4", [25])


@needs("odd")
def test_a_display_matrix_turns_frames():
    (frame,) = read_frames(ODD / "display-matrix.mp4", [0])
    assert frame.shape == (96, 64, 3)
    red, green, blue = frame.unbind(-1)
    assert red[:22].min() > 200 > 50 > max(red[26:].max(), blue[:70].max(), green.max()), "red at the top"
    assert blue[74:].min() > 200, "blue at the bottom"


@needs("odd")
def test_a_file_without_video_names_the_episode():
    for read in (count_frames, lambda path: read_frames(path, [0])):
        with (
            pytest.raises(EpisodeError, match=r"episode 'a/1' of 'mine': no-video.mp4 has no video stream"),
            reading("mine", "a/1"),
        ):
            read(ODD / "no-video.mp4")


def encode(path, frames, codec="libx264", pixel_format="yuv444p", prepare=None, options=None):
    """A file as other tools write it."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10, options=options or {})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixel_format
        if prepare:
            prepare(stream)
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


CORNERS = np.zeros((32, 64, 3), np.uint8)  # a different color in each corner
CORNERS[:16, :32], CORNERS[:16, 32:], CORNERS[16:, :32] = (255, 0, 0), (0, 255, 0), (0, 0, 255)


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize("flip", ["", "hflip", "vflip"])
def test_frames_are_turned_and_mirrored_as_the_matrix_says(tmp_path, degrees, flip):
    def prepare(stream):
        stream.set_display_rotation(degrees, **({flip: True} if flip else {}))

    if not hasattr(VideoStream, "set_display_rotation"):
        pytest.skip("this PyAV writes no display matrix")
    encode(tmp_path / "turned.mp4", [CORNERS], prepare=prepare)
    expected = np.rot90(CORNERS, degrees // 90)  # counter-clockwise, as the matrix, which flips what it has turned
    expected = {"": expected, "hflip": expected[:, ::-1], "vflip": expected[::-1]}[flip]
    (frame,) = read_frames(tmp_path / "turned.mp4", [0])
    assert frame.shape == expected.shape
    assert (frame.int() - torch.from_numpy(expected.copy()).int()).abs().float().mean() < 8


def test_pixels_that_are_not_square_are_stretched(tmp_path):
    def prepare(stream):
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)

    encode(tmp_path / "wide.mp4", [CORNERS], prepare=prepare)
    (frame,) = read_frames(tmp_path / "wide.mp4", [0])
    assert frame.shape == (32, 85, 3)
    assert frame[4, 4, 0] > 200 and frame[4, 80, 1] > 200 and frame[28, 4, 2] > 200


NUMBERED = [np.full((48, 64, 3), 10 * t, np.uint8) for t in range(20)]


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "libx264", {"bf": "3"}),
        ("a.mkv", "libx264", {"bf": "3"}),
        ("a.ts", "libx264", {}),
        ("a.h264", "libx264", {}),
        ("a.mp4", "mpeg4", {}),
        ("a.avi", "mjpeg", {}),
        ("a.webm", "libvpx", {"auto-alt-ref": "1", "lag-in-frames": "10"}),
        ("a.mp4", "libsvtav1", {}),
    ],
)
def test_as_many_frames_are_counted_as_can_be_read(tmp_path, name, codec, options):
    if codec not in av.codecs_available:
        pytest.skip(f"no encoder {codec}")
    pixel_format = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    encode(tmp_path / name, NUMBERED, codec, pixel_format, options=options)
    assert count_frames(tmp_path / name) == 20
    assert len(read_frames(tmp_path / name, range(20))) == 20


def test_frames_before_the_first_whole_one_do_not_count(tmp_path):
    encode(tmp_path / "whole.ts", NUMBERED, pixel_format="yuv420p", options={"g": "8", "bf": "0"})
    with av.open(str(tmp_path / "whole.ts")) as source, av.open(str(tmp_path / "cut.ts"), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in [p for p in source.demux(source.streams.video[0]) if p.size][5:]:
            packet.stream = stream
            target.mux(packet)
    count = count_frames(tmp_path / "cut.ts")
    assert count < 15 and len(read_frames(tmp_path / "cut.ts", range(count))) == count
    with pytest.raises(ValueError, match=f"ends after {count} frames"):
        read_frames(tmp_path / "cut.ts", [count])


def test_a_name_with_a_colon_is_no_protocol(tmp_path, monkeypatch):
    from pathlib import Path

    monkeypatch.chdir(tmp_path)
    path = Path("2026-11-26T10:30:00.mp4")
    write_video(path, NUMBERED, fps=10)
    assert count_frames(path) == 20 and read_frames(path, [3]).float().mean() == 30
