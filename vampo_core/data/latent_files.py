"""Latents on disk: one safetensors file per episode, in a folder named after the codec that made them."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from vampo_core.data.folder import derived_folder, safe_name
from vampo_core.files import publish, temporary_beside

_HEADER = "vampo_core"


def latents_path(root: Path, name: str, episode_id: str, cache: str | Path | None = None) -> Path:
    """The file of an episode's latents in the encoding ``name``: in the cache, or else in the dataset.

    A file in the cache was made because there was none in the dataset, or one of another video.

    Args:
        root: the dataset's folder.
        name: name of the encoding.
        episode_id: name of the episode.
        cache: see :func:`~vampo_core.data.folder.derived_folder`.

    Raises:
        ValueError: the episode's name cannot be a file's.
    """
    file = f"{safe_name(episode_id)}.safetensors"
    made, own = derived_folder(root, "latents", cache) / name / file, root / "latents" / name / file
    return own if own.is_file() and not made.is_file() else made


def write_latents(path: Path, latents: Tensor, header: dict[str, object]) -> None:  # latents [T, C, h, w]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        save_file({"latents": latents.contiguous()}, temporary, metadata={_HEADER: json.dumps(header, sort_keys=True)})
        publish(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_latents(path: Path, indices: Sequence[int]) -> Tensor:  # [N, C, h, w] float32
    """Read the latents of chosen frames; a safetensors file that is cut short does not open."""
    with safe_open(path, "pt") as file:
        begin, end = min(indices), max(indices) + 1
        latents = file.get_slice("latents")
        length = latents.get_shape()[0]
        if length < end:
            raise ValueError(f"{path.name} holds {length} latents, expected at least {end}")
        return latents[begin:end][[i - begin for i in indices]].to(torch.float32)


def shape_of(path: Path) -> tuple[int, ...]:  # (C, h, w)
    """Shape of one frame's latents, from the file's header."""
    with safe_open(path, "pt") as file:
        return tuple(file.get_slice("latents").get_shape()[1:])


def read_header(path: Path) -> dict[str, object]:
    with safe_open(path, "pt") as file:
        return json.loads((file.metadata() or {})[_HEADER])
