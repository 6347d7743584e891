"""The dataset of a configuration in another format."""

from pathlib import Path
from typing import Any, cast

from vampo_core.config import ConfigError, VampoConfig
from vampo_core.data.formats.lerobot_writer import CAMERA, check_target, write_lerobot
from vampo_core.data.formats.recorded import RecordedEpisode
from vampo_core.pipeline.clips import open_dataset

TARGETS = ("lerobot",)
"""Formats that can be written."""


def export_dataset(
    config: VampoConfig, output: str | Path, *, to: str = "lerobot", encoding: str = "lossless", failures: bool = False
) -> Path:
    """Write the episodes of ``data`` in another format; missing ones are recorded first.

    Args:
        config: configuration with the section ``data``.
        output: folder to make.
        to: format, one of :data:`TARGETS`.
        encoding: how videos are compressed, see :data:`vampo_core.data.formats.lerobot_writer.ENCODINGS`.
        failures: whether to keep recorded episodes that were no success; ``next.success`` tells them apart.

    Returns:
        ``output``.

    Raises:
        ConfigError: the format is none of these, or ``data.root`` is not one folder.
        ValueError: an argument is wrong, or episodes do not fit together.
        FileExistsError: there is something at ``output``.
    """
    data = config.data
    if to not in TARGETS:
        raise ConfigError(f"to is {to!r}, expected one of {', '.join(TARGETS)}")
    if len(data.roots) > 1:
        raise ConfigError(f"data.root is {list(data.roots)}, expected one folder to export")
    if failures and data.format != "recorded":
        raise ConfigError(f"failures is True with data.format = {data.format!r}, expected 'recorded', which knows them")
    check_target(Path(output), encoding)
    dataset: Any = open_dataset(config, include_failures=failures)
    successes = None
    if data.format == "recorded":
        successes = [cast(RecordedEpisode, episode).header.success for episode in dataset.episodes]
    camera = dataset.camera if data.format == "lerobot" else CAMERA
    return write_lerobot(
        dataset.episodes, output, fps=dataset.fps, successes=successes, camera=camera, encoding=encoding
    )
