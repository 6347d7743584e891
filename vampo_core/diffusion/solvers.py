"""Solvers of the deterministic steps: each is a short function that returns the step of one trajectory.

``solver(settings)`` is called once for each chunk of rows. What it returns is called for every deterministic step in
turn, so a multistep solver may keep earlier outputs in its closure; its history begins where a group splits.
"""

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from vampo_core.diffusion.settings import EulerHybridSettings
from vampo_core.diffusion.step import deterministic_step


class SolverStep(Protocol):
    """One deterministic step of a chunk of rows."""

    def __call__(
        self,
        sample: Tensor,  # [N, F, C, H, W]
        output: Tensor,  # of the denoiser, like sample
        uncond: Tensor | None,  # its unconditional output; None without guidance
        index: int,
        *,
        out: Tensor | None,  # like sample; may be sample itself
    ) -> Tensor:  # out, where it is given and no gradient is asked for
        """Go from ``sigmas[index]`` to ``sigmas[index + 1]``; under grad mode differentiable."""
        ...


Solver = Callable[[EulerHybridSettings], SolverStep]


def euler(settings: EulerHybridSettings) -> SolverStep:
    """Euler's method on the probability-flow ODE (Karras et al. 2022, algorithm 1 without the correction)."""

    def step(sample: Tensor, output: Tensor, uncond: Tensor | None, index: int, *, out: Tensor | None) -> Tensor:
        return _euler_step(settings, sample, output, uncond, index, settings.sigmas[index + 1], out)

    return step


def dpmpp_2m(settings: EulerHybridSettings) -> SolverStep:
    """DPM-Solver++(2M), midpoint (Lu et al. 2022, algorithm 2): two clean estimates, extrapolated in log-SNR."""
    return _multistep(settings, corrects=False)


def unipc(settings: EulerHybridSettings) -> SolverStep:
    """UniPC of order 2 with B(h) = e^h - 1 (Zhao et al. 2023): DPM-Solver++(2M), each arrival corrected."""
    return _multistep(settings, corrects=True)


SOLVERS: dict[str, Solver] = {"euler": euler, "dpm++2m": dpmpp_2m, "unipc": unipc}
"""Solvers by the name that ``EulerHybridSampler(solver=...)`` takes."""


def check_solver(name: str) -> None:
    """Refuse a name that no solver has.

    Raises:
        ValueError: there is no such solver.
    """
    if not isinstance(name, str) or name not in SOLVERS:
        raise ValueError(f"solver is {name!r}, expected one of {', '.join(SOLVERS)}")


def _multistep(settings: EulerHybridSettings, *, corrects: bool) -> SolverStep:
    """Second-order steps from clean estimates; the one to noise level 0 is Euler's, to the estimate itself."""
    history = _History()

    def step(sample: Tensor, output: Tensor, uncond: Tensor | None, index: int, *, out: Tensor | None) -> Tensor:
        if settings.sigmas[index + 1] == 0:
            return _euler_step(settings, sample, output, uncond, index, 0.0, out)
        clean = _euler_step(settings, sample, output, uncond, index, 0.0)
        past = history.before(index)
        if corrects and past:
            sample = _corrected(settings, past, clean, index)
        target = _extrapolated(settings, past, clean, index)
        history.add(index, sample, clean)
        return _towards(settings, sample, target, index, out)

    return step


class _History:
    """Samples and clean estimates of the last two steps, as long as these follow each other."""

    def __init__(self) -> None:
        self._next = -1
        self._steps: list[tuple[Tensor, Tensor]] = []

    def before(self, index: int) -> list[tuple[Tensor, Tensor]]:
        """``(sample, clean)`` of the steps right before ``index``, the latest last; none behind a stochastic step."""
        if index != self._next:
            self._steps = []
        return self._steps

    def add(self, index: int, sample: Tensor, clean: Tensor) -> None:
        self._next, self._steps = index + 1, [*self._steps[-1:], (sample, clean)]


def _euler_step(
    settings: EulerHybridSettings,
    sample: Tensor,
    output: Tensor,
    uncond: Tensor | None,
    index: int,
    sigma_next: float,  # 0: the estimate of the clean latents
    out: Tensor | None = None,
) -> Tensor:
    return deterministic_step(
        sample,
        output,
        sigma=settings.sigmas[index],
        sigma_next=sigma_next,
        prediction_type=settings.prediction_type,
        uncond=uncond,
        guidance_scale=settings.guidance(sample, uncond, settings.sigmas[index]),
        out=out,
    )


def _towards(
    settings: EulerHybridSettings, sample: Tensor, target: Tensor, index: int, out: Tensor | None = None
) -> Tensor:
    """``(s / sigma) * sample + (1 - s / sigma) * target``, with s the next noise level: Euler's step to a given x0."""
    sigma, sigma_next = settings.sigmas[index], settings.sigmas[index + 1]
    return deterministic_step(sample, target, sigma=sigma, sigma_next=sigma_next, prediction_type="sample", out=out)


def _log_step(settings: EulerHybridSettings, index: int) -> float:
    """Length of step ``index`` in half the logarithm of the signal-to-noise ratio: ln sigma for EDM."""
    return settings.process.log_step(settings.sigmas[index], settings.sigmas[index + 1])


def _extrapolated(
    settings: EulerHybridSettings, past: list[tuple[Tensor, Tensor]], clean: Tensor, index: int
) -> Tensor:
    """The clean estimate half a step ahead, on the line through the last two."""
    if not past:
        return clean
    ahead = _log_step(settings, index) / (2 * _log_step(settings, index - 1))
    return torch.lerp(past[-1][1], clean, 1 + ahead)


def _corrected(settings: EulerHybridSettings, past: list[tuple[Tensor, Tensor]], clean: Tensor, index: int) -> Tensor:
    """The last step made again, with the clean estimate at its end known too (Zhao et al. 2023, algorithm 5)."""
    sample, before = past[-1]
    if len(past) == 1:
        return _towards(settings, sample, torch.lerp(before, clean, 0.5), index - 1)
    h = _log_step(settings, index - 1)
    phi = math.expm1(-h)
    first = -(phi / h + 1) / phi  # the integrals of 1 and t against e^t that the two estimates have to match
    second = -2 * (first * phi / h + 0.5) / phi
    ratio = -_log_step(settings, index - 2) / h
    weight = (first - second) / (1 - ratio)
    target = torch.lerp(before, clean, first - weight)
    target.add_(past[-2][1] - before, alpha=weight / ratio)
    return _towards(settings, sample, target, index - 1)
