"""One group rollout per clip, and the log-probabilities that carry the gradient."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vampo_core.diffusion.rows import padded
from vampo_core.diffusion.sampler import EulerHybridSampler
from vampo_core.diffusion.trajectory import Denoise, RolloutStep
from vampo_core.models import float8
from vampo_core.models.predictor import Condition, VideoPredictor
from vampo_core.models.settings import as_dtype


@dataclass(frozen=True)
class ModelOutput:
    """The denoiser's output at the split, with its graph where the update reuses it."""

    cond: Tensor  # [B, F, C, h, w]
    uncond: Tensor | None  # [B, F, C, h, w]

    def guided(self, scale: Tensor | None) -> Tensor:  # scale [F]
        """Classifier-free guidance, in float32; the conditional output where there is none."""
        if self.uncond is None or scale is None:
            return self.cond.float()
        return self.uncond.float() + scale.view(-1, 1, 1, 1) * (self.cond.float() - self.uncond.float())


@dataclass(frozen=True)
class GroupRollout:
    """G rollouts of B clips. Steps hold the frames that are predicted, ``latents`` those that the condition gives, too.

    Where the way from the draws to the videos is differentiable, the first step's draws are leaves with gradient.
    """

    batch: Mapping[str, Any]
    condition: Condition
    latents: Tensor  # [B, G, F, C, h, w], predicted
    steps: tuple[RolloutStep, ...]  # every stochastic step, in order
    output: ModelOutput | None  # of the first stochastic step, where the update reuses it
    seed: int  # of the noise
    first_clip: int  # index of the first clip within the global batch

    def detached(self) -> "GroupRollout":
        """The same without the way from draws to videos, once this has been differentiated."""
        if not self.latents.requires_grad:
            return self
        steps = tuple(replace(step, prev_sample=step.prev_sample.detach()) for step in self.steps)
        return replace(self, latents=self.latents.detach(), steps=steps)

    def without_graph(self) -> "GroupRollout":
        """What later epochs need: everything but the output of the first forward pass."""
        return replace(self, output=None)


class RolloutEngine:
    """Runs the sampler on a predictor: one forward pass per clip up to the split, G tails behind it.

    Args:
        model: the predictor.
        sampler: schedule and stochastic steps of the rollout.
        num_generations: number of generations per clip (G).
        chunk_size: rows that the tail works on at once; None for all.
        reuse_first_step: True lets the pass that draws the group carry the gradient too.
        tail_dtype: precision behind the split, as ``sampler.tail_dtype``; None for the predictor's own.
        differentiable: whether videos keep their gradient to the draws.
    """

    def __init__(
        self,
        model: VideoPredictor,
        sampler: EulerHybridSampler,
        *,
        num_generations: int,
        chunk_size: int | None,
        reuse_first_step: bool,
        tail_dtype: str | None = None,
        differentiable: bool = False,
    ) -> None:
        self.model, self.sampler = model, sampler
        self.num_generations, self.chunk_size = num_generations, chunk_size
        self.reuse_first_step, self.tail_dtype = reuse_first_step, tail_dtype
        self.differentiable = differentiable
        self._float8: float8.Float8Copy | None = None  # made for the first rollout
        if differentiable and not reuse_first_step:
            raise ValueError(
                "reuse_first_step is False with differentiable = True, expected True: one pass draws and learns"
            )
        if differentiable and tail_dtype == "float8":
            raise ValueError(
                "tail_dtype is 'float8' with differentiable = True, expected a precision with a derivative"
            )

    def condition(self, batch: Mapping[str, Any]) -> Condition:
        """The clips' condition. The text encoder is part of the environment here, not of the policy."""
        with torch.no_grad():
            return self.model.observed_condition(batch["latents"][:, 0], batch["instruction"])

    def rollout(self, batch: Mapping[str, Any], *, seed: int, first_clip: int = 0) -> GroupRollout:
        """Draw G videos of every clip of ``batch``.

        Args:
            batch: collated clips with ``latents`` ``[B, F, C, h, w]`` and ``instruction``.
            seed: of the noise.
            first_clip: index of the first clip within the global batch, which keys its noise.
        """
        condition, sampler = self.condition(batch), self.sampler
        shape = tuple(self.model.predicted(batch["latents"]).shape)
        frozen = self.environment(condition)
        noise = sampler.initial_noise(
            shape,
            seed=seed,
            first_clip=first_clip,
            device=condition.image_latents.device,
        )
        if not self.reuse_first_step:
            rollout = sampler.rollout(
                noise,
                frozen,
                num_generations=self.num_generations,
                seed=seed,
                chunk_size=self.chunk_size,
                first_clip=first_clip,
            )
            videos = self.model.whole(condition, rollout.latents)
            return GroupRollout(batch, condition, videos, rollout.steps, None, seed, first_clip)
        sample = sampler.prefix(noise, frozen, chunk_size=self.chunk_size)
        output = self.forward(sample, sampler.first_sigma, condition)
        drawn = sampler.first_step(
            sample,
            output.cond,
            num_generations=self.num_generations,
            seed=seed,
            model_output_uncond=output.uncond,
            first_clip=first_clip,
        )
        index = sampler.first_stochastic_step
        assert drawn.log_prob is not None
        if self.differentiable:
            draws = drawn.prev_sample.requires_grad_()
            latents = sampler.differentiable_tail(draws, frozen, chunk_size=self.chunk_size)
            videos = self.model.whole(condition, latents)
            step = RolloutStep(index, sampler.sigmas[index], sampler.sigmas[index + 1], sample, draws, drawn.log_prob)
            return GroupRollout(batch, condition, videos, (step,), output, seed, first_clip)
        tail = sampler.tail(drawn.prev_sample, frozen, chunk_size=self.chunk_size, seed=seed, first_clip=first_clip)
        first = RolloutStep(
            index, sampler.sigmas[index], sampler.sigmas[index + 1], sample, drawn.prev_sample, drawn.log_prob
        )
        videos = self.model.whole(condition, tail.latents)
        return GroupRollout(batch, condition, videos, (first, *tail.steps), output, seed, first_clip)

    def environment(self, condition: Condition) -> Denoise:
        """The denoiser of the rollout: in ``tail_dtype`` behind the split, except where the policy acts again."""
        sampler = self.sampler
        exact = self.model.denoiser(condition, guidance=sampler.guides)
        cheap = exact
        if self.tail_dtype == "float8":
            self._float8 = self._float8 or float8.Float8Copy(self.model)
            tail = self._float8.updated()
            cheap = tail.denoiser(condition, guidance=sampler.guides, dtype=float8.DTYPE)
        elif self.tail_dtype is not None:
            cheap = self.model.denoiser(condition, guidance=sampler.guides, dtype=as_dtype(self.tail_dtype))
        if self.model.is_compiled:
            cheap = padded(cheap, self.chunk_size)  # the last chunk would be compiled too
        policy = {sampler.sigmas[index] for index in sampler.stochastic_steps}

        def denoise(sample: Tensor, sigma: float, clip_index: Tensor | None) -> tuple[Tensor, Tensor | None]:
            is_tail = sigma < sampler.first_sigma and sigma not in policy
            return (cheap if is_tail else exact)(sample, sigma, clip_index)

        return denoise

    def forward(self, sample: Tensor, sigma: float, condition: Condition) -> ModelOutput:
        """The denoiser's output with gradient."""
        denoise = self.model.denoiser(condition, guidance=self.sampler.guides)
        return ModelOutput(*denoise(sample, sigma, None))

    def log_probs(self, rollout: GroupRollout) -> Iterator[tuple[RolloutStep, slice, Tensor, ModelOutput]]:
        """Log-probabilities with gradient of every stochastic step, in parts that each need one forward pass.

        Yields:
            the step, the clips it covers, log-probabilities ``[b, G, F]`` (of one generation each where the step's
            samples are not shared by the group) and the model output behind them. Run backward before going on: the
            next part reuses the memory.
        """
        for number, step in enumerate(rollout.steps):
            if step.sample.ndim == 5:
                everything = slice(0, step.sample.shape[0])
                output = rollout.output if number == 0 else None
                if output is None:
                    output = self.forward(step.sample, step.sigma, rollout.condition)
                yield step, everything, self.log_prob(step, step.prev_sample, step.sample, output), output
                continue
            for clip in range(step.sample.shape[0]):
                rows = rollout.condition.index_select(
                    torch.full((self.num_generations,), clip, device=step.sample.device)
                )
                output = self.forward(step.sample[clip], step.sigma, rows)
                log_prob = self.log_prob(step, step.prev_sample[clip].unsqueeze(1), step.sample[clip], output)
                yield step, slice(clip, clip + 1), log_prob.transpose(0, 1), output

    def log_prob(self, step: RolloutStep, prev_sample: Tensor, sample: Tensor, output: ModelOutput) -> Tensor:
        """Log-probabilities ``[b, G, F]`` of draws under an output of the denoiser."""
        return self.sampler.log_prob(
            prev_sample,
            sample,
            output.cond,
            step_index=step.step_index,
            model_output_uncond=output.uncond,
        )
