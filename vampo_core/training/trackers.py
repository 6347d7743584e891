"""Metrics beyond ``metrics.jsonl``: TensorBoard and Weights & Biases, through accelerate's trackers."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.tracking import GeneralTracker, TensorBoardTracker, WandBTracker

from vampo_core.config import ConfigError, VampoConfig

_PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb"}


class Trackers:
    """The trackers of ``run.trackers``; only the main process reports.

    Args:
        config: of the run.
        resume_at: iteration after which an earlier part of the run is replaced (by TensorBoard; wandb keeps it, and
            takes what comes behind it); None for a new run.

    Raises:
        ConfigError: a tracker's package is not installed.
    """

    def __init__(self, config: VampoConfig, *, resume_at: int | None = None) -> None:
        check_trackers(config)
        PartialState()  # accelerate's trackers ask it which process is the main one
        folder = Path(config.run.dir)
        self._trackers = [_make(name, folder, resume_at) for name in config.run.trackers]
        for tracker in self._trackers:
            tracker.start()
            tracker.store_init_configuration(_flatten(config.to_dict()))

    def log(self, row: Mapping[str, Any]) -> None:
        """Report the numbers of one row of ``metrics.jsonl``."""
        values = _flatten({key: value for key, value in row.items() if key != "iteration"})
        numbers = {key: value for key, value in values.items() if isinstance(value, int | float)}
        for tracker in self._trackers:
            tracker.log(numbers, step=row["iteration"])

    def close(self) -> None:
        """Flush and close."""
        for tracker in self._trackers:
            tracker.finish()


def check_trackers(config: VampoConfig) -> None:
    """Raise a ConfigError where the package of one of ``run.trackers`` is not installed."""
    for name in config.run.trackers:
        if importlib.util.find_spec(_PACKAGES[name]) is None:
            raise ConfigError(
                f"run.trackers names {name!r}, whose package is not installed, expected it after "
                f"`pip install vampo_core[{name}]`"
            )


def _make(name: str, folder: Path, resume_at: int | None) -> GeneralTracker:
    if name == "tensorboard":
        purge_step = None if resume_at is None else resume_at + 1
        return TensorBoardTracker("tensorboard", folder, purge_step=purge_step)
    name = folder.resolve().name
    begun = None if resume_at is None else _wandb_id(folder)
    return WandBTracker("vampo", name=name, group=name, dir=str(folder), id=begun, resume="allow" if begun else None)


def _wandb_id(folder: Path) -> str | None:
    """The run that an earlier part of this one reported to, as wandb itself has noted it in its folder."""
    files = list((folder / "wandb" / "latest-run").glob("run-*.wandb"))
    return files[0].stem.removeprefix("run-") if files else None


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested entries as ``outer/inner``, lists and None as text."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}/")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, bool | int | float | str) else str(value)
    return flat
