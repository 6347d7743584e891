"""VAMPO post-training: the GRPO loop on a video predictor."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from vampo_core.config import VampoConfig
from vampo_core.data.clips import ClipDataset
from vampo_core.diffusion.streams import ROLLOUT, stream_seed
from vampo_core.diffusion.trajectory import RolloutStep
from vampo_core.evaluation.actions import Decoders
from vampo_core.evaluation.judge import Judge
from vampo_core.evaluation.predictor import EvalResult
from vampo_core.grpo.advantages import compared_rewards, credited_advantages
from vampo_core.grpo.anchor import anchor_loss
from vampo_core.grpo.loss import PolicyLoss, clipped_surrogate, gaussian_kl, pathwise_surrogate, step_weights
from vampo_core.grpo.replay import replay_mismatch
from vampo_core.grpo.rewards import RewardFunction, Rewards, check_names, configured_rewards, evaluate_rewards
from vampo_core.grpo.rollout import GroupRollout, ModelOutput, RolloutEngine
from vampo_core.models.float8 import check_float8
from vampo_core.models.predictor import VideoPredictor
from vampo_core.ops.spread import ROUNDING_ULPS, is_flat
from vampo_core.training.clock import PhaseClock
from vampo_core.training.loop import Callback, Loop, TrainResult
from vampo_core.training.memory import peak_memory_mb
from vampo_core.training.optimizer import ModelOptimizer, NonFiniteError
from vampo_core.training.predictor_clips import PredictorClips
from vampo_core.training.processes import gathered, new_accelerator, reduced, total
from vampo_core.training.schedule import Schedule
from vampo_core.training.sharding import check_sharding, frozen_reference, shard_predictor


class VampoTrainer:
    """Post-trains a predictor with GRPO on verifiable rewards (VAMPO, arXiv 2603.19370).

    Args:
        model: the predictor; its denoiser, or the adapter on it, is the policy.
        config: settings of the run.
        train_dataset: training clips with latents, of one dataset or several.
        eval_dataset: held-out clips with latents.
        reward_funcs: functions or ``(function, weight)`` pairs, see :mod:`vampo_core.rewards`; by default those of
            ``config.reward``.
        callbacks: functions that are called with the trainer and the row of metrics after every iteration.
        action_decoders: decoders of the action reward by dataset, needed where ``config.reward`` has one.
        judge: judge of the actions in held-out predictions; None to measure none.

    Raises:
        ValueError: the batch does not divide into parts and processes, a reward has the name of another metric, or the
            device does not have ``sampler.tail_dtype``.
    """

    result_type: type[EvalResult] = EvalResult

    def __init__(
        self,
        *,
        model: VideoPredictor,
        config: VampoConfig,
        train_dataset: ClipDataset | Sequence[ClipDataset],
        eval_dataset: ClipDataset,
        reward_funcs: Sequence[RewardFunction | tuple[RewardFunction, float]] | None = None,
        callbacks: Sequence[Callback] = (),
        action_decoders: Decoders | None = None,
        judge: Judge | None = None,
    ) -> None:
        grpo = config.grpo
        self.model, self.config = model, config
        self.callbacks: Sequence[Callback] = list(callbacks)
        self.schedule = Schedule(
            name="VAMPO",
            num_iterations=grpo.num_iterations,
            eval_every=config.run.eval_every,
            save_every=config.run.save_every,
        )
        self.accelerator = new_accelerator()
        check_sharding(config, self.accelerator)
        if config.sampler.tail_dtype == "float8":
            check_float8(self.accelerator.device)
        self.num_parts = config.optim.gradient_accumulation_steps
        self.part_size = grpo.batch_size // (self.num_parts * self.accelerator.num_processes)
        if self.part_size * self.num_parts * self.accelerator.num_processes != grpo.batch_size:
            raise ValueError(
                f"grpo.batch_size is {grpo.batch_size}, expected a multiple of "
                f"optim.gradient_accumulation_steps = {self.num_parts} times {self.accelerator.num_processes} processes"
            )
        if reward_funcs is None:
            reward_funcs = configured_rewards(config.reward, model.codec, action_decoders)
        self._has_checked_gradients = False
        # a compiled denoiser would be compiled again, for another number of rows
        self._can_replay = grpo.credit != "pathwise" and not model.is_compiled
        self.rewards = [f if isinstance(f, tuple) else (f, 1.0) for f in reward_funcs]
        check_names(self.rewards)
        if grpo.credit == "pathwise" and not self.rewards:
            raise ValueError("reward_funcs is empty, expected at least one function to differentiate")
        self.clips = PredictorClips(model, config, self.accelerator, train_dataset, eval_dataset, judge)
        self.sampler = model.sampler(**config.sampler.overrides(cheap_tail=True))
        self.step_weights = step_weights(self.sampler, rectified=grpo.rectify_steps)
        compares = grpo.kl_coef > 0 or grpo.anchor_coef > 0
        self.reference = frozen_reference(model, self.accelerator) if compares else None
        shard_predictor(model, config, self.accelerator)
        if isinstance(model.text_encoder, nn.Module):
            model.text_encoder.requires_grad_(False)  # not part of the policy
        self.optimizer = ModelOptimizer(
            model,
            self.accelerator,
            config.optim,
            num_updates=grpo.num_iterations * grpo.num_inner_epochs,
            ema_decay=config.model.ema_decay,
        )
        self.engine = RolloutEngine(
            model,
            self.sampler,
            num_generations=grpo.num_generations,
            chunk_size=config.sampler.tail_chunk_size,
            reuse_first_step=grpo.reuse_first_step,
            differentiable=grpo.credit == "pathwise",
            tail_dtype=config.sampler.tail_dtype,
        )

    def train(self, resume_from: str | Path | None = None) -> TrainResult[EvalResult]:
        """Run the loop, from the start or from a checkpoint of this run."""
        return Loop(self).run(resume_from)

    def batches(self, done: int) -> Iterator[Mapping[str, Any]]:
        """Parts of training batches, starting behind those of the first ``done`` iterations."""
        size = self.config.grpo.batch_size // self.num_parts
        return self.clips.batches(size, start_batch=done * self.num_parts)

    def evaluate(self) -> EvalResult:
        """Held-out metrics of the model, or of its EMA."""
        with self.optimizer.ema_weights():
            return self.clips.evaluate()

    def score(self, result: EvalResult) -> float:
        """What ``evaluation.best_by`` says, higher for a better model."""
        return result.score(self.config.reward, self.config.evaluation.best_by)

    def iterate(self, iteration: int, batches: Iterator[Mapping[str, Any]]) -> dict[str, Any]:
        """One iteration: roll out, score and add gradients part by part, then update; returns its metrics."""
        grpo, what = self.config.grpo, f"iteration {iteration}"
        clock = PhaseClock(self.accelerator.device)
        kept: list[tuple[GroupRollout, Tensor]] = []  # for inner epochs after the first
        scores: list[Rewards] = []
        clip_ids: list[str] = []
        losses: list[PolicyLoss] = []
        worst: dict[str, Tensor] = {}  # [] each, of which the largest of all processes counts
        self.model.train()
        lr = self.optimizer.lr
        for part in range(self.num_parts):
            with clock("data_s"):
                batch = next(batches)
            with clock("rollout_s"):
                # keyed by the place in the whole batch: neither parts nor processes change what a clip draws
                number = part * self.accelerator.num_processes + self.accelerator.process_index
                rollout = self.engine.rollout(
                    batch,
                    seed=stream_seed(self.config.run.seed, ROLLOUT, iteration - 1),
                    first_clip=number * self.part_size,
                )
            with clock("reward_s"):
                rewards = self._score(rollout)
            with clock("update_s"):
                credited = self._credited(rollout, rewards)
                if iteration == 1 and part == 0 and self._can_replay:
                    worst["replay_mismatch"] = replay_mismatch(self.engine, self.rewards, rollout, credited, grpo)
                rewards, rollout = rewards.detached(), rollout.detached()
                losses += self._backward(rollout, credited)
            scores.append(rewards)
            clip_ids += rollout.batch["clip_id"]
            if grpo.num_inner_epochs > 1:
                kept.append((rollout.without_graph(), credited))
            del rollout  # two at once would take twice the memory
        with clock("update_s"):
            check_finite(
                scores, clip_ids, what, self.accelerator
            )  # here, because looking at a number waits for the device
            grad_norm, num_first = self.optimizer.step(what=what), len(losses)
            for _ in range(grpo.num_inner_epochs - 1):
                for rollout, credited in kept:
                    losses += self._backward(rollout, credited)
                grad_norm = self.optimizer.step(what=what)
        replayed = [loss.replay_max_dev for loss in losses[:num_first] if loss.replay_max_dev is not None]
        worst["replay_max_dev"] = torch.stack(replayed).max()
        return self._record(losses, scores, worst, clock.seconds) | {"grad_norm": grad_norm, "lr": lr}

    def _score(self, rollout: GroupRollout) -> Rewards:
        target = rollout.batch["latents"].to(rollout.latents)
        is_checked = self.engine.differentiable and not self._has_checked_gradients
        rewards = evaluate_rewards(self.rewards, rollout.latents, target, rollout.batch, check_gradient=is_checked)
        rewards = rewards.without(self.model.num_given_frames)
        self._has_checked_gradients = True
        return rewards

    def _credited(self, rollout: GroupRollout, rewards: Rewards) -> Tensor:
        """What every draw is credited with: advantages ``[B, G, F]``, or with ``pathwise`` its own derivative."""
        if self.engine.differentiable:
            (slope,) = torch.autograd.grad(rewards.total.mean(), rollout.steps[0].prev_sample)
            return slope
        grpo = self.config.grpo
        return credited_advantages(rewards.total, credit=grpo.credit, clip=grpo.adv_clip_max)

    def _backward(self, rollout: GroupRollout, credited: Tensor) -> list[PolicyLoss]:
        """Add the gradient of the surrogate (with KL and anchor) on this part of the batch."""
        grpo, losses = self.config.grpo, []
        num_rewards = math.prod(credited.shape[:3])
        for loss, step, clips, output in self._surrogates(rollout, credited):
            if grpo.kl_coef > 0:
                kl = self._kl(rollout, step.sample[clips], step.step_index, clips, output)
                loss = replace(loss, loss=loss.loss + grpo.kl_coef * kl, kl=kl)
            weight = loss.num_ratios / (num_rewards * len(rollout.steps) * self.num_parts)
            weight *= self.step_weights[step.step_index]
            self.optimizer.backward(loss.loss * weight)
            losses.append(loss)
        if grpo.anchor_coef > 0:
            assert self.reference is not None
            anchor = anchor_loss(self.model, self.reference, self.clips.sampler, rollout)  # every level of inference
            self.optimizer.backward(grpo.anchor_coef * anchor / self.num_parts)
            losses = [replace(loss, loss=loss.loss + grpo.anchor_coef * anchor, anchor=anchor) for loss in losses]
        return losses

    def _surrogates(
        self, rollout: GroupRollout, credited: Tensor
    ) -> Iterator[tuple[PolicyLoss, RolloutStep, slice, ModelOutput]]:
        """The policy's loss in parts that each need one forward pass, with the step, its clips and that pass."""
        if self.engine.differentiable:
            (step,), output = rollout.steps, rollout.output
            assert output is not None
            guided = output.guided(self.sampler.guidance(step.sample, output.uncond, step.sigma))
            b = self.sampler.coefficients(step.step_index).b
            with torch.no_grad():
                log_prob = self.engine.log_prob(step, step.prev_sample, step.sample, output)
            loss = pathwise_surrogate(guided, credited, b=b)
            yield _replayed(loss, log_prob, step.log_prob), step, slice(0, len(credited)), output
            return
        for step, clips, log_prob, output in self.engine.log_probs(rollout):
            # a pass that drew the group is the old policy: its ratio is 1 by construction, not by luck
            old = log_prob.detach() if output is rollout.output else step.log_prob[clips]
            clip_range = self.config.grpo.clip_range
            loss = clipped_surrogate(log_prob, old, credited[clips], clip_range=clip_range)
            yield _replayed(loss, log_prob, step.log_prob[clips]), step, clips, output

    def _kl(self, rollout: GroupRollout, sample: Tensor, step_index: int, clips: slice, output: ModelOutput) -> Tensor:
        """KL divergence of the policy from the base at one step, with gradient to the policy."""
        assert self.reference is not None
        rows = torch.arange(clips.start, clips.stop, device=sample.device)
        if sample.ndim == 6:
            sample, rows = sample.flatten(0, 1), rows.repeat_interleave(sample.shape[1])
        condition, sigma = rollout.condition.index_select(rows), self.sampler.sigmas[step_index]
        with torch.no_grad():
            denoise = self.model.denoiser(condition, guidance=self.sampler.guides, model=self.reference)
            base = ModelOutput(*denoise(sample, sigma, None))
        scale = self.sampler.guidance(sample, output.uncond, sigma)
        coefficients = self.sampler.coefficients(step_index)
        return gaussian_kl(output.guided(scale), base.guided(scale), b=coefficients.b, sigma_up=coefficients.sigma_up)

    def _record(
        self, losses: list[PolicyLoss], scores: list[Rewards], worst: dict[str, Tensor], seconds: Mapping[str, float]
    ) -> dict[str, Any]:
        """Metrics of one iteration, over all processes."""
        rewards = torch.cat([score.total for score in scores])  # [B, G, F] of this process
        spread, compared = rewards.std(dim=1), compared_rewards(rewards, self.config.grpo.credit)
        num_ratios = sum(loss.num_ratios for loss in losses)

        def mean(name: str) -> Tensor:
            """Mean over ratios: steps whose samples the group does not share come in smaller parts than others."""
            return torch.stack([getattr(loss, name).detach() * loss.num_ratios for loss in losses]).sum() / num_ratios

        local = {
            "loss": mean("loss"),
            "reward_mean": rewards.mean(),
            "reward_std": spread.mean(),
            "zero_std_fraction": is_flat(compared).float().mean(),
            "rounding_fraction": (is_flat(compared, ulps=ROUNDING_ULPS) & ~is_flat(compared)).float().mean(),
            **{name: torch.cat([score.parts[name] for score in scores]).mean() for name in scores[0].parts},
            **{name: mean(name) for name in ("ratio_mean", "approx_kl", "clip_fraction")},
            **{name: mean(name) for name in ("kl", "anchor") if getattr(losses[0], name) is not None},
        }
        worst = {"ratio_max_dev": torch.stack([loss.ratio_max_dev for loss in losses]).max(), **worst}
        of_all = self.accelerator.gather(torch.stack([value.float() for value in worst.values()]))
        return {
            **reduced(local, self.accelerator),
            **dict(zip(worst, of_all.view(-1, len(worst)).amax(0).tolist(), strict=True)),
            **seconds,
            "samples_per_s": self.config.grpo.batch_size * self.config.grpo.num_generations / sum(seconds.values()),
            "peak_memory_mb": peak_memory_mb(),
        }


def check_finite(scores: Sequence[Rewards], clip_ids: Sequence[str], what: str, accelerator: Accelerator) -> None:
    """Refuse rewards that are not finite, before an update is made from them. Every process refuses those of any.

    Args:
        scores: rewards of each part of the batch.
        clip_ids: the clips of all parts.
        what: the iteration.
        accelerator: this process among the others.

    Raises:
        NonFiniteError: there is one; the message names the reward and the clips.
    """
    is_finite = torch.isfinite(torch.cat([score.total for score in scores])).flatten(1).all(1)  # [B]
    is_odd = ~is_finite
    if not total(is_odd.sum(), accelerator):
        return
    message = None
    if is_odd.any():
        parts = scores[0].parts
        names = [name for name in parts if not all(torch.isfinite(score.parts[name]).all() for score in scores)]
        clips = ", ".join([clip for clip, good in zip(clip_ids, is_finite.tolist(), strict=True) if not good][:3])
        message = f"{what}: reward {', '.join(names) or 'total'} is not finite for clip {clips}"
    messages = gathered(message) if accelerator.num_processes > 1 else [message]
    raise NonFiniteError(next(filter(None, messages)))


def _replayed(loss: PolicyLoss, log_prob: Tensor, drawn: Tensor) -> PolicyLoss:  # [b, G, F] each
    """With the largest deviation of the log-probabilities from those that the draws came with."""
    return replace(loss, replay_max_dev=(log_prob.detach() - drawn).abs().max())
