"""Solvers of the deterministic steps: each is a short function that returns the step of one trajectory.

``solver(settings)`` is called once for each chunk of rows. What it returns is called for every deterministic step in
turn, so a multistep solver may keep earlier outputs in its closure; its history begins where a group splits.
"""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from vampo_core.diffusion.settings import EulerHybridSettings
from vampo_core.ops import hybrid_euler_step


class SolverStep(Protocol):
    """One deterministic step of a chunk of rows."""

    def __call__(
        self,
        sample: Tensor,  # [N, F, C, H, W]
        model_output: Tensor,  # like sample
        model_output_uncond: Tensor | None,  # like sample; None without guidance
        index: int,
        *,
        out: Tensor,  # like sample; may be sample itself
    ) -> Tensor:  # out
        """Go from ``sigmas[index]`` to ``sigmas[index + 1]``."""
        ...


Solver = Callable[[EulerHybridSettings], SolverStep]


def euler(settings: EulerHybridSettings) -> SolverStep:
    """Euler's method on the probability-flow ODE (Karras et al. 2022, algorithm 1 without the correction)."""

    def step(
        sample: Tensor, model_output: Tensor, model_output_uncond: Tensor | None, index: int, *, out: Tensor
    ) -> Tensor:
        return hybrid_euler_step(
            sample,
            model_output,
            sigma=settings.sigmas[index],
            sigma_next=settings.sigmas[index + 1],
            prediction_type=settings.prediction_type,
            model_output_uncond=model_output_uncond,
            guidance_scale=settings.guidance(sample, model_output_uncond),
            out=out,
        ).prev_sample

    return step


SOLVERS: dict[str, Solver] = {"euler": euler}
"""Solvers by the name that ``EulerHybridSampler(solver=...)`` takes."""
