"""A clip as one picture: a row per panel, a column per frame. The page moves it behind windows, all in step.

Every tile has a rim that repeats its border pixels, so that a window between two pixels shows nothing of a neighbour.
"""

import base64
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from torch.nn import functional

from vampo_core.evaluation.panels import to_bytes
from vampo_core.report.values import ClipVideo

_LARGEST_SIDE = 16383  # of a WebP picture
_LARGEST_PANEL = 320
_LOSSLESS_PIXELS = 1_500_000


@dataclass(frozen=True)
class Sheet:
    """A picture and its layout."""

    uri: str
    num_panels: int
    num_frames: int
    panel_size: tuple[int, int]  # height, width, without the rim


def make_sheet(panels: Iterable[Tensor]) -> Sheet:  # each [F, 3, H, W] in [0, 1]
    """Panels as one WebP picture, without loss if it is small."""
    rows = [_shrunk(panel) for panel in panels]
    tiles = [to_bytes(functional.pad(row, (1, 1, 1, 1), mode="replicate")) for row in rows]  # each [F, h + 2, w + 2, 3]
    picture = np.concatenate([np.concatenate(list(row), axis=1) for row in tiles])
    small = picture.shape[0] * picture.shape[1] <= _LOSSLESS_PIXELS
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "WEBP", lossless=small, quality=90, method=4)
    uri = "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
    height, width = rows[0].shape[-2:]
    return Sheet(uri, len(rows), rows[0].shape[0], (height, width))


def shown_clip(video: ClipVideo, styles: Mapping[str, str]) -> dict[str, Any]:
    """A clip as the macro ``player`` shows it.

    Args:
        video: the clip.
        styles: classes in the style sheet by label: base or vampo.
    """
    panels = [{"label": x, "l1": video.l1.get(x), "style": styles.get(x, "")} for x in video.panels]
    sheet = make_sheet(video.panels.values())
    return {"instruction": video.instruction, "clip_id": video.clip_id, "sheet": sheet, "panels": panels}


def _shrunk(panel: Tensor) -> Tensor:
    largest = min(_LARGEST_PANEL, _LARGEST_SIDE // panel.shape[0] - 2)
    scale = largest / max(panel.shape[-2:])
    if scale >= 1:
        return panel
    size = [max(1, round(side * scale)) for side in panel.shape[-2:]]
    return functional.interpolate(panel, size=size, mode="area")
