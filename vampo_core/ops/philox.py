"""Counter-based Gaussian noise in pure PyTorch: the definition that the kernels implement.

Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") keyed by the seed.
Element ``e`` of frame ``f``, generation ``g``, clip ``b`` is word ``e % 4`` of the block with counter
``(e // 4, f, g, b)``, so a draw depends on its own indices alone: not on the batch it is drawn in,
the number of generations beside it, the device or the number of threads.
"""

import math

import torch
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF


def philox4x32_10(counter: list[Tensor], seed: int) -> list[Tensor]:
    """Ten Philox rounds.

    Args:
        counter: four broadcastable int64 tensors holding 32-bit words.
        seed: 64-bit key.

    Returns:
        four int64 tensors holding 32-bit random words.
    """
    key = [seed & _MASK, (seed >> 32) & _MASK]
    x0, x1, x2, x3 = torch.broadcast_tensors(*counter)
    for _ in range(10):
        high0, low0 = _multiply(x0, _MULTIPLIERS[0])
        high1, low1 = _multiply(x2, _MULTIPLIERS[1])
        x0, x1, x2, x3 = high1 ^ x1 ^ key[0], low1, high0 ^ x3 ^ key[1], low0
        key = [(k + increment) & _MASK for k, increment in zip(key, _KEY_INCREMENTS, strict=True)]
    return [x0, x1, x2, x3]


def _multiply(x: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """High and low 32-bit words of a 64-bit product, in steps that fit a signed 64-bit integer."""
    low = x * (factor & 0xFFFF)
    high = x * (factor >> 16) + (low >> 16)
    return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)


def _box_muller(x0: Tensor, x1: Tensor) -> tuple[Tensor, Tensor]:
    """Two 32-bit words to two standard normals; the uniform in the logarithm is rounded to float32 first."""
    u = x0.to(torch.float32) * 2**-32 + 2**-33
    radius = torch.sqrt(-2 * torch.log(u.to(torch.float64)))
    angle = x1.to(torch.float64) * (2 * math.pi * 2**-32)
    return radius * torch.cos(angle), radius * torch.sin(angle)


def philox_normal(
    shape: tuple[int, ...],  # (B, G, F, C, H, W)
    *,
    seed: int,
    first_clip: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:  # [B, G, F, C, H, W]
    """Standard normal noise of the given shape, the noise that ``hybrid_euler_step(seed=...)`` draws.

    Args:
        shape: ``(B, G, F, C, H, W)``.
        seed: key, ``0 <= seed < 2**63``.
        first_clip: index of the first clip within a larger batch, so that parts of a batch draw what the whole would.
        dtype, device: of the result.
    """
    num_clips, num_generations, num_frames = shape[:3]
    frame_size = math.prod(shape[3:])
    num_blocks = (frame_size + 3) // 4
    axes = (first_clip + torch.arange(num_clips), torch.arange(num_generations), torch.arange(num_frames))
    clip, generation, frame, block = torch.meshgrid(*axes, torch.arange(num_blocks), indexing="ij")
    x0, x1, x2, x3 = philox4x32_10([i.to(device) for i in (block, frame, generation, clip)], seed)
    normals = torch.stack([*_box_muller(x0, x1), *_box_muller(x2, x3)], dim=-1)  # [B, G, F, num_blocks, 4]
    return normals.flatten(-2)[..., :frame_size].to(dtype).reshape(shape)
