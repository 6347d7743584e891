"""Settings of an Euler Hybrid sampling run, and the scalars that follow from them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from vampo_core.diffusion.process import EDM, Process
from vampo_core.diffusion.sigmas import SigmaSchedule, make_sigmas
from vampo_core.ops._checks import check_float, check_int
from vampo_core.ops.coefficients import EulerCoefficients, PredictionType


def check_interval(name: str, value: Sequence[float]) -> tuple[float, float]:
    """``(low, high)``, two noise levels in order.

    Raises:
        TypeError: an element is no number.
        ValueError: there are not two, or they are out of order.
    """
    if not isinstance(value, Sequence) or len(value) != 2:
        raise ValueError(f"{name} is {value!r}, expected [low, high], two noise levels")
    low, high = (check_float(name, level, minimum=0) for level in value)
    if not low <= high:
        raise ValueError(f"{name} is [{low}, {high}], expected low <= high")
    return low, high


def check_tail_steps(tail_steps: int, stochastic_steps: Sequence[int], num_inference_steps: int | None) -> None:
    """Refuse a number of tail steps that the schedule has no place for; None for a schedule that is not known.

    Raises:
        TypeError: it is no integer.
        ValueError: it is out of range.
    """
    if len(stochastic_steps) != 1:
        raise ValueError(
            f"tail_steps is {tail_steps} with stochastic_steps = {list(stochastic_steps)}, expected None: the tail "
            "begins behind a single stochastic step"
        )
    left = None if num_inference_steps is None else num_inference_steps - stochastic_steps[0] - 1
    check_int("tail_steps", tail_steps, minimum=1)
    if left is not None and tail_steps > left > 0:
        raise ValueError(
            f"tail_steps is {tail_steps}, expected at most {left}: what {num_inference_steps} steps leave behind step "
            f"{stochastic_steps[0]}"
        )


@dataclass(frozen=True, kw_only=True)
class EulerHybridSettings:
    """Schedule, stochasticity and guidance of :class:`EulerHybridSampler`."""

    num_inference_steps: int = 8
    """Denoiser evaluations N of one run."""
    sigma_min: float = 0.002
    """Smallest noise level above 0."""
    sigma_max: float = 80.0
    """Largest noise level (SVD: 700; at most 1 for a flow)."""
    rho: float = 7.0
    """Exponent of the Karras schedule."""
    schedule: SigmaSchedule = "karras"
    """Spacing of the noise levels: ``"karras"``, ``"exponential"``, ``"linear"``, ``"flow"`` or ``"flow_karras"``."""
    flow_shift: float = 1.0
    """Shift of the flow schedule towards large noise (Wan2.2-TI2V-5B: 5)."""
    eta: float = 1.0
    """Noise of the stochastic steps: 1 is the full ancestral step, 0 makes every step deterministic."""
    stochastic_steps: tuple[int, ...] = (0,)
    """Indices of the steps that draw noise; the last step, to noise level 0, cannot."""
    prediction_type: PredictionType = "v_prediction"
    """What the denoiser outputs: ``"v_prediction"``, ``"epsilon"`` or ``"sample"``, or ``"flow_prediction"`` with
    ``process=Flow()``."""
    guidance_scale: float = 1.0
    """Classifier-free guidance of the last frame; 1 with ``min_guidance_scale`` 1 is none."""
    min_guidance_scale: float = 1.0
    """Guidance of the first frame; linear over the frames in between (SVD). Equal to the other for a constant."""
    guidance_interval: tuple[float, float] | None = None
    """Noise levels ``(low, high)`` between which guidance acts (Kynkäänniemi et al. 2024); None for all. Outside, the
    unconditional half is not run."""
    solver: str = "euler"
    """Solver of the deterministic steps: ``"euler"``, or ``"dpm++2m"`` or ``"unipc"``, which need fewer steps; a key of
    ``vampo_core.diffusion.solvers.SOLVERS``."""
    tail_steps: int | None = None
    """Denoiser evaluations behind the first stochastic step; None for as many as the schedule has left. Fewer noise
    levels are spaced as the schedule spaces its own."""
    process: Process = field(default_factory=EDM)
    """Noising process of the model."""
    unit_variance_start: bool = True
    """Initial noise of standard deviation sqrt(sigma_max^2 + 1), data included (SVD), instead of sigma_max."""

    def __post_init__(self) -> None:
        check_float("eta", self.eta, minimum=0)
        check_float("guidance_scale", self.guidance_scale, minimum=0)
        check_float("min_guidance_scale", self.min_guidance_scale, minimum=0)
        if self.guidance_interval is not None:
            object.__setattr__(self, "guidance_interval", check_interval("guidance_interval", self.guidance_interval))
        steps = tuple(sorted({check_int("stochastic_steps", i, minimum=0) for i in self.stochastic_steps}))
        object.__setattr__(self, "stochastic_steps", steps)
        self.process.scalings(self.sigma_max, self.prediction_type)  # checks the prediction type
        assert self._levels(self.num_inference_steps, self.sigma_max)  # checks the schedule's own arguments
        if steps and steps[-1] > self.num_inference_steps - 2:
            raise ValueError(
                f"stochastic_steps is {steps}, expected indices of at most num_inference_steps - 2 = "
                f"{self.num_inference_steps - 2}: the last step, to noise level 0, has no density"
            )
        if self.tail_steps is not None:
            check_tail_steps(self.tail_steps, steps, self.num_inference_steps)

    @cached_property
    def sigmas(self) -> tuple[float, ...]:
        """Noise levels, one more than there are steps; the last one is 0."""
        levels = self._levels(self.num_inference_steps, self.sigma_max)
        if self.tail_steps is None:
            return levels
        split = self.stochastic_steps[0] + 1
        if self.tail_steps == self.num_inference_steps - split:
            return levels
        return (*levels[:split], *self._levels(self.tail_steps, levels[split]))

    def _levels(self, num_steps: int, sigma_max: float) -> tuple[float, ...]:
        return make_sigmas(
            num_steps,
            sigma_min=self.sigma_min,
            sigma_max=sigma_max,
            rho=self.rho,
            schedule=self.schedule,
            flow_shift=self.flow_shift,
        )

    @property
    def num_steps(self) -> int:
        """Denoiser evaluations of one video: ``num_inference_steps``, or fewer with ``tail_steps``."""
        return len(self.sigmas) - 1

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the initial noise."""
        return self.process.start_std(self.sigmas[0], unit_variance=self.unit_variance_start)

    @property
    def uses_guidance(self) -> bool:
        """Whether the denoiser has to return an unconditional output too, at some noise level at least."""
        return any(self.guides(sigma) for sigma in self.sigmas[:-1])

    def guides(self, sigma: float) -> bool:
        """Whether guidance acts at a noise level, so that the denoiser has to return an unconditional output too."""
        if self.guidance_scale == self.min_guidance_scale == 1:
            return False
        return self.guidance_interval is None or self.guidance_interval[0] <= sigma <= self.guidance_interval[1]

    @property
    def first_stochastic_step(self) -> int:
        """Index of the step at which a group splits.

        Raises:
            ValueError: no step draws noise.
        """
        if self.eta == 0 or not self.stochastic_steps:
            raise ValueError(
                f"no step draws noise (eta = {self.eta}, stochastic_steps = {self.stochastic_steps}), "
                "expected eta above 0 and at least one stochastic step"
            )
        return self.stochastic_steps[0]

    @property
    def first_sigma(self) -> float:
        """Noise level at which a group splits: where the trained denoiser forward happens."""
        return self.sigmas[self.first_stochastic_step]

    def coefficients(self, step_index: int) -> EulerCoefficients:
        """The scalars (a, b, sigma_up) of one step."""
        return self.process.coefficients(
            self.sigmas[step_index], self.sigmas[step_index + 1], self.eta_at(step_index), self.prediction_type
        )

    def eta_at(self, step_index: int) -> float:
        """``eta`` of one step: 0 where it draws no noise."""
        return self.eta if step_index in self.stochastic_steps else 0.0

    def guidance(self, sample: Tensor, uncond: Tensor | None, sigma: float) -> Tensor | None:  # [F]
        """Guidance scale per frame at a noise level, of the sample's device and dtype; None where guidance is off.

        Raises:
            ValueError: there is an unconditional output where guidance is off, or none where it acts.
        """
        if self.guides(sigma) != (uncond is not None):
            given = "no unconditional output" if uncond is None else "an unconditional output"
            raise ValueError(
                f"{given} at noise level {sigma:g} with guidance_scale = {self.guidance_scale}, min_guidance_scale = "
                f"{self.min_guidance_scale} and guidance_interval = {self.guidance_interval}, expected one exactly "
                "where a scale differs from 1"
            )
        if uncond is None:
            return None
        return torch.linspace(
            self.min_guidance_scale, self.guidance_scale, sample.shape[1], dtype=sample.dtype, device=sample.device
        )
