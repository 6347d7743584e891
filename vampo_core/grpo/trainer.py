"""VAMPO post-training: the GRPO loop on a video predictor."""

import contextlib
import resource
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vampo_core.config import VampoConfig
from vampo_core.data.clips import ClipDataset
from vampo_core.diffusion.noise import stream_seed
from vampo_core.grpo.anchor import anchor_loss
from vampo_core.grpo.loss import PolicyLoss, clipped_surrogate, gaussian_kl
from vampo_core.grpo.reference import frozen_base
from vampo_core.grpo.rewards import RewardFunction, Rewards, configured_rewards, evaluate_rewards
from vampo_core.grpo.rollout import GroupRollout, ModelOutput, RolloutEngine
from vampo_core.models.predictor import VideoPredictor
from vampo_core.ops import group_advantages
from vampo_core.training.optimizer import NonFiniteError, Trainable
from vampo_core.training.predictor_trainer import PredictorTrainer
from vampo_core.training.trainer import Callback, Schedule

_NOISE_STREAM = 1 << 40  # of the run's seed; iteration n draws from stream _NOISE_STREAM + n - 1


class VampoTrainer(PredictorTrainer):
    """Post-trains a predictor with GRPO on verifiable rewards (VAMPO, arXiv 2603.19370).

    Args:
        model: the predictor; its UNet, or the adapter on it, is the policy.
        config: settings of the run.
        train_dataset: clips with latents.
        eval_dataset: held-out clips with latents.
        reward_funcs: functions or ``(function, weight)`` pairs, see :mod:`vampo_core.grpo.rewards`; by default those of
            ``config.reward``.
        callbacks: called after every iteration.
    """

    def __init__(
        self,
        *,
        model: VideoPredictor,
        config: VampoConfig,
        train_dataset: ClipDataset | Sequence[ClipDataset],
        eval_dataset: ClipDataset,
        reward_funcs: Sequence[RewardFunction | tuple[RewardFunction, float]] | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        schedule = Schedule(
            name="VAMPO",
            num_iterations=config.grpo.num_iterations,
            eval_every=config.run.eval_every,
            save_every=config.run.save_every,
            batch_size=config.grpo.batch_size,
            num_parts=config.optim.gradient_accumulation_steps,
        )
        super().__init__(
            model=model,
            config=config,
            schedule=schedule,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            callbacks=callbacks,
        )
        if reward_funcs is None:
            reward_funcs = configured_rewards(config.reward, model.codec)
        self.rewards = [f if isinstance(f, tuple) else (f, 1.0) for f in reward_funcs]
        compares = config.grpo.kl_coef > 0 or config.grpo.anchor_coef > 0
        self.reference = frozen_base(model.to(self.accelerator.device)) if compares else None
        if isinstance(model.text_encoder, nn.Module):
            model.text_encoder.requires_grad_(False)  # no part of the policy
        self.trainable = Trainable(
            model,
            self.accelerator,
            config.optim,
            num_updates=config.grpo.num_iterations * config.grpo.num_inner_epochs,
            ema_decay=config.model.ema_decay,
        )
        self.engine = RolloutEngine(
            model,
            self.trainable.wrapped,
            self.sampler,
            num_generations=config.grpo.num_generations,
            chunk_size=config.sampler.tail_chunk_size,
            reuse_first_step=config.grpo.reuse_first_step,
        )
        self.num_parts = schedule.num_parts
        self.part_size = config.grpo.batch_size // (self.num_parts * self.accelerator.num_processes)
        if self.part_size * self.num_parts * self.accelerator.num_processes != config.grpo.batch_size:
            raise ValueError(
                f"grpo.batch_size is {config.grpo.batch_size}, expected a multiple of "
                f"optim.gradient_accumulation_steps = {self.num_parts} times {self.accelerator.num_processes} processes"
            )

    def iterate(self, iteration: int, batches: Iterator[Mapping[str, Any]]) -> dict[str, Any]:
        """One iteration: roll out, score, update; returns what there is to log."""
        what, clock = f"iteration {iteration}", _Clock()
        kept: list[tuple[GroupRollout, Tensor]] = []
        scores: list[tuple[Rewards, Tensor]] = []
        losses: list[PolicyLoss] = []
        self.model.train()
        lr = self.trainable.lr
        for part in range(self.num_parts):
            with clock("rollout_s"):
                # keyed by the place in the whole batch: neither parts nor processes change what a clip draws
                number = part * self.accelerator.num_processes + self.accelerator.process_index
                rollout = self.engine.rollout(
                    next(batches),
                    seed=stream_seed(self.config.run.seed, _NOISE_STREAM + iteration - 1),
                    first_clip=number * self.part_size,
                )
            with clock("reward_s"):
                rewards = self._score(rollout, what)
                advantages = group_advantages(rewards.total, clip=self.config.grpo.adv_clip_max)
            with clock("update_s"):
                losses += self._backward(rollout, advantages, what, sync=part == self.num_parts - 1)
            kept.append((rollout.without_graph(), advantages))
            scores.append((rewards, advantages))
        with clock("update_s"):
            grad_norm = self.trainable.step(what=what)
            for _ in range(self.config.grpo.num_inner_epochs - 1):
                for part, (rollout, advantages) in enumerate(kept):
                    losses += self._backward(rollout, advantages, what, sync=part == self.num_parts - 1)
                grad_norm = self.trainable.step(what=what)
        return self._record(losses, scores, clock.seconds) | {"grad_norm": grad_norm, "lr": lr}

    def _score(self, rollout: GroupRollout, what: str) -> Rewards:
        target = rollout.batch["latents"].to(rollout.latents)
        rewards = evaluate_rewards(self.rewards, rollout.latents, target, rollout.batch)
        bad = (~torch.isfinite(rewards.total)).flatten(1).any(1).nonzero().flatten().tolist()
        if bad:
            names = [name for name, part in rewards.parts.items() if not torch.isfinite(part).all()]
            clips = ", ".join(rollout.batch["clip_id"][i] for i in bad[:3])
            raise NonFiniteError(f"{what}: reward {', '.join(names) or 'total'} is not finite for clip {clips}")
        return rewards

    def _backward(self, rollout: GroupRollout, advantages: Tensor, what: str, *, sync: bool) -> list[PolicyLoss]:
        """Add the gradient of the clipped surrogate (with KL and anchor) on this part of the batch."""
        grpo, losses = self.config.grpo, []
        parts = self.engine.num_parts(rollout)
        for number, (step, clips, log_prob, output) in enumerate(self.engine.log_probs(rollout)):
            # a pass that drew the group is the old policy: its ratio is 1 by construction, not by luck
            old = log_prob.detach() if output is rollout.output else step.log_prob[clips]
            loss = clipped_surrogate(log_prob, old, advantages[clips], clip_range=grpo.clip_range)
            if grpo.kl_coef > 0:
                kl = self._kl(rollout, step.sample[clips], step.step_index, clips, output)
                loss = replace(loss, loss=loss.loss + grpo.kl_coef * kl, kl=kl)
            weight = log_prob.numel() / (advantages.numel() * len(rollout.steps) * self.num_parts)
            self.trainable.backward(loss.loss * weight, what=what, sync=sync and number == parts - 1)
            losses.append(loss)
        if grpo.anchor_coef > 0:
            assert self.reference is not None
            anchor = anchor_loss(self.trainable.wrapped, self.reference, self.sampler, rollout)
            self.trainable.backward(grpo.anchor_coef * anchor / self.num_parts, what=what, sync=sync)
            losses = [replace(loss, loss=loss.loss + grpo.anchor_coef * anchor, anchor=anchor) for loss in losses]
        return losses

    def _kl(self, rollout: GroupRollout, sample: Tensor, step_index: int, clips: slice, output: ModelOutput) -> Tensor:
        """KL divergence of the policy from the base at one step, with gradient to the policy."""
        assert self.reference is not None
        rows = torch.arange(clips.start, clips.stop, device=sample.device)
        if sample.ndim == 6:
            sample, rows = sample.flatten(0, 1), rows.repeat_interleave(sample.shape[1])
        condition = rollout.condition.index_select(rows)
        with torch.no_grad():
            denoise = self.model.denoiser(condition, guidance=self.sampler.uses_guidance, model=self.reference)
            base = ModelOutput(*denoise(sample, self.sampler.sigmas[step_index], None))
        scale = self.sampler.guidance(sample, output.uncond)
        coefficients = self.sampler.coefficients(step_index)
        return gaussian_kl(output.guided(scale), base.guided(scale), b=coefficients.b, sigma_up=coefficients.sigma_up)

    def _record(
        self, losses: list[PolicyLoss], scores: list[tuple[Rewards, Tensor]], seconds: Mapping[str, float]
    ) -> dict[str, Any]:
        """History of one iteration, over all processes."""
        rewards = torch.cat([score.total for score, _ in scores])  # [B, G, F] of this process
        spread = rewards.std(dim=1)
        num_ratios = sum(loss.num_ratios for loss in losses)

        def mean(name: str) -> Tensor:
            """Over ratios: a step whose samples the group does not share comes in smaller parts than one it does."""
            return torch.stack([getattr(loss, name).detach() * loss.num_ratios for loss in losses]).sum() / num_ratios

        local = {
            "loss": mean("loss"),
            "reward_mean": rewards.mean(),
            "reward_std": spread.mean(),
            "zero_std_fraction": (spread == 0).float().mean(),
            **{name: torch.cat([score.parts[name] for score, _ in scores]).mean() for name in scores[0][0].parts},
            **{name: mean(name) for name in ("ratio_mean", "approx_kl", "clip_fraction")},
            **{name: mean(name) for name in ("kl", "anchor") if getattr(losses[0], name) is not None},
        }
        means = self.accelerator.reduce(torch.stack([v.float() for v in local.values()]), reduction="mean")
        deviation = torch.stack([loss.ratio_max_dev for loss in losses]).max()
        cuda = torch.cuda.is_available()
        return {
            **dict(zip(local, means.tolist(), strict=True)),
            "ratio_max_dev": self.accelerator.gather(deviation).max().item(),
            **seconds,
            "samples_per_s": self.config.grpo.batch_size * self.config.grpo.num_generations / sum(seconds.values()),
            "peak_memory_mb": torch.cuda.max_memory_allocated() / 2**20 if cuda else _peak_resident_mb(),
        }


class _Clock:
    """Seconds spent in each phase of an iteration, the device's work included."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextlib.contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds[phase] += time.perf_counter() - begin


def _peak_resident_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
