"""Checkpoints of a run: atomic, complete, and enough to go on as if the run had never stopped.

A checkpoint ``checkpoints/step-N`` is a model folder with ``trainer_state/`` in it::

    trainer_state/state.json           step, best step, counters, random number generators of every process
    trainer_state/optimizer.pt         torch's optimizer state
    trainer_state/<name>.safetensors   weights as they are trained: policy, EMA, ...
    trainer_state/shards/              instead of both, where the processes of a sharded run wrote their shares

It is written under a hidden name, flushed and renamed, so a folder ``step-N`` is always whole. The links ``latest`` and
``best`` beside it are replaced in one step each.
"""

import json
import pickle
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vampo_core.files import discard, point, publish, remove_leftovers, temporary_beside

TRAINER_STATE = "trainer_state"
SHARDS = "shards"
_STATE_FILE = "state.json"
_FORMAT = 1
_FILE_ERRORS = (OSError, RuntimeError, SafetensorError)  # of the system, torch.save and torch.load, safetensors


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read; the message names it and says what is left."""


@dataclass(frozen=True, kw_only=True)
class TrainerState:
    """What a trainer needs beside the model folder to continue exactly."""

    step: int
    """Iterations or updates that are done."""
    optimizer: dict[str, Any] = field(default_factory=dict)
    """``state_dict()`` of the optimizer."""
    weights: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    """State dicts by name, such as ``policy`` and ``ema``: unlike those of the model folder neither merged nor cast."""
    counters: dict[str, Any] = field(default_factory=dict)
    """Whatever else there is to remember and JSON can hold: data position, gradient scaler, best reward."""
    rng: list[dict[str, Any]] = field(default_factory=list)
    """:func:`vampo_core.training.rng.rng_state` of each process."""
    shards: Path | None = None
    """Folder with the shares of a sharded run, in place of optimizer and weights; only of a state that was read."""


class Checkpoints:
    """The folder ``checkpoints`` of a run. One process writes to it; reading needs only :func:`find_checkpoint`."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    @property
    def latest(self) -> Path | None:
        """The newest checkpoint."""
        steps = self._steps()
        return self._path(max(steps)) if steps else None

    @property
    def best(self) -> Path | None:
        """The checkpoint last saved as the best one."""
        best = self.folder / "best"
        return best.resolve() if best.is_dir() else None

    def save(
        self,
        state: TrainerState,
        save_model: Callable[[Path], None],
        *,
        best: bool = False,
    ) -> Path:
        """Write a checkpoint, point ``latest`` at it and remove those that are neither latest nor best.

        A step that is saved already is left as it is, and only becomes the best one where ``best`` says so.

        Args:
            state: of the trainer.
            save_model: writes the model into the empty folder that it is given, and the shards of a sharded run.
            best: point ``best`` at it too.

        Raises:
            CheckpointError: it could not be written, for instance on a full disk; earlier checkpoints are untouched.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._path(state.step)
        best_step = state.step if best or self.best is None else step_of(self.best)
        if not path.exists():
            temporary = temporary_beside(path)
            try:
                temporary.mkdir()
                save_model(temporary)
                _write_state(temporary / TRAINER_STATE, state, best_step)
                publish(temporary, path)
            except _FILE_ERRORS as error:
                shutil.rmtree(temporary, ignore_errors=True)
                left = f"{self.latest} is whole" if self.latest else "there is no earlier one"
                raise CheckpointError(f"checkpoint {path} could not be written ({_line(error)}); {left}") from error
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
        self._point(state.step, best_step)
        for step in self._steps() - {state.step, best_step}:
            discard(self._path(step))
        return path

    def resume(self, checkpoint: Path) -> None:
        """Make one of these checkpoints the newest: later ones are removed, links set as they were when it was saved.

        Also finishes what a process that was killed while saving had left undone.
        """
        remove_leftovers(self.folder)
        step = step_of(checkpoint)
        best_step = _read_json(checkpoint)["best_step"]
        self._point(step, best_step if self._path(best_step).is_dir() else step)
        for later in sorted(self._steps()):
            if later > step:
                discard(self._path(later))

    def _point(self, latest: int, best: int) -> None:
        point(self.folder / "latest", self._path(latest).name)
        point(self.folder / "best", self._path(best).name)

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step}"

    def _steps(self) -> set[int]:
        return {step_of(path) for path in self.folder.glob("step-*") if path.name[5:].isdecimal()}


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint of a run that ``path`` stands for.

    Args:
        path: a checkpoint, a run folder or its ``checkpoints`` for the newest one, or either with ``/latest`` or
            ``/best`` at its end.

    Raises:
        ValueError: there is none; the message says what is there instead.
    """
    given, path = path, Path(path).expanduser()
    name = path.name if path.name in ("latest", "best") and not path.exists() else ""
    folder = path.parent if name else path
    if not folder.is_dir():
        raise ValueError(f"checkpoint is {str(given)!r}, expected a folder, but there is none at {folder}")
    if (folder / TRAINER_STATE / _STATE_FILE).is_file() and not name:
        return folder.resolve()
    checkpoints = Checkpoints(folder / "checkpoints" if (folder / "checkpoints").is_dir() else folder)
    found = checkpoints.best if name == "best" else checkpoints.latest
    if found is None:
        is_model = (folder / "vampo.json").is_file() or (folder / "model_index.json").is_file()
        what = "a model without trainer state" if is_model else "no checkpoint"
        raise ValueError(
            f"checkpoint is {str(given)!r}, which holds {what}, expected a run folder or a checkpoint of one"
        )
    return found.resolve()


def read_state(checkpoint: str | Path) -> TrainerState:
    """The trainer's state in a checkpoint, on the CPU.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    folder = Path(checkpoint) / TRAINER_STATE
    values = _read_json(Path(checkpoint))
    if (folder / SHARDS).is_dir():
        rest = {name: values[name] for name in ("step", "counters", "rng")}
        return TrainerState(**rest, shards=folder / SHARDS)
    try:
        optimizer = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
        weights = {name: load_file(folder / f"{name}.safetensors") for name in values["weights"]}
    except (*_FILE_ERRORS, pickle.UnpicklingError, EOFError) as error:
        raise CheckpointError(f"checkpoint {checkpoint} cannot be read: {_line(error)}") from error
    return TrainerState(
        step=values["step"], optimizer=optimizer, weights=weights, counters=values["counters"], rng=values["rng"]
    )


def read_counters(checkpoint: str | Path) -> dict[str, Any]:
    """Only the ``counters`` of a checkpoint's state, which are small.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    return _read_json(Path(checkpoint))["counters"]


def step_of(path: Path) -> int:
    """The N of ``step-N``."""
    return int(path.resolve().name.removeprefix("step-"))


def _write_state(folder: Path, state: TrainerState, best_step: int) -> None:
    folder.mkdir(exist_ok=True)
    for name, weights in state.weights.items():
        # copies, as safetensors refuses tensors that share memory (tied weights do); on the CPU, as a second set of all
        # weights need not fit the training device
        copies = {
            key: torch.empty(value.shape, dtype=value.dtype).copy_(value.detach()) for key, value in weights.items()
        }
        save_file(copies, folder / f"{name}.safetensors")
    if not (folder / SHARDS).is_dir():
        torch.save(state.optimizer, folder / "optimizer.pt")
    values = {
        "format": _FORMAT,
        "step": state.step,
        "best_step": best_step,
        "weights": list(state.weights),
        "counters": state.counters,
        "rng": state.rng,
    }
    (folder / _STATE_FILE).write_text(json.dumps(values) + "\n", encoding="utf-8")


def _read_json(checkpoint: Path) -> dict[str, Any]:
    path = checkpoint / TRAINER_STATE / _STATE_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        version = values["format"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"checkpoint {checkpoint} cannot be read: {path} is missing or damaged: {error}"
        ) from error
    if version != _FORMAT:
        raise CheckpointError(f"checkpoint {checkpoint} has format {version!r}, expected {_FORMAT}")
    return values


def _line(error: Exception) -> str:
    """The first line of an error: torch appends a stack trace of its C++."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
