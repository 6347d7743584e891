"""Noise levels of a sampling run. They stay Python floats: the loop never synchronizes with a device."""

import math
from typing import Literal, get_args

from vampo_core.ops._checks import check_float, check_int

SigmaSchedule = Literal["karras", "exponential", "linear", "flow", "flow_karras"]


def make_sigmas(
    num_inference_steps: int,
    *,
    sigma_min: float,
    sigma_max: float,
    rho: float = 7.0,
    schedule: SigmaSchedule = "karras",
    flow_shift: float = 1.0,
) -> tuple[float, ...]:  # num_inference_steps + 1
    """Decreasing noise levels from ``sigma_max`` to ``sigma_min``, then 0.

    - ``"karras"``: ``(sigma_max^(1/rho) + t (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho`` (Karras et al. 2022, eq. 5)
    - ``"exponential"``: evenly spaced in log sigma
    - ``"linear"``: evenly spaced in sigma
    - ``"flow_karras"``: Karras levels of ``sigma / (1 - sigma)``, which is EDM's sigma, as in diffusers'
      ``UniPCMultistepScheduler(use_flow_sigmas=True, use_karras_sigmas=True)``

    with ``t = i / (num_inference_steps - 1)``, or

    - ``"flow"``: evenly spaced in u, with ``sigma = shift u / (1 + (shift - 1) u)`` (Esser et al. 2024, eq. 23), where
      the step to ``sigma_min`` goes to 0 instead: ``t = i / num_inference_steps``, as in diffusers'
      ``UniPCMultistepScheduler(use_flow_sigmas=True)``.

    One step goes from ``sigma_max`` straight to 0.

    Args:
        num_inference_steps: number of denoiser evaluations (N), at least 1.
        sigma_min: smallest noise level above 0.
        sigma_max: largest noise level, above ``sigma_min``.
        rho: exponent of the Karras schedule; a larger one spends more steps at small noise.
        schedule: spacing: ``"karras"``, ``"exponential"``, ``"linear"``, ``"flow"`` or ``"flow_karras"``.
        flow_shift: shift of the flow schedule; a larger one spends more steps at large noise.

    Raises:
        TypeError: an argument is no number.
        ValueError: an argument is out of range.
    """
    steps = check_int("num_inference_steps", num_inference_steps, minimum=1)
    sigma_min, sigma_max = check_float("sigma_min", sigma_min), check_float("sigma_max", sigma_max)
    if not 0 < sigma_min < sigma_max:
        raise ValueError(f"sigma_min is {sigma_min}, expected 0 < sigma_min < sigma_max = {sigma_max}")
    rho = check_float("rho", rho)
    if not rho > 0:
        raise ValueError(f"rho is {rho}, expected a number above 0")
    flow_shift = check_float("flow_shift", flow_shift)
    if not flow_shift > 0:
        raise ValueError(f"flow_shift is {flow_shift}, expected a number above 0")
    ramp = [i / max(steps - 1, 1) for i in range(steps)]
    if schedule == "karras":
        sigmas = _karras(ramp, sigma_max, sigma_min, rho)
    elif schedule == "flow_karras":
        if sigma_max >= 1:
            raise ValueError(f"sigma_max is {sigma_max} with schedule = 'flow_karras', expected less than 1")
        ratios = _karras(ramp, sigma_max / (1 - sigma_max), sigma_min / (1 - sigma_min), rho)
        sigmas = [level_of_flow(ratio) for ratio in ratios]
    elif schedule == "exponential":
        start, end = math.log(sigma_max), math.log(sigma_min)
        sigmas = [math.exp(start + t * (end - start)) for t in ramp]
    elif schedule == "linear":
        sigmas = [sigma_max + t * (sigma_min - sigma_max) for t in ramp]
    elif schedule == "flow":
        if sigma_max > 1:
            raise ValueError(f"sigma_max is {sigma_max} with schedule = 'flow', expected at most 1")
        start, end = (shifted(sigma, 1 / flow_shift) for sigma in (sigma_max, sigma_min))
        sigmas = [sigma_max, *(shifted(start + i / steps * (end - start), flow_shift) for i in range(1, steps))]
    else:
        raise ValueError(f"schedule is {schedule!r}, expected one of {', '.join(get_args(SigmaSchedule))}")
    return (*sigmas, 0.0)


def shifted(sigma: float, shift: float) -> float:
    """``sigma / (1 - sigma)`` times ``shift``, as a noise level of a flow; ``1 / shift`` is the way back."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def level_of_flow(sigma: float) -> float:
    """The noise level of a flow that has the signal-to-noise ratio of EDM's ``sigma``."""
    return sigma / (1 + sigma)


def _karras(ramp: list[float], start: float, end: float, rho: float) -> list[float]:
    start, end = start ** (1 / rho), end ** (1 / rho)
    return [(start + t * (end - start)) ** rho for t in ramp]
