"""A denoiser of the change from the first frame, as a denoiser of the latents themselves."""

from torch import Tensor

from vampo_core.ops.coefficients import PredictionType, denoiser_scalings


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
