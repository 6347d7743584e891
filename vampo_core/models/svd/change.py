"""A denoiser of the change from the first frame, as a denoiser of the latents themselves."""

import math

from torch import Tensor

from vampo_core.ops.coefficients import PredictionType, denoiser_scalings

SIGMA_DROWNED = 3.0
"""Noise level from which on the noisy change tells a small model little; moving latents change by about 2."""


def first_frame_share(sigma: float | Tensor, prediction_type: PredictionType) -> float | Tensor:
    """What of the first frame's latents, per unit, the raw output for the latents has and that for the change has not.

    With x the noisy latents, f the first frame's and m the raw output for the change, the denoised latents are
    ``f + c_skip (x - f) + c_out m = c_skip x + c_out (m + (1 - c_skip) / c_out f)``.

    Args:
        sigma: noise level of all rows, or [N].
        prediction_type: what m is.

    Returns:
        ``(1 - c_skip) / c_out``; a tensor [N, 1, 1, 1, 1] for a tensor.
    """
    if isinstance(sigma, Tensor):
        shares = [first_frame_share(level, prediction_type) for level in sigma.tolist()]
        return sigma.new_tensor(shares).view(-1, 1, 1, 1, 1)
    c_skip, c_out = denoiser_scalings(sigma, prediction_type)
    return (1 - c_skip) / c_out


def input_scale(sigma: float | Tensor) -> float | Tensor:
    """Scale of the noisy change on its way into the UNet, ``((sigma^2 + 1) (1 + (sigma / SIGMA_DROWNED)^2))^(-1/2)``.

    EDM's scale alone (Karras et al. 2022, table 1) brings any input to unit variance, so at large noise levels half
    of the UNet's channels are noise that it has to learn to ignore: its time embedding is added, and cannot turn them
    down. The second factor does.

    Args:
        sigma: noise level of all rows, or [N].

    Returns:
        the scale; a tensor [N, 1, 1, 1, 1] for a tensor.
    """
    variance = (sigma * sigma + 1) * (1 + sigma * sigma / SIGMA_DROWNED**2)
    return variance.rsqrt().view(-1, 1, 1, 1, 1) if isinstance(variance, Tensor) else 1 / math.sqrt(variance)
