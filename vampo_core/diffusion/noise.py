"""Independent streams of counter-based noise drawn from one seed."""

import torch
from torch import Tensor

from vampo_core.ops._checks import check_int
from vampo_core.ops.philox import philox_normal

INITIAL_NOISE_STREAM = 0
_MASK = (1 << 64) - 1


def stream_seed(seed: int, stream: int) -> int:
    """Key of one of the independent noise streams of ``seed``: SplitMix64 (Steele et al. 2014), cut to 63 bits.

    Stream 0 is the initial noise, stream ``1 + i`` the noise of sampling step ``i``.
    """
    seed = check_int("seed", seed, minimum=0, maximum=2**63 - 1)
    z = (seed + (stream + 1) * 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return (z ^ (z >> 31)) >> 1


def antithetic_normal(
    shape: tuple[int, ...],  # (B, G, F, C, H, W)
    *,
    seed: int,
    first_clip: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:  # [B, G, F, C, H, W]
    """Standard normal noise in pairs ``z, -z`` along G: generations ``2i`` and ``2i + 1``; an odd last one is lone."""
    num_generations = shape[1]
    half_shape = (shape[0], (num_generations + 1) // 2, *shape[2:])
    half = philox_normal(half_shape, seed=seed, first_clip=first_clip, dtype=dtype, device=device)
    return torch.stack([half, -half], dim=2).flatten(1, 2)[:, :num_generations].contiguous()
