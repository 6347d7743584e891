"""Videos side by side: labels, enlargement, error maps, and mp4 files that any player can show."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional

from vampo_core.data.video import FOR_VIEWING, write_video
from vampo_core.files import publish, temporary_beside

PLAYBACK_FPS = 4.0
"""Frames per second of written videos: slow enough to compare motion."""

# inferno of matplotlib at nine equal steps: black for no error, then purple, orange and yellow
_INFERNO = torch.tensor(
    [
        *((0, 0, 4), (31, 12, 72), (85, 15, 109), (136, 34, 106), (186, 54, 85)),
        *((227, 89, 51), (249, 140, 10), (249, 201, 50), (252, 255, 164)),
    ]
)
_BACKGROUND, _FOREGROUND = (24, 26, 31), (236, 238, 242)
_GAP, _LABEL_HEIGHT, _SMALLEST_SIDE = 8, 28, 192


def frame_error(
    pred: Tensor,  # [..., 3, H, W] in [0, 1]
    target: Tensor,  # like pred
) -> Tensor:  # [..., H, W]
    """Absolute difference, averaged over the colours."""
    return (pred - target).abs().mean(-3)


def colour_map(values: Tensor) -> Tensor:  # [..., H, W], 0 to 1 -> [..., 3, H, W] in [0, 1]
    """Colours from black (0) to light yellow (1 and above)."""
    position = values.clamp(0, 1) * (len(_INFERNO) - 1)
    low = position.floor().long().clamp_max(len(_INFERNO) - 2)
    part = (position - low).unsqueeze(-1)
    colours = _INFERNO.to(values.device).float() / 255
    return (colours[low] * (1 - part) + colours[low + 1] * part).movedim(-1, -3)


def to_bytes(frames: Tensor) -> np.ndarray:  # [F, 3, H, W] in [0, 1] -> [F, H, W, 3] uint8
    """Frames as bytes, for video files and images."""
    return (frames.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def side_by_side(
    rows: Sequence[Sequence[Tensor]],  # panels, each [F, 3, H, W] in [0, 1]
    labels: Sequence[str],  # one for each column
) -> np.ndarray:  # [F, height, width, 3] uint8, height and width even
    """Many videos as one, with labels; small ones are enlarged by a whole factor, so that their pixels stay sharp."""
    side = min(rows[0][0].shape[-2:])
    factor = max(1, -(-_SMALLEST_SIDE // side))
    panels = [[to_bytes(functional.interpolate(panel, scale_factor=factor)) for panel in row] for row in rows]
    num_frames, height, width = panels[0][0].shape[:3]
    total_width = len(labels) * (width + _GAP) + _GAP
    total_height = _LABEL_HEIGHT + len(rows) * (height + _GAP)
    canvas = np.empty((num_frames, total_height + total_height % 2, total_width + total_width % 2, 3), np.uint8)
    canvas[:] = np.asarray(_label_bar(labels, canvas.shape[1], canvas.shape[2], width))
    for i, row in enumerate(panels):
        for j, panel in enumerate(row):
            top, left = _LABEL_HEIGHT + i * (height + _GAP), _GAP + j * (width + _GAP)
            canvas[:, top : top + height, left : left + width] = panel
    return canvas


def save_video(path: Path, frames: np.ndarray) -> None:  # [F, H, W, 3] uint8
    """Write an mp4 for viewing, which is whole or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        write_video(temporary, frames, PLAYBACK_FPS, FOR_VIEWING)
        publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _label_bar(labels: Sequence[str], height: int, width: int, panel_width: int) -> Image.Image:
    """An empty canvas with the labels of the columns."""
    canvas = Image.new("RGB", (width, height), _BACKGROUND)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(15)
    for column, label in enumerate(labels):
        draw.text((_GAP + column * (panel_width + _GAP), 6), label, fill=_FOREGROUND, font=font)
    return canvas
