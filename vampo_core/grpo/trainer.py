"""VAMPO post-training: the GRPO loop on a video predictor."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from vampo_core.config import VampoConfig
from vampo_core.data.clips import ClipDataset, clip_loader
from vampo_core.evaluation import EvalResult, evaluate_predictor, held_out_batch
from vampo_core.grpo.loss import PolicyLoss, clipped_surrogate, gaussian_kl
from vampo_core.grpo.rollout import GroupRollout, RolloutEngine
from vampo_core.models.video_predictor import VideoPredictor
from vampo_core.ops import group_advantages
from vampo_core.ops.coefficients import euler_coefficients
from vampo_core.rewards import RewardFunction, Rewards, evaluate_rewards, rewards_of
from vampo_core.training import Trainable, TrainResult, TrainRun

Callback = Callable[["VampoTrainer", dict[str, Any]], None]
"""``callback(trainer, record)`` after every iteration; ``record`` is the line of ``metrics.jsonl``."""


class VampoTrainer:
    """Post-trains a predictor with GRPO on verifiable rewards (VAMPO, arXiv 2603.19370).

    Args:
        model: the predictor; its UNet (or its adapter) is trained.
        config: settings of the run.
        train_dataset: clips with latents, or several datasets.
        eval_dataset: held-out clips.
        reward_funcs: functions with weights, see :mod:`vampo_core.rewards`; by default those of the config.
        callbacks: called after every iteration.
    """

    def __init__(
        self,
        *,
        model: VideoPredictor,
        config: VampoConfig,
        train_dataset: ClipDataset | Sequence[ClipDataset],
        eval_dataset: ClipDataset,
        reward_funcs: Sequence[tuple[RewardFunction, float]] | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.config, self.model, self.callbacks = config, model, list(callbacks)
        self.accelerator = Accelerator(cpu=not torch.cuda.is_available())
        self.train_datasets = [train_dataset] if isinstance(train_dataset, ClipDataset) else list(train_dataset)
        self.eval_batch = held_out_batch(eval_dataset, config.evaluation.num_clips)
        self.rewards = list(reward_funcs) if reward_funcs is not None else rewards_of(config.reward, model)
        self.trainable = Trainable(model, self.accelerator, config.optim, ema_decay=config.model.ema_decay)
        self.sampler = model.sampler(**config.sampler.overrides())
        self.engine = RolloutEngine(
            model,
            self.trainable.wrapped,
            self.sampler,
            num_generations=config.grpo.num_generations,
            chunk_size=config.sampler.tail_chunk_size,
            reuse_first_step=config.grpo.reuse_first_step,
        )
        self.reference = self.trainable.frozen_copy() if config.grpo.kl_coef > 0 else None

    def train(self, resume_from: str | None = None) -> TrainResult:
        """Run the loop, from the start or from a checkpoint of this run."""
        config = self.config
        with TrainRun(config, self.trainable, resume_from=resume_from, num_steps=config.grpo.num_iterations) as run:
            before = run.remember("before", self.evaluate)
            batches = self._batches(run.step)
            for iteration in run.steps():
                record = self.iterate(iteration, batches)
                if run.is_due(config.run.eval_every):
                    record |= self._held_out(run)
                run.finish_step(record)
                for callback in self.callbacks:
                    callback(self, record)
            after = run.remember("after", self.evaluate, again=True)
        return run.result(before, after)

    def evaluate(self) -> EvalResult:
        """Held-out metrics of the policy (its EMA where there is one) under the fixed noise of ``evaluation.seed``."""
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

    def iterate(self, iteration: int, batches: Iterator[Mapping[str, Any]]) -> dict[str, Any]:
        """One iteration: roll out, score, update; returns the history record."""
        config, clock = self.config, Stopwatch()
        num_parts = config.optim.gradient_accumulation_steps
        kept: list[tuple[GroupRollout, Rewards, Tensor]] = []
        losses: list[PolicyLoss] = []
        for part, batch in enumerate(islice(batches, num_parts)):
            with clock("rollout"):
                rollout = self._rollout(iteration, part, batch)
            with clock("reward"):
                rewards = self._score(iteration, rollout)
                advantages = group_advantages(rewards.total, clip=config.grpo.adv_clip_max)
            with clock("update"):
                losses += self._backward(rollout, advantages, 1 / num_parts)
            kept.append((rollout.without_graph(), rewards, advantages))
        with clock("update"):
            grad_norm = self.trainable.step(iteration)
            for _ in range(config.grpo.num_inner_epochs - 1):
                for rollout, _rewards, advantages in kept:
                    losses += self._backward(rollout, advantages, 1 / num_parts)
                grad_norm = self.trainable.step(iteration)
        return self._record(iteration, kept, losses, grad_norm, clock)
