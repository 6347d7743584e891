"""Settings of an Euler Hybrid sampling run, and the scalars that follow from them."""

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from vampo_core.diffusion.process import EDM, Process
from vampo_core.diffusion.sigmas import SigmaSchedule, make_sigmas
from vampo_core.ops._checks import check_float, check_int
from vampo_core.ops.coefficients import EulerCoefficients, PredictionType


@dataclass(frozen=True, kw_only=True)
class EulerHybridSettings:
    """Schedule, stochasticity and guidance of :class:`EulerHybridSampler`."""

    num_inference_steps: int = 8
    """Denoiser evaluations N of one run."""
    sigma_min: float = 0.002
    """Smallest noise level above 0."""
    sigma_max: float = 80.0
    """Largest noise level (SVD: 700)."""
    rho: float = 7.0
    """Exponent of the Karras schedule."""
    schedule: SigmaSchedule = "karras"
    """Spacing of the noise levels: ``"karras"``, ``"exponential"`` or ``"linear"``."""
    eta: float = 1.0
    """Noise of the stochastic steps: 1 is the full ancestral step, 0 makes every step deterministic."""
    stochastic_steps: tuple[int, ...] = (0,)
    """Indices of the steps that draw noise; the last step, to noise level 0, cannot."""
    prediction_type: PredictionType = "v_prediction"
    """What the denoiser outputs: ``"v_prediction"``, ``"epsilon"`` or ``"sample"``."""
    guidance_scale: float = 1.0
    """Classifier-free guidance of the last frame; 1 with ``min_guidance_scale`` 1 is none."""
    min_guidance_scale: float = 1.0
    """Guidance of the first frame; linear over the frames in between (SVD). Equal to the other for a constant."""
    solver: str = "euler"
    """Solver of the deterministic steps, a key of ``vampo_core.diffusion.solvers.SOLVERS``."""
    process: Process = field(default_factory=EDM)
    """Noising process of the model."""
    unit_variance_start: bool = True
    """Initial noise of standard deviation sqrt(sigma_max^2 + 1), data included (SVD), instead of sigma_max."""

    def __post_init__(self) -> None:
        check_float("eta", self.eta, minimum=0)
        check_float("guidance_scale", self.guidance_scale, minimum=0)
        check_float("min_guidance_scale", self.min_guidance_scale, minimum=0)
        steps = tuple(sorted({check_int("stochastic_steps", i, minimum=0) for i in self.stochastic_steps}))
        object.__setattr__(self, "stochastic_steps", steps)
        assert self.sigmas  # checks the schedule's own arguments
        self.process.scalings(self.sigma_max, self.prediction_type)  # checks the prediction type
        if steps and steps[-1] > self.num_inference_steps - 2:
            raise ValueError(
                f"stochastic_steps is {steps}, expected indices of at most num_inference_steps - 2 = "
                f"{self.num_inference_steps - 2}: the last step, to noise level 0, has no density"
            )

    @cached_property
    def sigmas(self) -> tuple[float, ...]:
        """The N + 1 noise levels, the last one 0."""
        return make_sigmas(
            self.num_inference_steps,
            sigma_min=self.sigma_min,
            sigma_max=self.sigma_max,
            rho=self.rho,
            schedule=self.schedule,
        )

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the initial noise."""
        return self.process.start_std(self.sigmas[0], unit_variance=self.unit_variance_start)

    @property
    def uses_guidance(self) -> bool:
        """Whether the denoiser has to return an unconditional output too."""
        return not self.guidance_scale == self.min_guidance_scale == 1

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

    def guidance(self, sample: Tensor, uncond: Tensor | None) -> Tensor | None:  # [F]
        """Guidance scale per frame, of the sample's device and dtype."""
        if self.uses_guidance != (uncond is not None):
            given = "no unconditional output" if uncond is None else "an unconditional output"
            raise ValueError(
                f"{given} with guidance_scale = {self.guidance_scale} and min_guidance_scale = "
                f"{self.min_guidance_scale}, expected one exactly where a scale differs from 1"
            )
        if uncond is None:
            return None
        return torch.linspace(
            self.min_guidance_scale, self.guidance_scale, sample.shape[1], dtype=sample.dtype, device=sample.device
        )
