"""What likelihood training and post-training of a predictor share: clips, sampler, held-out evaluation."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vampo_core.config import VampoConfig
from vampo_core.data.clips import ClipDataset, clip_loader
from vampo_core.evaluation.predictor import EvalResult, evaluate_predictor, held_out_batch
from vampo_core.models.predictor import VideoPredictor
from vampo_core.training.trainer import Callback, Schedule, Trainer


class PredictorTrainer(Trainer[EvalResult]):
    """A trainer of a predictor; see :class:`Trainer`.

    Args:
        model: the predictor.
        config: settings of the run.
        schedule: of the loop.
        train_dataset: clips with latents.
        eval_dataset: held-out clips with latents.
        callbacks: called after every iteration.
    """

    model: VideoPredictor
    result_type = EvalResult

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
        super().__init__(model=model, config=config, schedule=schedule, callbacks=callbacks)
        self.train_datasets = [train_dataset] if isinstance(train_dataset, ClipDataset) else list(train_dataset)
        self.eval_batch = held_out_batch(eval_dataset, config.evaluation.num_clips)
        self.sampler = model.sampler(**config.sampler.overrides())
        model.set_sampler(self.sampler)  # what it is trained, or chosen as the best, to be sampled with

    def batches(self, done: int) -> Iterator[Mapping[str, Any]]:
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

    def evaluate(self) -> EvalResult:
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

    def score(self, result: EvalResult) -> float:
        return result.score(self.config.reward)
