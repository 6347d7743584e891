"""The training loop, for everything that is trained: begin or resume, iterate, evaluate, log, save, stop."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from accelerate import Accelerator
from accelerate.utils import set_seed

from vampo_core.config import VampoConfig
from vampo_core.evaluation.statistics import PerClip, changes
from vampo_core.progress import note, progress
from vampo_core.training.checkpoint import read_state
from vampo_core.training.health import Monitor
from vampo_core.training.optimizer import ModelOptimizer
from vampo_core.training.processes import from_main, gathered
from vampo_core.training.rng import rng_state, set_rng_state
from vampo_core.training.run_folder import RunFolder
from vampo_core.training.schedule import Schedule
from vampo_core.training.shard_files import save_together
from vampo_core.training.signals import GracefulStop
from vampo_core.training.trackers import Trackers

_SHOWN = ("loss", "reward_mean", "eval_reward", "eval_l1", "eval_action_l1")
"""Metrics beside the progress bar."""


class Evaluation(PerClip, Protocol):
    """Held-out metrics of a model, as a run logs and keeps them."""

    def row(self) -> dict[str, float]:
        """Metrics by name; they become ``eval_<name>`` in ``metrics.jsonl``."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Everything, as values that JSON can hold."""
        ...

    @classmethod
    def from_dict(cls: "type[E]", values: Mapping[str, Any]) -> "E":
        """The inverse of :meth:`to_dict`."""
        ...


E = TypeVar("E", bound=Evaluation)
Callback = Callable[[Any, dict[str, Any]], None]
"""``callback(trainer, row)`` after an iteration; ``row`` is its line of ``metrics.jsonl``."""


class Trainer(Protocol[E]):
    """What the loop needs to know about the work of an iteration; VAMPO, pretraining and policies each have one."""

    config: VampoConfig
    schedule: Schedule
    accelerator: Accelerator
    optimizer: ModelOptimizer
    result_type: type[E]
    callbacks: Sequence[Callback]

    def batches(self, done: int) -> Iterator[Mapping[str, Any]]:
        """Training batches without end, starting behind those of the first ``done`` iterations."""
        ...

    def iterate(self, iteration: int, batches: Iterator[Mapping[str, Any]]) -> dict[str, Any]:
        """Do one iteration and return what there is to log."""
        ...

    def evaluate(self) -> E | None:
        """Held-out metrics of the model, or of its EMA; None on other processes where only the main one evaluates."""
        ...

    def score(self, result: E) -> float:
        """The number that is highest for the best checkpoint."""
        ...


@dataclass(frozen=True)
class TrainResult(Generic[E]):
    """What a training run leaves behind; the same on every process."""

    checkpoint: Path  # the newest
    best_checkpoint: Path  # by evaluation.best_by, or for a policy by the action error
    history: list[dict[str, Any]]  # one row per iteration
    before: E
    after: E
    config: VampoConfig
    interrupted: bool  # by SIGTERM or Ctrl-C; continue with resume_from


class Loop(Generic[E]):
    """One run of a trainer.

    Whatever decides on collective work (where to resume, evaluations, stopping) is taken from the main process or
    gathered from all, so that no process waits for one that went another way.
    """

    def __init__(self, trainer: Trainer[E]) -> None:
        self._trainer, self._optimizer, self._config = trainer, trainer.optimizer, trainer.config
        self._is_main = trainer.accelerator.is_main_process
        self._stop = GracefulStop()
        self._iteration = 0
        self._best_score = float("-inf")
        self._before: E | None = None
        self._last: E | None = None
        self._folder: RunFolder | None = None  # of the main process only
        self._trackers: Trackers | None = None
        self._health = Monitor(self._config)

    def run(self, resume_from: str | Path | None = None) -> TrainResult[E]:
        """Run to the end, or until a signal asks to stop.

        Args:
            resume_from: run folder or checkpoint to continue from.
        """
        trainer, schedule = self._trainer, self._trainer.schedule
        with contextlib.ExitStack() as stack:
            self._open(stack, resume_from)
            if self._before is None:
                self._before = self._last = self._evaluate()
                self._best_score = trainer.score(self._before)
                self._save(best=True)
            batches = trainer.batches(self._iteration)
            length, done = schedule.num_iterations, self._iteration
            bar = progress(desc=schedule.name, disable=not self._is_main, total=length, initial=done, unit="it")
            stack.enter_context(bar)
            stopping = self._stopping()
            while self._iteration < schedule.num_iterations and not stopping:
                record = trainer.iterate(self._iteration + 1, batches)
                self._iteration += 1
                stopping = self._stopping()
                row = self._finish(record, ends=stopping or self._iteration == schedule.num_iterations)
                for callback in trainer.callbacks:
                    callback(trainer, row)
                bar.set_postfix({key: f"{row[key]:.4g}" for key in _SHOWN if row.get(key) is not None})
                bar.update(self._iteration - bar.n)
                stopping = stopping or self._stopping()  # a signal during evaluation or saving
            if self._iteration < schedule.num_iterations:
                self._save(best=False)
        return self._result()

    def _open(self, stack: contextlib.ExitStack, resume_from: str | Path | None) -> None:
        """Open the run folder and the trackers, load the state to resume from, and listen to signals."""
        if self._is_main:
            self._folder = stack.enter_context(RunFolder(self._config, resume_from=resume_from))
        checkpoint = from_main(None if self._folder is None else self._folder.checkpoint)
        if checkpoint is None:
            set_seed(self._config.run.seed, device_specific=True)  # for rewards that draw from the global generators
        else:
            self._load(checkpoint)
        if self._folder is not None:
            self._health = Monitor(self._config, self._folder.metrics.rows)
            self._trackers = Trackers(self._config, resume_at=None if checkpoint is None else self._iteration)
            stack.callback(self._trackers.close)
        stack.enter_context(self._stop)

    def _finish(self, record: Mapping[str, Any], *, ends: bool) -> dict[str, Any]:
        """Evaluate, log and save after an iteration, where it is time; returns the iteration's row."""
        schedule = self._trainer.schedule
        row: dict[str, Any] = {"iteration": self._iteration, **record, **self._optimizer.row()}
        is_best = False
        if self._iteration % schedule.eval_every == 0 or self._iteration == schedule.num_iterations:
            self._last = self._evaluate()
            assert self._before is not None
            values = self._last.row()
            row |= {f"eval_{key}": value for key, value in values.items()}
            row |= changes(self._before, self._last, values)
            score = self._trainer.score(self._last)
            is_best = score > self._best_score
            self._best_score = max(self._best_score, score)
        if self._folder is not None and self._trackers is not None:
            self._folder.metrics.append(row)
            row = self._folder.metrics.rows[-1]
            self._trackers.log(row)
            for finding in self._health.add(row):
                note(str(finding))
        if is_best or ends or self._iteration % schedule.save_every == 0:
            self._save(best=is_best)
        return row

    def _evaluate(self) -> E:
        """Held-out metrics, on every process those of the main one: others may differ by rounding."""
        result = self._trainer.evaluate()
        values = from_main(None if result is None else result.to_dict())
        assert values is not None
        return self._trainer.result_type.from_dict(values)

    def _stopping(self) -> bool:
        """Whether any process was asked to stop."""
        return any(gathered(self._stop.requested))

    def _save(self, *, best: bool) -> None:
        rng, save = gathered(rng_state()), None
        if self._folder is not None:
            assert self._before is not None and self._last is not None
            state = self._optimizer.state_dict()
            counters = {
                **state.counters,
                "before": self._before.to_dict(),
                "last": self._last.to_dict(),
                "best_reward": self._best_score,  # the name in format 1
            }
            state = replace(state, step=self._iteration, counters=counters, rng=rng)
            save = partial(self._folder.checkpoints.save, state, best=best)
        if self._optimizer.is_sharded:
            save_together(save, self._optimizer.save)
        elif save is not None:
            save(self._optimizer.save)

    def _load(self, checkpoint: Path) -> None:
        state, rank = read_state(checkpoint), self._trainer.accelerator.process_index
        self._optimizer.load_state_dict(state)
        self._iteration = state.step
        self._before = self._trainer.result_type.from_dict(state.counters["before"])
        self._last = self._trainer.result_type.from_dict(state.counters["last"])
        self._best_score = state.counters["best_reward"]
        if rank < len(state.rng):
            set_rng_state(state.rng[rank])
        else:  # saved by fewer processes: no two may share a state
            entropy = np.random.SeedSequence([self._config.run.seed, state.step, rank])
            set_seed(int(entropy.generate_state(1)[0]))

    def _result(self) -> TrainResult[E]:
        assert self._before is not None and self._last is not None
        folder = Path(self._config.run.dir)
        return TrainResult(
            checkpoint=(folder / "checkpoints" / "latest").resolve(),
            best_checkpoint=(folder / "checkpoints" / "best").resolve(),
            history=from_main([] if self._folder is None else list(self._folder.metrics.rows)),
            before=self._before,
            after=self._last,
            config=self._config,
            interrupted=self._iteration < self._trainer.schedule.num_iterations,
        )
