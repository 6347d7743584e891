"""Groups folded to the rows a denoiser sees, and rows cut into chunks."""

from collections.abc import Iterator

import torch
from torch import Tensor

from vampo_core.ops._checks import check_int


def fold(value: Tensor) -> Tensor:
    """``[B, G, ...]`` to ``[B * G, ...]``, a view of contiguous tensors."""
    return value.flatten(0, 1)


def fold_clips(sample: Tensor) -> tuple[Tensor, Tensor]:
    """Rows ``[N, F, C, H, W]`` of ``[B, F, C, H, W]`` or ``[B, G, F, C, H, W]``, and the clip of each row."""
    if sample.ndim not in (5, 6):
        raise ValueError(f"latents have shape {tuple(sample.shape)}, expected [B, F, C, H, W] or [B, G, F, C, H, W]")
    clips = torch.arange(sample.shape[0], device=sample.device)
    if sample.ndim == 5:
        return sample, clips
    return sample.flatten(0, 1), clips.repeat_interleave(sample.shape[1], output_size=sample.shape[0] * sample.shape[1])


def chunks(num_rows: int, chunk_size: int | None) -> Iterator[slice]:
    size = num_rows if chunk_size is None else check_int("chunk_size", chunk_size, minimum=1)
    return (slice(begin, min(begin + size, num_rows)) for begin in range(0, num_rows, max(size, 1)))
