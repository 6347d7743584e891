"""What every training shares: run folder, metrics, checkpoints, evaluation, signals."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object, set_seed
from tqdm import tqdm

from vampo_core.config import VampoConfig
from vampo_core.training.checkpoint import TrainerState, read_state
from vampo_core.training.optimizer import Trainable
from vampo_core.training.rng import rng_state, set_rng_state
from vampo_core.training.run_folder import RunFolder
from vampo_core.training.signals import GracefulStop
from vampo_core.training.trackers import Trackers


class Evaluation(Protocol):
    """Held-out metrics of a model, as a run logs and keeps them."""

    def row(self) -> dict[str, float]:
        """Metrics by name; ``eval_<name>`` in ``metrics.jsonl``."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Everything, as values that JSON can hold."""
        ...

    @classmethod
    def from_dict(cls: "type[E]", values: Mapping[str, Any]) -> "E":
        """The inverse of :meth:`to_dict`."""
        ...


E = TypeVar("E", bound=Evaluation)


@dataclass(frozen=True)
class TrainResult(Generic[E]):
    """What a training run leaves behind."""

    checkpoint: Path  # the newest
    best_checkpoint: Path  # the one with the highest held-out reward, or for a policy the least action error
    history: list[dict[str, Any]]  # one per iteration
    before: E
    after: E
    config: VampoConfig
    interrupted: bool  # by SIGTERM or Ctrl-C; continue with resume_from


class TrainingRun(Generic[E]):
    """A run in progress; use as a context, which owns the run folder, and loop over :meth:`iterations`.

    Args:
        config: of the run.
        trainable: what is trained.
        accelerator: of the processes; the main one writes.
        num_iterations: where the loop ends.
        eval_every: iterations between evaluations, which also happen before the first and after the last one.
        save_every: iterations between checkpoints; the best and the last one are saved in any case.
        evaluate: held-out metrics of the model as it is.
        score: of these, what the best checkpoint has the highest of.
        result_type: what ``evaluate`` returns.
        resume_from: run folder or checkpoint to continue from.
        name: of the work, for the progress bar.
    """

    def __init__(
        self,
        config: VampoConfig,
        trainable: Trainable,
        accelerator: Accelerator,
        *,
        num_iterations: int,
        eval_every: int,
        save_every: int,
        evaluate: Callable[[], E],
        score: Callable[[E], float],
        result_type: type[E],
        resume_from: str | Path | None,
        name: str,
    ) -> None:
        self.config, self.trainable, self.accelerator = config, trainable, accelerator
        self.num_iterations, self.eval_every, self.save_every = num_iterations, eval_every, save_every
        self.name, self._evaluate, self._score, self._result_type = name, evaluate, score, result_type
        self.iteration = 0
        self.before: E | None = None
        self.last: E | None = None
        self._best_score = float("-inf")
        self._resume_from, self._stop = resume_from, GracefulStop()
        self._folder: RunFolder | None = None
        self._trackers: Trackers | None = None

    def __enter__(self) -> "TrainingRun[E]":
        with contextlib.ExitStack() as stack:
            if self.accelerator.is_main_process:
                self._folder = stack.enter_context(RunFolder(self.config, resume_from=self._resume_from))
            checkpoint = [None if self._folder is None else self._folder.checkpoint]
            broadcast_object_list(checkpoint)
            if checkpoint[0] is not None:
                self._load(checkpoint[0])
            else:
                # for what draws from the global generators: rewards
                set_seed(self.config.run.seed, device_specific=True)
            if self._folder is not None:
                resume_at = None if checkpoint[0] is None else self.iteration
                self._trackers = Trackers(self.config, resume_at=resume_at)
                stack.callback(self._trackers.close)
            stack.enter_context(self._stop)
            self._cleanup = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._cleanup.__exit__(*error)

    def iterations(self) -> Iterator[int]:
        """Iteration numbers that are still to be done, from 1; ends early where a signal asks for it."""
        if self.before is None:
            self.before = self.last = self._evaluate()
            self._best_score = self._score(self.before)
            self._save(best=True)
        bar = tqdm(
            total=self.num_iterations, initial=self.iteration, desc=self.name, unit="it",
            disable=not self.accelerator.is_main_process,
        )  # fmt: skip
        with bar:
            while self.iteration < self.num_iterations and not self._stopping():
                yield self.iteration + 1
                self._show(bar)
        if self.iteration < self.num_iterations:
            self._save(best=False)  # a signal after the last `finish` found nothing to save

    def finish(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Take the record of the iteration that is done: evaluate, log and save where it is time; return its row."""
        self.iteration += 1
        row: dict[str, Any] = {"iteration": self.iteration, **record, **self.trainable.row()}
        ends = self.iteration == self.num_iterations or self._stopping()
        is_best = False
        if self.iteration % self.eval_every == 0 or self.iteration == self.num_iterations:
            self.last = self._evaluate()
            row |= {f"eval_{key}": value for key, value in self.last.row().items()}
            score = self._score(self.last)
            is_best = score > self._best_score
            self._best_score = max(self._best_score, score)
        if self._folder is not None:
            self._folder.metrics.append(row)
            row = self._folder.metrics.rows[-1]
            assert self._trackers is not None
            self._trackers.log(row)
        if is_best or ends or self.iteration % self.save_every == 0:
            self._save(best=is_best)
        return row

    def result(self) -> TrainResult[E]:
        """What the run has come to."""
        assert self.before is not None and self.last is not None
        self.accelerator.wait_for_everyone()  # the main process may still be writing the checkpoint to go on from
        folder = Path(self.config.run.dir)
        rows = [] if self._folder is None else self._folder.metrics.rows
        return TrainResult(
            checkpoint=(folder / "checkpoints" / "latest").resolve(),
            best_checkpoint=(folder / "checkpoints" / "best").resolve(),
            history=list(rows),
            before=self.before,
            after=self.last,
            config=self.config,
            interrupted=self.iteration < self.num_iterations,
        )

    def _stopping(self) -> bool:
        """Whether any process was asked to stop."""
        requested = torch.tensor([float(self._stop.requested)], device=self.accelerator.device)
        return bool(self.accelerator.gather(requested).max())

    def _show(self, bar: tqdm) -> None:
        if self._folder is None:
            return
        row = self._folder.metrics.rows[-1]
        keys = ("loss", "reward_mean", "eval_reward", "eval_l1", "eval_action_l1")
        shown = {key: row[key] for key in keys if row.get(key) is not None}
        bar.set_postfix({key: f"{value:.4g}" for key, value in shown.items()})
        bar.update(self.iteration - bar.n)

    def _save(self, *, best: bool) -> None:
        rng = gather_object([rng_state()])
        if self._folder is None:
            return
        assert self.before is not None and self.last is not None
        state = self.trainable.state_dict()
        counters = {
            **state.counters,
            "before": self.before.to_dict(),
            "last": self.last.to_dict(),
            "best_reward": self._best_score,  # its name in format 1
        }
        self._folder.checkpoints.save(
            TrainerState(
                step=self.iteration, optimizer=state.optimizer, weights=state.weights, counters=counters, rng=rng
            ),
            self._save_model,
            best=best,
        )

    def _save_model(self, folder: Path) -> None:
        # the mean stands in for the weights here alone: the trainer's state goes on from the weights
        with self.trainable.ema_weights():
            self.trainable.model.save_pretrained(folder)

    def _load(self, checkpoint: Path) -> None:
        state = read_state(checkpoint, self.accelerator.device)
        self.trainable.load_state_dict(state)
        self.iteration = state.step
        self.before = self._result_type.from_dict(state.counters["before"])
        self.last = self._result_type.from_dict(state.counters["last"])
        self._best_score = state.counters["best_reward"]
        set_rng_state(state.rng[self.accelerator.process_index % len(state.rng)])
