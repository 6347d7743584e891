"""Fits the linear patch transform: principal components of patches, and the least-squares way back."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_CHUNK = 64  # frames at a time: the moments below never need all patches in memory


class PatchTransform(NamedTuple):
    encoder_weight: Tensor  # [C, 3pp]
    encoder_bias: Tensor  # [C]
    decoder_weight: Tensor  # [3pp, 9C]
    decoder_bias: Tensor  # [3pp]


def fit_patch_transform(
    frames: Tensor,  # [N, 3, H, W], float in [0, 1] or uint8
    patch_size: int,
    latent_channels: int,
) -> PatchTransform:
    """Whitened principal components, and the linear decoder from 3x3 latents that minimizes the squared error.

    Raises:
        ValueError: the patches vary in fewer directions than ``latent_channels``.
    """
    mean, covariance = _moments(frames, patch_size)
    variances, components = torch.linalg.eigh(covariance)
    variances = variances.flip(0)[:latent_channels]
    components = components.flip(1)[:, :latent_channels].T  # [C, 3pp]
    rank = int((variances > 1e-10).sum())
    if rank < latent_channels:
        raise ValueError(
            f"latent_channels is {latent_channels}, but the patches of these {frames.shape[0]} frames vary in "
            f"{rank} directions, expected at least as many"
        )
    # an eigenvector's sign is arbitrary: the entry of largest magnitude is made positive
    largest = components.gather(1, components.abs().argmax(1, keepdim=True))
    weight = components * largest.sign() / variances.sqrt().unsqueeze(1)
    bias = -weight @ mean
    decoder = _fit_decoder(frames, patch_size, weight, bias)
    return PatchTransform(weight.float(), bias.float(), decoder[:, :-1].float(), decoder[:, -1].float())


def _patches(frames: Tensor, patch_size: int) -> Tensor:
    """``[n, 3, H, W]`` to ``[n, 3pp, h, w]`` in float64."""
    values = frames.cpu().double()
    if frames.dtype == torch.uint8:
        values = values / 255
    return F.pixel_unshuffle(values, patch_size)


def _moments(frames: Tensor, patch_size: int) -> tuple[Tensor, Tensor]:
    pixels = 3 * patch_size**2
    total, square, count = torch.zeros(pixels).double(), torch.zeros(pixels, pixels).double(), 0
    for part in frames.split(_CHUNK):
        rows = _patches(part, patch_size).transpose(0, 1).flatten(1) - 0.5  # [3pp, M]; centered for precision
        total += rows.sum(1)
        square += rows @ rows.T
        count += rows.shape[1]
    mean = total / count
    return mean + 0.5, square / count - torch.outer(mean, mean)


def _fit_decoder(frames: Tensor, patch_size: int, weight: Tensor, bias: Tensor) -> Tensor:  # [3pp, 9C + 1]
    """Solve the normal equations of ``patch = D [3x3 latents, 1]``, zero latents beyond the border."""
    channels, pixels = weight.shape
    gram = torch.zeros(9 * channels + 1, 9 * channels + 1).double()
    cross = torch.zeros(9 * channels + 1, pixels).double()
    for part in frames.split(_CHUNK):
        patches = _patches(part, patch_size)
        latents = torch.einsum("cp,nphw->nchw", weight, patches) + bias.view(1, -1, 1, 1)
        context = F.unfold(latents, 3, padding=1)  # [n, 9C, h * w]
        context = torch.cat([context, torch.ones_like(context[:, :1])], 1).transpose(0, 1).flatten(1)
        gram += context @ context.T
        cross += context @ patches.flatten(2).transpose(1, 2).flatten(0, 1)
    ridge = 1e-6 * gram.diagonal().mean() * torch.eye(gram.shape[0]).double()
    return torch.linalg.solve(gram + ridge, cross).T
