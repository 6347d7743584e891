"""What noise does to data: how it is added, where sampling starts, and the scalars of a step."""

import math
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from vampo_core.ops.coefficients import EulerCoefficients, PredictionType, denoiser_scalings, euler_coefficients

Level = TypeVar("Level", float, Tensor)


class Process(Protocol):
    """A noising process. Noise levels are Python floats, so that the loop never waits for a device."""

    def noisy(self, latents: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """Add standard normal noise to clean latents ``[N, ...]``, at noise level ``sigma`` [N]."""
        ...

    def start_std(self, sigma_max: float, *, unit_variance: bool) -> float:
        """Standard deviation of the latents that sampling starts from."""
        ...

    def coefficients(
        self, sigma: float, sigma_next: float, eta: float, prediction_type: PredictionType
    ) -> EulerCoefficients:
        """Scalars ``(a, b, sigma_up)`` of the step from ``sigma`` to ``sigma_next``."""
        ...

    def scalings(self, sigma: float, prediction_type: PredictionType) -> tuple[float, float]:
        """``(c_skip, c_out)`` with ``denoised = c_skip * sample + c_out * model_output``."""
        ...

    def training_sigmas(self, draws: Tensor, mean: float, std: float) -> Tensor:
        """Noise levels for training from standard normal draws [N]."""
        ...

    def model_time(self, sigma: Level) -> Level:
        """The noise level in the form that the denoiser takes; elementwise for a tensor."""
        ...


@dataclass(frozen=True)
class EDM:
    """The variance-exploding process of EDM (Karras et al. 2022): ``x = x0 + sigma * noise``; SVD and VPP use it."""

    def noisy(
        self,
        latents: Tensor,  # [N, ...], clean
        noise: Tensor,  # like latents
        sigma: Tensor,  # [N]
    ) -> Tensor:  # like latents
        """Add standard normal noise."""
        return latents + sigma.view(-1, *(1,) * (latents.ndim - 1)) * noise

    def start_std(self, sigma_max: float, *, unit_variance: bool) -> float:
        """``sigma_max``, or with data of unit variance counted in (SVD) ``sqrt(sigma_max^2 + 1)``."""
        return (sigma_max**2 + unit_variance) ** 0.5

    def coefficients(
        self, sigma: float, sigma_next: float, eta: float, prediction_type: PredictionType
    ) -> EulerCoefficients:
        """Scalars of the (ancestral) Euler step, see :func:`euler_coefficients`."""
        return euler_coefficients(sigma, sigma_next, eta, prediction_type)

    def scalings(self, sigma: float, prediction_type: PredictionType) -> tuple[float, float]:
        """Karras et al. 2022, table 1, see :func:`denoiser_scalings`."""
        return denoiser_scalings(sigma, prediction_type)

    def training_sigmas(self, draws: Tensor, mean: float, std: float) -> Tensor:
        """Log-normal noise levels (Karras et al. 2022, table 1): ``exp(mean + std * draws)``."""
        return torch.exp(mean + std * draws)

    def model_time(self, sigma: Level) -> Level:
        """``ln(sigma) / 4`` (Karras et al. 2022, table 1, c_noise)."""
        return sigma.log() / 4 if isinstance(sigma, Tensor) else math.log(sigma) / 4
