"""What noise does to data: how it is added, where sampling starts, and the scalars of a step."""

import math
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from vampo_core.ops.coefficients import EulerCoefficients, PredictionType, denoiser_scalings, euler_coefficients

Level = TypeVar("Level", float, Tensor)
FLOW_PREDICTION: PredictionType = "flow_prediction"


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

    def log_step(self, sigma: float, sigma_next: float) -> float:
        """Length of a step in half the logarithm of the signal-to-noise ratio, above 0; may be infinite."""
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

    def log_step(self, sigma: float, sigma_next: float) -> float:
        """``ln(sigma / sigma_next)``."""
        return math.log(sigma / sigma_next)

    def start_std(self, sigma_max: float, *, unit_variance: bool) -> float:
        """``sigma_max``, or with data of unit variance counted in (SVD) ``sqrt(sigma_max^2 + 1)``."""
        return (sigma_max**2 + unit_variance) ** 0.5

    def coefficients(
        self, sigma: float, sigma_next: float, eta: float, prediction_type: PredictionType
    ) -> EulerCoefficients:
        """Scalars of the (ancestral) Euler step, see :func:`euler_coefficients`."""
        return euler_coefficients(sigma, sigma_next, eta, prediction_type)

    def scalings(self, sigma: float, prediction_type: PredictionType) -> tuple[float, float]:
        """Karras et al. 2022, table 1, see :func:`denoiser_scalings`.

        Raises:
            ValueError: the prediction type is unknown, or that of a flow.
        """
        if prediction_type == FLOW_PREDICTION:
            raise ValueError(f"prediction_type is {FLOW_PREDICTION!r}, expected process=Flow() with it")
        return denoiser_scalings(sigma, prediction_type)

    def training_sigmas(self, draws: Tensor, mean: float, std: float) -> Tensor:
        """Log-normal noise levels (Karras et al. 2022, table 1): ``exp(mean + std * draws)``."""
        return torch.exp(mean + std * draws)

    def model_time(self, sigma: Level) -> Level:
        """``ln(sigma) / 4`` (Karras et al. 2022, table 1, c_noise)."""
        return sigma.log() / 4 if isinstance(sigma, Tensor) else math.log(sigma) / 4


@dataclass(frozen=True)
class Flow:
    """Rectified flow (Liu et al. 2022, Lipman et al. 2023): ``x = (1 - sigma) x0 + sigma * noise``.

    Wan, Cosmos-Predict2.5 and LTX use it. Sampling goes from sigma = 1, pure noise, to 0. Its samples are those of
    :class:`EDM` at ``sigma / (1 - sigma)``, scaled by ``1 - sigma``.
    """

    num_train_timesteps: int = 1000
    """Model time of pure noise."""

    def noisy(
        self,
        latents: Tensor,  # [N, ...], clean
        noise: Tensor,  # like latents
        sigma: Tensor,  # [N]
    ) -> Tensor:  # like latents
        """Interpolate between data and standard normal noise."""
        return torch.lerp(latents, noise, sigma.view(-1, *(1,) * (latents.ndim - 1)))

    def log_step(self, sigma: float, sigma_next: float) -> float:
        """``ln(r / r_next)`` with ``r = sigma / (1 - sigma)``; infinite from ``sigma = 1``."""
        return math.inf if sigma == 1 else math.log(sigma * (1 - sigma_next) / (sigma_next * (1 - sigma)))

    def start_std(self, sigma_max: float, *, unit_variance: bool) -> float:
        """1: sampling starts from pure noise."""
        return 1.0

    def coefficients(
        self, sigma: float, sigma_next: float, eta: float, prediction_type: PredictionType
    ) -> EulerCoefficients:
        """Scalars of the (ancestral) Euler step, see :func:`euler_coefficients`."""
        return euler_coefficients(sigma, sigma_next, eta, prediction_type)

    def scalings(self, sigma: float, prediction_type: PredictionType) -> tuple[float, float]:
        """``(1, -sigma)``: the model returns ``noise - x0``.

        Raises:
            ValueError: the prediction type is another one, or the noise level above 1.
        """
        if prediction_type != FLOW_PREDICTION:
            raise ValueError(
                f"prediction_type is {prediction_type!r} with process=Flow(), expected {FLOW_PREDICTION!r}"
            )
        if sigma > 1:
            raise ValueError(f"sigma is {sigma} with process=Flow(), expected at most 1")
        return denoiser_scalings(sigma, prediction_type)

    def training_sigmas(self, draws: Tensor, mean: float, std: float) -> Tensor:
        """Logit-normal noise levels (Esser et al. 2024, section 3.1); a shift adds its logarithm to the mean."""
        return torch.sigmoid(mean + std * draws)

    def model_time(self, sigma: Level) -> Level:
        """``num_train_timesteps * sigma``."""
        return self.num_train_timesteps * sigma
