"""The folder of a run: configuration, metrics, checkpoints, samples."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock

from vampo_core.config import ConfigError, VampoConfig, load_config, roles
from vampo_core.files import LockedError, lock, remove_leftovers, temporary_beside
from vampo_core.training.checkpoint import Checkpoints, find_checkpoint, step_of
from vampo_core.training.metrics import MetricsLog
from vampo_core.training.trackers import check_trackers

CONTENTS = ("config.yaml", "metrics.jsonl", "checkpoints", "samples", "report.html", "tensorboard", "wandb")
"""Names that a run owns in its folder and ``run.overwrite`` deletes; other files stay."""

_ESSENTIAL = ("config.yaml", "metrics.jsonl", "checkpoints")
"""Names that every run writes: where they belong to somebody else, no run begins."""


class RunFolder:
    """A run folder that this process writes to, and no other; use as a context.

    Args:
        config: configuration of the run; ``config.run.dir`` is the folder.
        resume_from: checkpoint of this run, or its folder for the newest one; what came after it is removed.

    Raises:
        ConfigError: the folder holds a run already, another process writes to it, it is not writable, a tracker is not
            installed, or ``resume_from`` is of another run or one with other settings.
        ValueError: there is no checkpoint at ``resume_from``.
    """

    def __init__(self, config: VampoConfig, *, resume_from: str | Path | None = None) -> None:
        self.path = Path(config.run.dir)
        self.checkpoint = self.check(config, resume_from=resume_from)
        """Where to continue, or None for a new run."""
        self._lock = _lock(self.path)
        try:
            self.checkpoints = Checkpoints(self.path / "checkpoints")
            self.metrics = self._begin(config)
        except BaseException:
            self._lock.release()
            raise

    @staticmethod
    def check(config: VampoConfig, *, resume_from: str | Path | None = None) -> Path | None:
        """Raise what opening the folder would raise, before hours go into what comes before; changes nothing in it.

        Returns:
            the checkpoint to continue from.
        """
        check_trackers(config)
        path = Path(config.run.dir)
        checkpoint = None if resume_from is None else find_checkpoint(resume_from)
        if checkpoint is not None:
            _check_resume(config, checkpoint)
        _check_writable(path)
        foreign = [] if _is_ours(path) else [name for name in _ESSENTIAL if (path / name).exists()]
        if foreign:
            raise ConfigError(
                f"run.dir is {config.run.dir!r}, which holds {', '.join(foreign)} but no configuration of a run, "
                "expected a folder without these names"
            )
        if checkpoint is None and not config.run.overwrite and _holds_run(path):
            raise ConfigError(
                f"run.dir is {config.run.dir!r}, which holds a run already: continue it with "
                f"--continue or --resume-from {config.run.dir} (in Python resume_from={config.run.dir!r}), delete it "
                "with run.overwrite=true, or choose another folder"
            )
        return checkpoint

    @property
    def samples(self) -> Path:
        """Folder of videos."""
        folder = self.path / "samples"
        folder.mkdir(exist_ok=True)
        return folder

    def close(self) -> None:
        """Let other processes write to the folder."""
        self.metrics.close()
        self._lock.release()

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _begin(self, config: VampoConfig) -> MetricsLog:
        for written in (self.path, self.path / "samples", self.path / "checkpoints"):
            remove_leftovers(written)
        resume_at = None
        if self.checkpoint is not None:
            self.checkpoints.resume(self.checkpoint)
            resume_at = step_of(self.checkpoint)
        elif config.run.overwrite and _is_ours(self.path):
            self._delete()
        else:
            (self.path / "metrics.jsonl").unlink(missing_ok=True)  # has no row, see _holds_run
        # as a recipe the file must not delete the run that it describes
        replace(config, run=replace(config.run, overwrite=False)).save(self.path / "config.yaml")
        return MetricsLog(self.path / "metrics.jsonl", resume_at=resume_at)

    def _delete(self) -> None:
        # the configuration last: until then the folder is recognised as one that holds a run
        for name in reversed(CONTENTS):
            path = self.path / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def _is_ours(folder: Path) -> bool:
    """Whether the folder's ``config.yaml`` was written by a run, of this or another version of the library."""
    try:
        found = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return False
    return isinstance(found, dict) and {"data", "model", "run"} <= found.keys()


def _holds_run(folder: Path) -> bool:
    """Whether there is anything to lose. A run that was killed before its first checkpoint may simply begin again."""
    metrics = folder / "metrics.jsonl"
    has_rows = metrics.exists() and metrics.stat().st_size > 0
    return has_rows or Checkpoints(folder / "checkpoints").latest is not None


def _check_resume(config: VampoConfig, checkpoint: Path) -> None:
    run = checkpoint.parent.parent
    if checkpoint.parent != Path(config.run.dir).resolve() / "checkpoints":
        raise ConfigError(f"run.dir is {config.run.dir!r}, expected {str(run)!r}, the run of resume_from")
    before, now = load_config(run).to_dict(), config.to_dict()
    for key, role in roles().items():
        value, old = _value_of(key, now), _value_of(key, before)
        if value == old or (role.is_path and (_is_same_place(value, old) or _has_moved(old, value))):
            continue
        if role.unless is not None and (steps := _value_of(role.unless, now)):
            raise ConfigError(
                f"{key} is {value!r}, expected {old!r} as in {run / 'config.yaml'}: with {role.unless} = {steps} the "
                "learning rate falls to 0 at that end, and another one would make it jump"
            )
        if not role.may_change:
            raise ConfigError(
                f"{key} is {value!r}, expected {old!r} as in {run / 'config.yaml'}: a resumed run keeps its "
                "settings; start a new one in another run.dir to change them (a predictor's from model.pretrained="
                f"{checkpoint})"
            )


def _is_same_place(path: object, other: object) -> bool:
    """Whether two paths, perhaps written differently, are the same file or folder."""
    return isinstance(path, str) and isinstance(other, str) and Path(path).resolve() == Path(other).resolve()


def _has_moved(old: object, new: object) -> bool:
    """Whether nothing is at the old path any more and something is at the new one."""
    return isinstance(old, str) and isinstance(new, str) and not Path(old).exists() and Path(new).exists()


def _value_of(key: str, values: Mapping[str, Mapping[str, Any]]) -> Any:
    section, name = key.split(".")
    return values[section][name]


def _check_writable(path: Path) -> None:
    place = next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())  # made only later
    try:
        probe = temporary_beside(place / "probe")
        probe.write_text("")
        probe.unlink(missing_ok=True)  # another process of this run may have been quicker
    except OSError as error:
        raise ConfigError(
            f"run.dir is {str(path)!r}, expected a folder that can be written to: {error.strerror}"
        ) from error


def _lock(folder: Path) -> FileLock:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return lock(folder)
    except LockedError as error:
        raise ConfigError(f"run.dir is {str(folder)!r}, but another process is writing to it") from error
    except OSError as error:
        raise ConfigError(f"run.dir is {str(folder)!r}, but it cannot be locked: {error.strerror}") from error
