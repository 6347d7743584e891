"""Readers of data layouts, one file each, and the registry that opens a dataset by the name of its format.

A new format is one file with a dataset class and one line in :data:`FORMATS`.
"""

import importlib
from pathlib import Path
from typing import Any

from vampo_core.data.episode import EpisodeSource

FORMATS = {
    "lerobot": "vampo_core.data.formats.lerobot:LeRobotDataset",
    "recorded": "vampo_core.data.formats.recorded:RecordedDataset",
    "vpp": "vampo_core.data.formats.vpp:VppDataset",
}
"""Dataset class of each format, as module and name."""


def open_dataset_of(
    format: str,
    root: str | Path,
    *,
    latents: str | None = None,
    cache: str | Path | None = None,
    num_episodes: int | None = None,
    strict: bool = False,
    **options: Any,
) -> EpisodeSource:
    """Open a dataset of a format.

    Args:
        format: a name in :data:`FORMATS`.
        root: the dataset's folder.
        latents: name of an encoding under ``<root>/latents``; None for frames, and for latents that came with the data.
        cache: folder where latents are kept if not in the dataset's own, as given to :func:`vampo_core.data.encode`.
        num_episodes: number of episodes to open, from the first one; None for all.
        strict: whether an episode that cannot be read is an error instead of being skipped with a warning.
        options: arguments that only this format has, such as ``camera``.

    Raises:
        ValueError: there is no such format, or the dataset is not of it.
        FileNotFoundError: there is no dataset at ``root``.
        EpisodeError: no episode can be read, or one cannot and ``strict`` is set.
    """
    if format not in FORMATS:
        raise ValueError(f"format is {format!r}, expected one of {', '.join(sorted(FORMATS))}")
    module, _, name = FORMATS[format].partition(":")
    dataset_class = getattr(importlib.import_module(module), name)
    return dataset_class(root, latents=latents, cache=cache, num_episodes=num_episodes, strict=strict, **options)
