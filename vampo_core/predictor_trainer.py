"""What likelihood training and post-training of a predictor share: clips, the loop, held-out evaluation."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vampo_core.config import VampoConfig
from vampo_core.data.clips import ClipDataset, clip_loader
from vampo_core.evaluation import EvalResult, evaluate_predictor, held_out_batch
from vampo_core.models.video_predictor import VideoPredictor
from vampo_core.processes import new_accelerator
from vampo_core.trainable import Trainable
from vampo_core.training_run import TrainingRun, TrainResult

Callback = Callable[["PredictorTrainer", dict[str, Any]], None]
"""``callback(trainer, row)`` after an iteration; ``row`` is the line of ``metrics.jsonl``."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long a training goes on, and on how much at once."""

    name: str  # of the work, for the progress bar
    num_iterations: int
    eval_every: int
    save_every: int
    batch_size: int  # clips per iteration, over all processes together
    num_parts: int = 1  # that an iteration's clips are worked through in


class PredictorTrainer(ABC):
    """A loop around :meth:`iterate`; subclasses set :attr:`trainable`.

    Args:
        model: the predictor.
        config: settings of the run.
        schedule: of the loop.
        train_dataset: clips with latents.
        eval_dataset: held-out clips with latents.
        callbacks: called after every iteration.
    """

    trainable: Trainable

    def __init__(
        self,
        *,
        model: VideoPredictor,
        config: VampoConfig,
        schedule: Schedule,
        train_dataset: ClipDataset | Sequence[ClipDataset],
        eval_dataset: ClipDataset,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.model, self.config, self.schedule, self.callbacks = model, config, schedule, list(callbacks)
        self.train_datasets = [train_dataset] if isinstance(train_dataset, ClipDataset) else list(train_dataset)
        self.eval_batch = held_out_batch(eval_dataset, config.evaluation.num_clips)
        self.accelerator = new_accelerator()
        self.sampler = model.sampler(**config.sampler.overrides())
        model.set_sampler(self.sampler)  # what it is trained, or chosen as the best, to be sampled with

    def train(self, resume_from: str | Path | None = None) -> TrainResult[EvalResult]:
        """Run the loop, from the start or from a checkpoint of this run."""
        run = TrainingRun(
            self.config,
            self.trainable,
            self.accelerator,
            num_iterations=self.schedule.num_iterations,
            eval_every=self.schedule.eval_every,
            save_every=self.schedule.save_every,
            evaluate=self.evaluate,
            score=lambda result: result.score(self.config.reward),
            result_type=EvalResult,
            resume_from=resume_from,
            name=self.schedule.name,
        )
        with run:
            batches = self._batches(run.iteration)
            for iteration in run.iterations():
                row = run.finish(self.iterate(iteration, batches))
                for callback in self.callbacks:
                    callback(self, row)
        return run.result()

    @abstractmethod
    def iterate(self, iteration: int, batches: Iterator[Mapping[str, Any]]) -> dict[str, Any]:
        """One iteration, on ``num_parts`` batches; returns what there is to log."""

    def evaluate(self) -> EvalResult:
        """Held-out metrics of the model, or of its EMA, under the fixed noise of ``evaluation.seed``."""
        settings = self.config.evaluation
        with self.trainable.ema_weights():
            return evaluate_predictor(
                self.model,
                self.sampler,
                self.eval_batch,
                num_samples=settings.num_samples,
                seed=settings.seed,
                batch_size=settings.batch_size,
            )

    def _batches(self, done: int) -> Iterator[Mapping[str, Any]]:
        loader = clip_loader(
            self.train_datasets,
            batch_size=self.schedule.batch_size // self.schedule.num_parts,
            weights=self.config.data.weights,
            seed=self.config.run.seed,
            num_workers=self.config.data.num_workers,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            start_batch=done * self.schedule.num_parts,
        )
        return iter(loader)
