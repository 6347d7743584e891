"""The Euler Hybrid sampler: stochastic steps where the policy acts, a deterministic ODE everywhere else."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vampo_core.diffusion.rows import chunks, fold, fold_clips
from vampo_core.diffusion.settings import EulerHybridSettings
from vampo_core.diffusion.solvers import SOLVERS, check_solver
from vampo_core.diffusion.streams import INITIAL_NOISE, STEP, stream_seed
from vampo_core.diffusion.trajectory import Denoise, Rollout, RolloutStep
from vampo_core.ops import HybridEulerStep, gaussian_log_prob, hybrid_euler_step, philox_normal
from vampo_core.ops._checks import check_tensor


@dataclass(frozen=True, kw_only=True)
class EulerHybridSampler(EulerHybridSettings):
    """Euler Hybrid sampling (VAMPO, arXiv 2603.19370) of latent videos.

    Up to the first stochastic step a group of G generations shares one path; there it splits into G draws from one
    denoiser output, and every later step runs per generation. A trainer runs the three parts itself, because the
    denoiser output at the split carries its gradient::

        noise = sampler.initial_noise((B, F, C, H, W), seed=seed)
        sample = sampler.prefix(noise, denoise)                        # nothing to do with stochastic_steps=(0,)
        model_output = model(sample, sampler.first_sigma, condition)   # with gradient
        step = sampler.first_step(sample, model_output, num_generations=G, seed=seed)
        latents = sampler.tail(step.prev_sample, denoise).latents

    :meth:`rollout` does the same without gradient, :meth:`sample` is plain inference. Results are ordinary tensors
    without gradient, reproducible from the seed whatever the chunk size or the split of a batch over processes.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        check_solver(self.solver)

    def initial_noise(
        self,
        shape: tuple[int, ...],  # (B, F, C, H, W)
        *,
        seed: int,
        first_clip: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:  # [B, F, C, H, W]
        """Starting latents, one per clip and shared by its group.

        Args:
            shape: shape of the result.
            seed: key of the noise, ``0 <= seed < 2**63``.
            first_clip: index of the first clip within a larger batch: parts of a batch start where the whole would.
            dtype: dtype of the result.
            device: device of the result.
        """
        if len(shape) != 5:
            raise ValueError(f"shape is {tuple(shape)}, expected (B, F, C, H, W)")
        noise = philox_normal(
            (shape[0], 1, *shape[1:]),
            seed=stream_seed(seed, INITIAL_NOISE),
            first_clip=first_clip,
            dtype=dtype,
            device=device,
        )
        noise *= self.init_noise_sigma
        return noise[:, 0]

    def first_step(
        self,
        sample: Tensor,  # [B, F, C, H, W]
        model_output: Tensor,  # like sample
        *,
        num_generations: int,
        seed: int,
        model_output_uncond: Tensor | None = None,  # like sample
        first_clip: int = 0,
        out: Tensor | None = None,  # [B, G, F, C, H, W]
    ) -> HybridEulerStep:
        """The first stochastic step: G draws of every clip and their log-probabilities.

        Returns:
            ``prev_sample`` ``[B, G, F, C, H, W]`` and ``log_prob`` ``[B, G, F]``, without gradient: that flows
            through :meth:`log_prob`.

        Raises:
            ValueError: no step is stochastic, or a shape does not fit.
        """
        index = self.first_stochastic_step
        return self._draw(sample, model_output, model_output_uncond, index, num_generations, seed, first_clip, out)

    def log_prob(
        self,
        prev_sample: Tensor,  # [B, G, F, C, H, W]
        sample: Tensor,  # [B, F, C, H, W], or [B, G, F, C, H, W]
        model_output: Tensor,  # like sample
        *,
        step_index: int | None = None,
        model_output_uncond: Tensor | None = None,  # like sample
    ) -> Tensor:  # [B, G, F]
        """Log-probability of drawn samples, differentiable in the model outputs; by default of the first one.

        Raises:
            ValueError: the step draws no noise, or a shape does not fit.
        """
        index = self.first_stochastic_step if step_index is None else step_index
        if self.eta_at(index) == 0:
            raise ValueError(f"step_index is {index}, expected one of the stochastic steps {self.stochastic_steps}")
        group = prev_sample.shape[:2]
        if sample.ndim == 6:
            sample, prev_sample = fold(sample), fold(prev_sample).unsqueeze(1)
            model_output = fold(model_output)
            model_output_uncond = None if model_output_uncond is None else fold(model_output_uncond)
        log_prob = gaussian_log_prob(
            prev_sample,
            sample,
            model_output,
            sigma=self.sigmas[index],
            sigma_next=self.sigmas[index + 1],
            eta=self.eta,
            prediction_type=self.prediction_type,
            model_output_uncond=model_output_uncond,
            guidance_scale=self.guidance(sample, model_output_uncond, self.sigmas[index]),
        )
        return log_prob.view(*group, log_prob.shape[-1])

    def prefix(
        self,
        noise: Tensor,  # [B, F, C, H, W]
        denoise: Denoise,
        *,
        chunk_size: int | None = None,
    ) -> Tensor:  # like noise
        """The deterministic steps before the first stochastic one; with ``stochastic_steps=(0,)`` there are none."""
        return self._integrate(noise, denoise, 0, self.first_stochastic_step, None, 0, chunk_size)[0]

    def tail(
        self,
        prev_sample: Tensor,  # [B, G, F, C, H, W]
        denoise: Denoise,
        *,
        chunk_size: int | None = None,
        seed: int | None = None,
        first_clip: int = 0,
    ) -> Rollout:
        """All steps after the first stochastic one, under inference mode; ``prev_sample`` is left as it is.

        Args:
            prev_sample: draws of :meth:`first_step`.
            denoise: called on rows ``[N, F, C, H, W]`` folded from B and G, with the clip index of each row.
            chunk_size: number of rows at once, which bounds memory; None for all.
            seed: key of later stochastic steps; needed where there are any.
            first_clip: as in :meth:`initial_noise`.

        Raises:
            ValueError: a later step draws noise and ``seed`` is None.
        """
        check_tensor("prev_sample", prev_sample, "B, G, F, C, H, W")
        start = self.first_stochastic_step + 1
        if len(self.stochastic_steps) > 1 and seed is None:
            raise ValueError(f"seed is None, expected an integer: steps {self.stochastic_steps[1:]} draw noise")
        latents, steps = self._integrate(prev_sample, denoise, start, self.num_steps, seed, first_clip, chunk_size)
        return Rollout(latents, steps)

    def differentiable_tail(
        self,
        prev_sample: Tensor,  # [B, G, F, C, H, W]
        denoise: Denoise,
        *,
        chunk_size: int | None = None,
    ) -> Tensor:  # [B, G, F, C, H, W]
        """:meth:`tail` with gradient to ``prev_sample``, and to whatever the denoiser depends on.

        Args:
            prev_sample: draws of :meth:`first_step`.
            denoise: as in :meth:`tail`.
            chunk_size: number of rows at once. Chunks are computed again in the backward pass, one after the other;
                None keeps the graph of all rows.

        Raises:
            ValueError: a later step draws noise.
        """
        check_tensor("prev_sample", prev_sample, "B, G, F, C, H, W")
        if len(self.stochastic_steps) > 1:
            raise ValueError(f"stochastic_steps is {self.stochastic_steps}, expected one: a later draw has no gradient")

        def run(sample: Tensor, clips: Tensor) -> Tensor:
            solve = SOLVERS[self.solver](self)
            for i in range(self.first_stochastic_step + 1, self.num_steps):
                sample = solve(sample, *denoise(sample, self.sigmas[i], clips), i, out=None)
            return sample

        rows, clip_index = fold_clips(prev_sample)
        if chunk_size is None:
            return run(rows, clip_index).view_as(prev_sample)
        parts = [
            checkpoint(run, rows[part], clip_index[part], use_reentrant=False)
            for part in chunks(rows.shape[0], chunk_size)
        ]
        return torch.cat(parts).view_as(prev_sample)

    def rollout(
        self,
        noise: Tensor,  # [B, F, C, H, W]
        denoise: Denoise,
        *,
        num_generations: int,
        seed: int,
        chunk_size: int | None = None,
        first_clip: int = 0,
    ) -> Rollout:
        """Prefix, first stochastic step and tail in one, without gradient; records every stochastic step.

        Args:
            noise: starting latents from :meth:`initial_noise`.
            denoise: as in :meth:`tail`.
            num_generations: number of generations per clip (G).
            seed: key of every draw.
            chunk_size: as in :meth:`tail`.
            first_clip: as in :meth:`initial_noise`.
        """
        index = self.first_stochastic_step
        sample = self.prefix(noise, denoise, chunk_size=chunk_size)
        clips = torch.arange(sample.shape[0], device=sample.device)
        prev_sample = sample.new_empty((sample.shape[0], num_generations, *sample.shape[1:]))
        log_prob = sample.new_empty(prev_sample.shape[:3])
        with torch.inference_mode():
            for part in chunks(sample.shape[0], chunk_size):
                output, uncond = denoise(sample[part], self.sigmas[index], clips[part])
                first = first_clip + part.start
                step = self._draw(sample[part], output, uncond, index, num_generations, seed, first, prev_sample[part])
                assert step.log_prob is not None
                log_prob[part] = step.log_prob
        tail = self.tail(prev_sample, denoise, chunk_size=chunk_size, seed=seed, first_clip=first_clip)
        first = RolloutStep(index, self.sigmas[index], self.sigmas[index + 1], sample, prev_sample, log_prob)
        return Rollout(tail.latents, (first, *tail.steps))

    def sample(
        self,
        noise: Tensor,  # [N, F, C, H, W]
        denoise: Denoise,
        *,
        seed: int | None = None,
        chunk_size: int | None = None,
        first_clip: int = 0,
    ) -> Tensor:  # [N, F, C, H, W]
        """Latent videos from initial noise, one per row; deterministic, or with ``seed`` drawn as in training."""
        check_tensor("noise", noise, "N, F, C, H, W")
        if seed is None:
            return self._integrate(noise, denoise, 0, self.num_steps, None, 0, chunk_size)[0]
        rollout = self.rollout(
            noise, denoise, num_generations=1, seed=seed, chunk_size=chunk_size, first_clip=first_clip
        )
        return rollout.latents[:, 0]

    def _draw(
        self,
        sample: Tensor,  # [N, F, C, H, W]
        model_output: Tensor,  # [N, F, C, H, W]
        uncond: Tensor | None,  # [N, F, C, H, W]
        index: int,
        num_draws: int,
        seed: int,
        first_row: int,
        out: Tensor | None,  # [N, num_draws, F, C, H, W]
    ) -> HybridEulerStep:
        return hybrid_euler_step(
            sample,
            model_output,
            sigma=self.sigmas[index],
            sigma_next=self.sigmas[index + 1],
            eta=self.eta,
            prediction_type=self.prediction_type,
            model_output_uncond=uncond,
            guidance_scale=self.guidance(sample, uncond, self.sigmas[index]),
            num_generations=num_draws,
            seed=stream_seed(seed, STEP, index),
            first_clip=first_row,
            out=out,
        )

    def _integrate(
        self,
        start_sample: Tensor,  # [B, F, C, H, W], or [B, G, F, C, H, W]
        denoise: Denoise,
        start: int,
        stop: int,
        seed: int | None,  # None: every step is deterministic
        first_clip: int,
        chunk_size: int | None,
    ) -> tuple[Tensor, tuple[RolloutStep, ...]]:
        """Steps ``start`` to ``stop - 1`` of every row, in chunks that each run to the end in one buffer.

        Buffers are made outside inference mode, so that what comes back may enter a loss.
        """
        if start == stop:
            return start_sample, ()
        rows, clip_index = fold_clips(start_sample)
        latents = torch.empty_like(start_sample, memory_format=torch.contiguous_format)
        row_latents = fold(latents) if latents.ndim == 6 else latents
        drawn = [i for i in range(start, stop) if seed is not None and self.eta_at(i) > 0]
        shape = start_sample.shape
        steps = {
            i: RolloutStep(
                i, self.sigmas[i], self.sigmas[i + 1],
                start_sample.new_empty(shape), start_sample.new_empty(shape), start_sample.new_empty(shape[:-3]),
            )
            for i in drawn
        }  # fmt: skip
        first_row = first_clip * (rows.shape[0] // shape[0])
        with torch.inference_mode():
            for part in chunks(rows.shape[0], chunk_size):
                x, solve = rows[part], SOLVERS[self.solver](self)
                for i in range(start, stop):
                    output, uncond = denoise(x, self.sigmas[i], clip_index[part])
                    if i in steps:
                        fold(steps[i].sample)[part] = x
                        prev_sample = fold(steps[i].prev_sample)[part]
                        drawn_step = self._draw(
                            x, output, uncond, i, 1, seed or 0, first_row + part.start, prev_sample.unsqueeze(1)
                        )
                        fold(steps[i].log_prob)[part] = drawn_step.log_prob[:, 0]  # type: ignore[index]
                        x = prev_sample
                    else:
                        x = solve(x, output, uncond, i, out=row_latents[part])
        return latents, tuple(steps.values())
