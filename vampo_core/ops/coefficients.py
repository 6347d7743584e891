"""Scalars of one Euler step, computed on the host in float64."""

import functools
import math
from typing import Literal, NamedTuple

import torch

from vampo_core.ops._checks import check_float

PredictionType = Literal["v_prediction", "epsilon", "sample", "flow_prediction"]


class EulerCoefficients(NamedTuple):
    """One (ancestral) Euler step as an affine map: ``prev_sample = a * sample + b * model_output + sigma_up * z``."""

    a: float
    b: float
    sigma_up: float


def denoiser_scalings(sigma: float, prediction_type: PredictionType) -> tuple[float, float]:
    """Return ``(c_skip, c_out)`` with ``denoised = c_skip * sample + c_out * model_output``.

    Source: Karras et al. 2022 (EDM), table 1; the parameterisations are those of diffusers'
    ``EulerDiscreteScheduler`` for noise levels ``sample = x_0 + sigma * noise``. ``"flow_prediction"`` is the velocity
    ``noise - x_0`` of rectified flow (Liu et al. 2022), whose ``sample = (1 - sigma) * x_0 + sigma * noise``.

    Raises:
        ValueError: unknown ``prediction_type``.
    """
    if prediction_type == "v_prediction":
        return 1 / (sigma * sigma + 1), -sigma / math.sqrt(sigma * sigma + 1)
    if prediction_type == "epsilon":
        return 1.0, -sigma
    if prediction_type == "sample":
        return 0.0, 1.0
    if prediction_type == "flow_prediction":
        return 1.0, -sigma
    raise ValueError(
        f"prediction_type is {prediction_type!r}, expected 'v_prediction', 'epsilon', 'sample' or 'flow_prediction'"
    )


def ancestral_split(sigma: float, sigma_next: float, eta: float) -> tuple[float, float]:
    """Return ``(sigma_down, sigma_up)`` with ``sigma_down**2 + sigma_up**2 = sigma_next**2``.

    Source: k-diffusion ``get_ancestral_step``; ``eta = 0`` is the deterministic Euler step.
    """
    variance = sigma_next * sigma_next * ((sigma - sigma_next) * (sigma + sigma_next)) / (sigma * sigma)
    sigma_up = min(sigma_next, eta * math.sqrt(variance))
    return math.sqrt(max(sigma_next * sigma_next - sigma_up * sigma_up, 0.0)), sigma_up


def flow_split(sigma: float, sigma_next: float, eta: float) -> tuple[float, float]:
    """:func:`ancestral_split` of a rectified flow, whose samples are EDM's at ``sigma / (1 - sigma)``, scaled by
    ``1 - sigma``; defined at ``sigma = 1``, too, where EDM's noise level is infinite.

    ``sigma_up`` is ``(1 - sigma_next)`` times EDM's, written without dividing by ``1 - sigma``.
    """
    ratio = sigma_next * (1 - sigma) / (sigma * (1 - sigma_next))  # of EDM's noise levels
    sigma_up = sigma_next * min(1.0, eta * math.sqrt((1 - ratio) * (1 + ratio)))
    return math.sqrt(max(sigma_next * sigma_next - sigma_up * sigma_up, 0.0)), sigma_up


def euler_coefficients(
    sigma: float, sigma_next: float, eta: float, prediction_type: PredictionType
) -> EulerCoefficients:
    """Coefficients of the step from ``sigma`` to ``sigma_next``.

    Args:
        sigma: current noise level, finite; at most 1 for ``"flow_prediction"``.
        sigma_next: next noise level, ``0 <= sigma_next < sigma``.
        eta: 0 for the deterministic (probability-flow ODE) step, 1 for the ancestral one.
        prediction_type: what the denoiser outputs.

    Raises:
        TypeError: a scalar is no number, or lives on an accelerator (reading it would synchronise).
        ValueError: a scalar is out of range; or ``eta > 0`` with ``sigma_next = 0``, which has no density.
    """
    if not (isinstance(sigma, float) and isinstance(sigma_next, float) and isinstance(eta, float)):
        sigma, sigma_next, eta = (
            check_float("sigma", sigma),
            check_float("sigma_next", sigma_next),
            check_float("eta", eta),
        )
    if torch.compiler.is_compiling():  # Dynamo traces no caches
        return _coefficients(sigma, sigma_next, eta, prediction_type)
    return _cached_coefficients(sigma, sigma_next, eta, prediction_type)


def _coefficients(sigma: float, sigma_next: float, eta: float, prediction_type: PredictionType) -> EulerCoefficients:
    sigma, sigma_next = check_float("sigma", sigma), check_float("sigma_next", sigma_next)
    eta = check_float("eta", eta, minimum=0)
    if not sigma > 0:
        raise ValueError(f"sigma is {sigma}, expected a number above 0")
    if not 0 <= sigma_next < sigma:
        raise ValueError(f"sigma_next is {sigma_next}, expected 0 <= sigma_next < sigma = {sigma}")
    if prediction_type == "flow_prediction" and sigma > 1:
        raise ValueError(f"sigma is {sigma} with prediction_type = 'flow_prediction', expected at most 1")
    c_skip, c_out = denoiser_scalings(sigma, prediction_type)
    split = flow_split if prediction_type == "flow_prediction" else ancestral_split
    sigma_down, sigma_up = split(sigma, sigma_next, eta)
    if eta > 0 and sigma_up == 0:
        raise ValueError(
            f"eta is {eta} with sigma_next = {sigma_next}, expected eta = 0: this step draws no noise, has no density"
        )
    if prediction_type == "flow_prediction":
        # (1 - sigma_next) x_0 + sigma_down noise, with x_0 = x - sigma m and noise = x + (1 - sigma) m
        a = 1 - sigma_next + sigma_down
        return EulerCoefficients(a, b=(1 - sigma) * sigma_down - sigma * (1 - sigma_next), sigma_up=sigma_up)
    r = (sigma_down - sigma) / sigma
    return EulerCoefficients(a=1 + r * (1 - c_skip), b=-r * c_out, sigma_up=sigma_up)


_cached_coefficients = functools.lru_cache(maxsize=1024)(_coefficients)
