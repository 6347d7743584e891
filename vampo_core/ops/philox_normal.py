"""Counter-based standard normal noise."""

import torch
from torch import Tensor

from vampo_core import _extension
from vampo_core.ops import reference
from vampo_core.ops._arguments import check_philox_normal
from vampo_core.ops._checks import refuse_capture


def philox_normal(
    shape: tuple[int, ...],  # (B, G, F, C, H, W)
    *,
    seed: int,
    first_clip: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:  # [B, G, F, C, H, W]
    """Standard normal noise from Philox4x32-10 (Salmon et al. 2011), the noise of ``hybrid_euler_step(seed=...)``.

    Element ``e`` of frame ``f``, generation ``g``, clip ``b`` is word ``e % 4`` of the block with counter
    ``(e // 4, f, g, b)`` and the seed as key. A draw depends only on its own indices: not on the batch it is drawn in,
    the number of generations beside it, the device or the number of threads. It is computed in double precision; the
    step's own noise agrees with it to float32 rounding.

    Args:
        shape: shape of the result.
        seed: key, ``0 <= seed < 2**63``.
        first_clip: index of the first clip within a larger batch, so that parts of a batch draw what the whole would.
        dtype: dtype of the result.
        device: device of the result.

    Raises:
        ValueError: a value or the shape is out of range.
        TypeError: an argument has a wrong type.
        RuntimeError: a CUDA graph is being captured, which would repeat the same noise.
    """
    check_philox_normal(shape, seed, first_clip)
    out = torch.empty(shape, dtype=dtype, device=device)
    if dtype not in (torch.float32, torch.float64) or not _extension.has_kernel(out):
        return reference.philox_normal(shape, seed=seed, first_clip=first_clip, dtype=dtype, device=device)
    refuse_capture(out)
    torch.ops.vampo_core.philox_normal(seed, first_clip, out)
    return out


if _extension.LOADED:

    @torch.library.register_fake("vampo_core::philox_normal")
    def _(seed, first_clip, out):
        return None
