"""What every trainer shares: the loop around an iteration, and the plain update on a loss."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

from torch import Tensor, nn

from vampo_core.config import PolicyConfig, PretrainConfig, VampoConfig
from vampo_core.training.optimizer import Trainable
from vampo_core.training.processes import new_accelerator
from vampo_core.training.training_run import E, TrainingRun, TrainResult

Callback = Callable[["Trainer[Any]", dict[str, Any]], None]
"""``callback(trainer, row)`` after an iteration; ``row`` is the line of ``metrics.jsonl``."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long a training goes on, and on how much at once."""

    name: str  # of the work, for the progress bar
    num_iterations: int
    eval_every: int
    save_every: int
    batch_size: int  # clips or frames per iteration, over all processes together
    num_parts: int = 1  # that an iteration's clips are worked through in

    @classmethod
    def of_updates(cls, name: str, settings: PretrainConfig | PolicyConfig) -> "Schedule":
        """One update an iteration, as a section of the configuration says."""
        return cls(
            name=name,
            num_iterations=settings.num_steps,
            eval_every=settings.eval_every,
            save_every=settings.save_every,
            batch_size=settings.batch_size,
        )


class Trainer(ABC, Generic[E]):
    """A loop around :meth:`iterate`; subclasses set :attr:`trainable` and :attr:`result_type`.

    Args:
        model: what is trained, or holds it.
        config: settings of the run.
        schedule: of the loop.
        callbacks: called after every iteration.
    """

    trainable: Trainable
    result_type: type[E]

    def __init__(
        self, *, model: nn.Module, config: VampoConfig, schedule: Schedule, callbacks: Sequence[Callback] = ()
    ) -> None:
        self.model, self.config, self.schedule, self.callbacks = model, config, schedule, list(callbacks)
        self.accelerator = new_accelerator()

    def train(self, resume_from: str | Path | None = None) -> TrainResult[E]:
        """Run the loop, from the start or from a checkpoint of this run."""
        run = TrainingRun(
            self.config,
            self.trainable,
            self.accelerator,
            num_iterations=self.schedule.num_iterations,
            eval_every=self.schedule.eval_every,
            save_every=self.schedule.save_every,
            evaluate=self.evaluate,
            score=self.score,
            result_type=self.result_type,
            resume_from=resume_from,
            name=self.schedule.name,
        )
        with run:
            batches = self.batches(run.iteration)
            for iteration in run.iterations():
                row = run.finish(self.iterate(iteration, batches))
                for callback in self.callbacks:
                    callback(self, row)
        return run.result()

    @abstractmethod
    def batches(self, done: int) -> Iterator[Mapping[str, Any]]:
        """Training batches without end, from behind those of the first ``done`` iterations."""

    @abstractmethod
    def iterate(self, iteration: int, batches: Iterator[Mapping[str, Any]]) -> dict[str, Any]:
        """One iteration, on ``num_parts`` batches; returns what there is to log."""

    @abstractmethod
    def evaluate(self) -> E:
        """Held-out metrics of the model, or of its EMA, under the fixed noise of ``evaluation.seed``."""

    @abstractmethod
    def score(self, result: E) -> float:
        """What the best checkpoint has the highest of."""


class LossTrainer(Trainer[E]):
    """A trainer whose iteration is one update on :meth:`loss`."""

    def iterate(self, iteration: int, batches: Iterator[Mapping[str, Any]]) -> dict[str, Any]:
        what, lr, begin = f"step {iteration}", self.trainable.lr, time.perf_counter()
        self.model.train()
        loss = self.loss(iteration, next(batches))
        self.trainable.backward(loss, what=what)
        grad_norm = self.trainable.step(what=what)
        mean = self.accelerator.reduce(loss.detach(), reduction="mean")
        loss_mean = mean.item()  # waits for the device
        return {"loss": loss_mean, "grad_norm": grad_norm, "lr": lr, "update_s": time.perf_counter() - begin}

    @abstractmethod
    def loss(self, iteration: int, batch: Mapping[str, Any]) -> Tensor:  # []
        """Of a batch, this process's share of the iteration's; its noise follows from seed, iteration and process."""
