"""Groups folded to the rows a denoiser sees, and rows cut into chunks."""

from collections.abc import Iterator

import torch
from torch import Tensor

from vampo_core.diffusion.trajectory import Denoise
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


def padded(denoise: Denoise, num_rows: int | None) -> Denoise:
    """The same denoiser, but calls with fewer rows are filled up with copies of the last one: one shape for all."""
    if num_rows is None:
        return denoise

    def run(sample: Tensor, sigma: float, clip_index: Tensor | None) -> tuple[Tensor, Tensor | None]:
        size = sample.shape[0]
        if size >= num_rows:
            return denoise(sample, sigma, clip_index)
        rows = torch.arange(num_rows, device=sample.device).clamp_max(size - 1)
        output, uncond = denoise(sample[rows], sigma, rows if clip_index is None else clip_index[rows])
        return output[:size], None if uncond is None else uncond[:size]

    return run


def chunks(num_rows: int, chunk_size: int | None) -> Iterator[slice]:
    size = num_rows if chunk_size is None else check_int("chunk_size", chunk_size, minimum=1)
    return (slice(begin, min(begin + size, num_rows)) for begin in range(0, num_rows, max(size, 1)))
