"""A denoiser of the change from the first frame, as a denoiser of the latents themselves."""

import math

from torch import Tensor

from vampo_core.ops.coefficients import PredictionType, denoiser_scalings

SIGMA_DROWNED = 3.0
"""Noise level above which a small model learns little from the noisy change; moving latents change by about 2."""


def first_frame_share(sigma: float | Tensor, prediction_type: PredictionType) -> float | Tensor:
    """Share of the first frame's latents in the difference between the raw outputs for the latents and for the change.

    With x the noisy latents, f the first frame's and m the raw output for the change, the denoised latents are
    ``f + c_skip (x - f) + c_out m = c_skip x + c_out (m + (1 - c_skip) / c_out f)``.

    Args:
        sigma: one noise level for all rows, or one per row [N].
        prediction_type: meaning of m.

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

    EDM's own scale, the first factor (Karras et al. 2022, table 1), brings any input to unit variance. At large noise
    levels half of the UNet's input channels would then be noise that it has to learn to ignore: its time embedding is
    added to activations and cannot scale the noise down. The second factor does.

    Args:
        sigma: one noise level for all rows, or one per row [N].

    Returns:
        the scale; a tensor [N, 1, 1, 1, 1] for a tensor.
    """
    variance = (sigma * sigma + 1) * (1 + sigma * sigma / SIGMA_DROWNED**2)
    return variance.rsqrt().view(-1, 1, 1, 1, 1) if isinstance(variance, Tensor) else 1 / math.sqrt(variance)
