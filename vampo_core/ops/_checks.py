"""Argument checks shared by the operators and their references.

A wrong value or shape is a ValueError, a wrong type or dtype a TypeError, a device mismatch a
RuntimeError; each names the argument, what was given and what was expected.
"""

import math
import operator
from collections.abc import Sequence

import torch
from torch import Tensor

MODEL_OUTPUT_DTYPES = {
    torch.float32: (torch.float32, torch.bfloat16, torch.float16),
    torch.float64: (torch.float64,),
}
LATENT_DTYPES = tuple(MODEL_OUTPUT_DTYPES)


def check_tensor(name: str, value: object, axes: str) -> None:
    """``axes`` documents the shape, e.g. ``"B, F, C, H, W"``; its length is the number of dimensions."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} is a {type(value).__name__}, expected a tensor [{axes}]")
    if value.ndim != axes.count(",") + 1:
        raise ValueError(f"{name} has shape {tuple(value.shape)}, expected [{axes}]")


def check_dtype(name: str, value: Tensor, expected: Sequence[torch.dtype]) -> None:
    if value.dtype not in expected:
        raise TypeError(f"{name} has dtype {value.dtype}, expected {' or '.join(str(d) for d in expected)}")


def check_shape(name: str, value: Tensor, expected: tuple[int, ...], axes: str) -> None:
    if value.shape != expected:
        raise ValueError(f"{name} has shape {tuple(value.shape)}, expected {tuple(expected)} [{axes}]")


def check_like(
    name: str,
    value: object,
    shape: tuple[int, ...],
    axes: str,
    dtypes: tuple[torch.dtype, ...],
    other_name: str,
    device: torch.device,  # of the tensor called other_name
) -> None:
    """A tensor of exactly this shape and device, and of one of these dtypes."""
    if isinstance(value, Tensor) and value.shape == shape and value.dtype in dtypes and value.device == device:
        return  # so it nearly always is; what follows says what is wrong
    check_tensor(name, value, axes)
    assert isinstance(value, Tensor)
    check_shape(name, value, shape, axes)
    check_dtype(name, value, dtypes)
    raise RuntimeError(f"{name} is on {value.device}, expected {device}, where {other_name} is")


def check_latents(name: str, value: object, axes: str) -> None:
    check_tensor(name, value, axes)
    assert isinstance(value, Tensor)
    check_dtype(name, value, LATENT_DTYPES)
    if value.numel() == 0 and 0 in value.shape[-3:]:
        raise ValueError(f"{name} has shape {tuple(value.shape)} [{axes}], expected C, H and W of at least 1")


def check_no_grad(name: str, value: Tensor, reason: str) -> None:
    if value.requires_grad:
        raise ValueError(f"{name} requires grad, expected a tensor without: {reason}")


def check_model_output(name: str, value: object, sample: Tensor) -> None:
    """One denoiser output: the shape and device of ``sample``, possibly in half precision."""
    dtypes = MODEL_OUTPUT_DTYPES[sample.dtype]
    check_like(name, value, sample.shape, "B, F, C, H, W", dtypes, "sample", sample.device)


def check_guidance(
    model_output: Tensor, model_output_uncond: Tensor | None, guidance_scale: float | Tensor | None, sample: Tensor
) -> tuple[Tensor | None, float]:
    """Return the guidance scale as ``(per_frame, scalar)``; the scalar counts where ``per_frame`` is None."""
    if model_output_uncond is None and guidance_scale is None:
        return None, 1.0
    if model_output_uncond is None or guidance_scale is None:
        given, missing = ("guidance_scale", "model_output_uncond")
        if guidance_scale is None:
            given, missing = missing, given
        raise ValueError(f"{given} is given but {missing} is None, expected both for guidance or neither")
    check_model_output("model_output_uncond", model_output_uncond, sample)
    check_dtype("model_output_uncond", model_output_uncond, (model_output.dtype,))
    if isinstance(guidance_scale, Tensor):
        dtypes = (guidance_scale.dtype,)  # any floating-point one
        check_like("guidance_scale", guidance_scale, sample.shape[1:2], "F", dtypes, "sample", sample.device)
        if not guidance_scale.is_floating_point():
            raise TypeError(f"guidance_scale has dtype {guidance_scale.dtype}, expected a floating-point one")
        check_no_grad("guidance_scale", guidance_scale, "guidance is a constant of the policy")
        return guidance_scale.to(sample.dtype), 1.0
    return None, check_float("guidance_scale", guidance_scale)


def check_float(name: str, value: object, minimum: float = -math.inf) -> float:
    """Read a finite scalar as a Python float, never from an accelerator (that would synchronise)."""
    if not isinstance(value, (float, int)):
        if isinstance(value, Tensor) and (value.device.type != "cpu" or value.ndim != 0):
            raise TypeError(f"{name} is a tensor of shape {tuple(value.shape)} on {value.device}, expected a number")
        if not hasattr(value, "__float__"):
            raise TypeError(f"{name} is {value!r}, expected a number")
    number = float(value)
    if not -math.inf < number < math.inf:
        raise ValueError(f"{name} is {number}, expected a finite number")
    if number < minimum:
        raise ValueError(f"{name} is {number}, expected at least {minimum}")
    return number


def check_int(name: str, value: object, minimum: int, maximum: int | None = None) -> int:
    if not isinstance(value, int):
        try:
            value = operator.index(value)  # type: ignore[arg-type]
        except TypeError:
            raise TypeError(f"{name} is {value!r}, expected an integer") from None
    if value < minimum or (maximum is not None and value > maximum):
        upper = "" if maximum is None else f" and at most {maximum}"
        raise ValueError(f"{name} is {value}, expected at least {minimum}{upper}")
    return value


def check_out(out: object, like: Tensor, shape: tuple[int, ...], axes: str) -> None:
    """``out`` must be a contiguous buffer of exactly the result's shape, dtype and device."""
    check_like("out", out, shape, axes, (like.dtype,), "sample", like.device)
    assert isinstance(out, Tensor)
    check_no_grad("out", out, "it is overwritten")
    if not out.is_contiguous():
        raise ValueError(f"out has strides {out.stride()}, expected a contiguous tensor")


def check_no_overlap(out: Tensor, **inputs: Tensor | None) -> None:
    """Refuse an ``out`` that shares memory with an input (storages cannot be inspected while tracing)."""
    if torch.compiler.is_compiling() or out.is_meta:
        return
    begin = out.data_ptr()
    end = begin + out.nbytes
    for name, value in inputs.items():
        if value is not None:
            first = value.data_ptr()
            if first < end and begin < first + _extent(value):
                raise ValueError(f"out overlaps {name} in memory, expected a buffer of its own")


def _extent(value: Tensor) -> int:
    """Bytes from a tensor's first element to behind its last."""
    if value.is_contiguous():
        return value.nbytes
    last = sum((size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True))
    return (last + 1) * value.element_size()


def refuse_capture(tensor: Tensor) -> None:
    """Refuse to draw from a seed while a CUDA graph is captured: every replay would repeat the same noise.

    Raises:
        RuntimeError: the tensor is on a CUDA device whose current stream is being captured.
    """
    if tensor.is_cuda and not torch.compiler.is_compiling() and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "seed is given while a CUDA graph is captured, expected noise=: every replay would draw the same noise"
        )
