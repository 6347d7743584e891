"""Likelihood training of a predictor: the base that post-training improves."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vampo_core.config import VampoConfig
from vampo_core.data.clips import ClipDataset
from vampo_core.diffusion.streams import PRETRAIN_DROPOUT, PRETRAIN_NOISE, PRETRAIN_SIGMA, stream_seed
from vampo_core.evaluation.judge import Judge
from vampo_core.evaluation.predictor import EvalResult
from vampo_core.models.predictor import Condition, VideoPredictor
from vampo_core.ops import philox_normal
from vampo_core.ops.coefficients import PredictionType
from vampo_core.training.loop import Callback, Loop, TrainResult
from vampo_core.training.loss_update import update_on_loss
from vampo_core.training.optimizer import ModelOptimizer
from vampo_core.training.predictor_clips import PredictorClips
from vampo_core.training.processes import new_accelerator
from vampo_core.training.schedule import Schedule
from vampo_core.training.sharding import shard_predictor


def edm_loss(
    model: VideoPredictor,
    latents: Tensor,  # [B, F, C, h, w], clean
    condition: Condition,
    *,
    sigma: Tensor,  # [B]
    noise: Tensor,  # like latents
    prediction_type: PredictionType,
) -> Tensor:  # []
    """Weighted denoising loss of EDM (Karras et al. 2022, equations 2 and 8, table 1): in units of the raw output.

    ``lambda(sigma) |D(x + sigma n; sigma) - x|^2`` with ``lambda = 1 / c_out^2`` is the plain squared error of the
    network's output against ``(x - c_skip (x + sigma n)) / c_out``.
    """
    noisy = model.process.noisy(latents, noise, sigma)
    scalings = torch.tensor([model.process.scalings(float(s), prediction_type) for s in sigma]).to(latents)  # [B, 2]
    c_skip, c_out = (part.view(-1, 1, 1, 1, 1) for part in scalings.unbind(1))
    output = model(noisy, sigma, condition)
    return (output.float() - (latents - c_skip * noisy) / c_out).square().mean()


class Pretrainer:
    """Trains a predictor, its instruction encoder included, to denoise expert videos.

    Args:
        model: the predictor.
        config: settings of the run, ``config.pretrain`` above all.
        train_dataset: training clips with latents.
        eval_dataset: held-out clips with latents.
        judge: judge of the actions in held-out predictions; None to measure none.
    """

    result_type: type[EvalResult] = EvalResult
    callbacks: Sequence[Callback] = ()

    def __init__(
        self,
        *,
        model: VideoPredictor,
        config: VampoConfig,
        train_dataset: ClipDataset | Sequence[ClipDataset],
        eval_dataset: ClipDataset,
        judge: Judge | None = None,
    ) -> None:
        settings = config.pretrain
        self.model, self.config = model, config
        self.schedule = Schedule.of_updates("pretraining", settings)
        self.accelerator = new_accelerator()
        self.clips = PredictorClips(model, config, self.accelerator, train_dataset, eval_dataset, judge)
        shard_predictor(model, config, self.accelerator)
        self.optimizer = ModelOptimizer(
            model, self.accelerator, settings, num_updates=settings.num_steps, ema_decay=settings.ema_decay
        )

    def train(self, resume_from: str | Path | None = None) -> TrainResult[EvalResult]:
        """Run the loop, from the start or from a checkpoint of this run."""
        return Loop(self).run(resume_from)

    def batches(self, done: int) -> Iterator[Mapping[str, Any]]:
        """Training batches, starting behind those of the first ``done`` updates."""
        return self.clips.batches(self.config.pretrain.batch_size, start_batch=done)

    def iterate(self, iteration: int, batches: Iterator[Mapping[str, Any]]) -> dict[str, Any]:
        """One update on the denoising loss."""
        return update_on_loss(self, iteration, batches, self.loss)

    def evaluate(self) -> EvalResult:
        """Held-out metrics of the model, or of its EMA."""
        with self.optimizer.ema_weights():
            return self.clips.evaluate()

    def score(self, result: EvalResult) -> float:
        """What ``evaluation.best_by`` says, higher for a better model."""
        return result.score(self.config.reward, self.config.evaluation.best_by)

    def loss(self, iteration: int, batch: Mapping[str, Any]) -> Tensor:  # []
        """The denoising loss of this process's part of a batch; its noise follows from seed, iteration and process."""
        device = self.accelerator.device
        clips = batch["latents"].to(device)
        latents = self.model.predicted(clips)
        settings, first_clip = self.config.pretrain, self.accelerator.process_index * latents.shape[0]
        draws = [
            philox_normal(
                (shape[0], 1, *shape[1:]),
                seed=stream_seed(self.config.run.seed, stream, iteration),
                first_clip=first_clip,
                device=device,
            )[:, 0]
            for stream, shape in ((PRETRAIN_SIGMA, (latents.shape[0], 1, 1, 1, 1)), (PRETRAIN_NOISE, latents.shape))
        ]
        mean = settings.p_mean + math.log(self.clips.sampler.flow_shift)
        sigma = self.model.process.training_sigmas(draws[0].flatten(), mean, settings.p_std)
        condition = self.model.observed_condition(clips[:, 0], batch["instruction"])
        if settings.condition_dropout > 0:
            condition = condition.drop(self._is_dropped(iteration, len(latents), first_clip).to(device))
        return edm_loss(
            self.model,
            latents,
            condition,
            sigma=sigma,
            noise=draws[1],
            prediction_type=self.clips.sampler.prediction_type,
        )

    def _is_dropped(self, iteration: int, num_clips: int, first_clip: int) -> Tensor:  # [B] bool
        """Which clips of this process are trained without their condition."""
        key = stream_seed(self.config.run.seed, PRETRAIN_DROPOUT, iteration)
        draws = philox_normal((num_clips, 1, 1, 1, 1, 1), seed=key, first_clip=first_clip, dtype=torch.float64)
        return torch.special.ndtr(draws.flatten()) < self.config.pretrain.condition_dropout
