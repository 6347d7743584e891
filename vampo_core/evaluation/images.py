"""PSNR and SSIM of frames, computed as in Wang et al. 2004 and scikit-image."""

import torch
from torch import Tensor
from torch.nn import functional

_RADIUS, _SIGMA = 5, 1.5
_C1, _C2 = 0.01**2, 0.03**2
_SMALLEST_ERROR = 1e-10


def psnr(
    pred: Tensor,  # [..., 3, H, W] in [0, 1]
    target: Tensor,  # like pred
) -> Tensor:  # [...]
    """Peak signal-to-noise ratio in dB, limited to 100, as it is infinite for equal frames."""
    _check(pred, target)
    error = (pred - target).square().mean((-3, -2, -1))
    return -10 * error.clamp_min(_SMALLEST_ERROR).log10()


def ssim(
    pred: Tensor,  # [..., 3, H, W] in [0, 1]
    target: Tensor,  # like pred
) -> Tensor:  # [...]
    """Structural similarity with a Gaussian window of 11x11 pixels: the mean over channels and over all positions
    at which the window lies inside the frame.

    Raises:
        ValueError: frames differ in shape, or are smaller than the window.
    """
    _check(pred, target)
    window = 2 * _RADIUS + 1
    if min(pred.shape[-2:]) < window:
        raise ValueError(f"frames are {pred.shape[-2]}x{pred.shape[-1]}, expected at least {window}x{window} for SSIM")
    x, y = (frames.reshape(-1, 1, *frames.shape[-2:]).float() for frames in (pred, target))
    mean_x, mean_y, mean_xx, mean_yy, mean_xy = _blur(torch.cat([x, y, x * x, y * y, x * y])).chunk(5)
    var_x, var_y, cov = mean_xx - mean_x**2, mean_yy - mean_y**2, mean_xy - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x**2 + mean_y**2 + _C1)
    structure = (2 * cov + _C2) / (var_x + var_y + _C2)
    return (luminance * structure).mean((-2, -1)).view(pred.shape[:-2]).mean(-1)


def _blur(images: Tensor) -> Tensor:  # [N, 1, H, W] -> [N, 1, H - 10, W - 10]
    weights = torch.exp(-0.5 * (torch.arange(-_RADIUS, _RADIUS + 1, device=images.device) / _SIGMA) ** 2)
    weights = weights / weights.sum()
    return functional.conv2d(functional.conv2d(images, weights.view(1, 1, 1, -1)), weights.view(1, 1, -1, 1))


def _check(pred: Tensor, target: Tensor) -> None:
    if pred.shape != target.shape or pred.ndim < 3:
        raise ValueError(
            f"pred has shape {tuple(pred.shape)} and target {tuple(target.shape)}, expected [..., 3, H, W] twice"
        )
