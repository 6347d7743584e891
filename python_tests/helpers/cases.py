"""Inputs of the operator tests: awkward shapes, strides and dtypes, and how far a result may be off."""

import math
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

# Frames of one element, of odd sizes, and on both sides of the 1024, 2048 or 4096 elements a kernel takes at a time.
FRAMES = (
    (2, 1, 1), (1, 1, 1), (3, 5, 7), (4, 8, 8), (1, 1, 1023), (4, 16, 16), (1, 25, 41), (1, 23, 89), (4, 16, 32),
    (3, 683, 1), (3, 35, 39), (4, 32, 32), (17, 241, 1), (4, 25, 41),
)  # fmt: skip
LAYOUTS = ("contiguous", "transposed", "sliced", "cropped", "offset", "repeated", "broadcast")
PREDICTION_TYPES = ("v_prediction", "epsilon", "sample")  # of EDM's noising process
HALF_DTYPES = (torch.bfloat16, torch.float16)


def lay_out(values: Tensor, layout: str) -> Tensor:
    """The values in other strides; "repeated" and "broadcast" are of stride zero and keep one slice of the values."""
    if layout == "contiguous":
        return values
    if layout == "transposed":
        order = tuple(reversed(range(values.ndim)))
        return values.permute(order).contiguous().permute(order)
    if layout == "sliced":
        return torch.stack([values, torch.full_like(values, math.nan)], dim=-1)[..., 0]
    if layout == "cropped":
        surrounded = values.new_full([n + 2 for n in values.shape], math.nan)
        crop = surrounded[tuple(slice(1, n + 1) for n in values.shape)]
        return crop.copy_(values)
    if layout == "offset":  # contiguous, but not where vector loads would like it to be
        return torch.cat([values.new_full((1,), math.nan), values.flatten()])[1:].view(values.shape)
    if layout == "repeated":
        return values.narrow(1, 0, 1).expand_as(values)
    assert layout == "broadcast"
    return values.narrow(values.ndim - 3, 0, 1).expand_as(values)


def randn(shape, generator: torch.Generator, dtype=torch.float32, device="cpu", layout="contiguous") -> Tensor:
    values = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    return lay_out(values.to(device), layout)


@dataclass(frozen=True)
class StepCase:
    """Arguments of one Euler step; ``noise`` is drawn whether the step uses it or not."""

    sample: Tensor  # [B, F, C, H, W]
    model_output: Tensor  # [B, F, C, H, W]
    noise: Tensor  # [B, G, F, C, H, W]
    schedule: dict  # sigma, sigma_next, prediction_type
    guidance: dict  # empty, or model_output_uncond [B, F, C, H, W] and guidance_scale
    eta: float  # above 0

    @property
    def frame_size(self) -> int:
        return math.prod(self.sample.shape[2:])


@st.composite
def shapes(draw, min_generations=1):
    """``(B, G, F, C, H, W)``, an empty batch included."""
    frame = draw(st.sampled_from(FRAMES))
    num_clips = draw(st.sampled_from((2, 1, 3, 0)))
    num_generations = draw(st.integers(min_generations, 4))
    return (num_clips, num_generations, draw(st.integers(1, 3)), *frame)


@st.composite
def schedules(draw):
    prediction_type = draw(st.sampled_from((*PREDICTION_TYPES, "flow_prediction")))
    levels = (1.0, 0.98, 0.5, 0.05) if prediction_type == "flow_prediction" else (700.0, 14.6, 1.0, 0.05)
    sigma = draw(st.sampled_from(levels))
    return {
        "sigma": sigma,
        "sigma_next": sigma * draw(st.floats(0.1, 0.9)),
        "prediction_type": prediction_type,
    }


@st.composite
def step_cases(draw, device="cpu", dtype=torch.float32, output_dtypes=(torch.float32,), layouts=LAYOUTS):
    shape = draw(shapes())
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    layout = st.sampled_from(layouts)
    schedule = draw(schedules())
    latents, output_dtype = shape[:1] + shape[2:], draw(st.sampled_from(output_dtypes))
    scale = math.hypot(schedule["sigma"], 1.0)
    sample = lay_out(scale * randn(latents, generator, dtype, device), draw(layout))
    model_output = randn(latents, generator, output_dtype, device, draw(layout))
    guidance = {}
    kind = draw(st.sampled_from(("none", "number", "per frame")))
    if kind != "none":
        guidance["model_output_uncond"] = randn(latents, generator, output_dtype, device, draw(layout))
        guidance["guidance_scale"] = draw(st.sampled_from((1.0, 3.0, 1.5, 0.0)))
    if kind == "per frame":
        guidance["guidance_scale"] = torch.linspace(1, guidance["guidance_scale"], shape[2], dtype=dtype, device=device)
    return StepCase(
        sample=sample,
        model_output=model_output,
        noise=randn(shape, generator, dtype, device, draw(layout)),
        schedule=schedule,
        guidance=guidance,
        eta=draw(st.sampled_from((1.0, 0.5, 1.5))),
    )


def example_case(
    device="cpu", dtype=torch.float32, output_dtype=None, shape=(2, 3, 4, 3, 5, 7), guided=True
) -> StepCase:
    """One ordinary case, for tests that look at something other than the inputs."""
    generator = torch.Generator().manual_seed(7)
    latents, output_dtype = shape[:1] + shape[2:], output_dtype or dtype
    sample = 2 * randn(latents, generator, dtype, device)
    model_output, uncond = (randn(latents, generator, output_dtype, device) for _ in range(2))
    guidance_scale = torch.linspace(1, 3, shape[2], dtype=dtype, device=device)  # [F]
    return StepCase(
        sample=sample,
        model_output=model_output,
        noise=randn(shape, generator, dtype, device),
        schedule={"sigma": 1.8, "sigma_next": 1.1, "prediction_type": "v_prediction"},
        guidance={"model_output_uncond": uncond, "guidance_scale": guidance_scale} if guided else {},
        eta=1.0,
    )


def double(value):
    """Tensors as float64 on the CPU, also inside a dict; everything else as it is."""
    if isinstance(value, dict):
        return {key: double(item) for key, item in value.items()}
    return value.detach().to("cpu", torch.float64) if isinstance(value, Tensor) else value


def relative_error(actual: Tensor, expected: Tensor, floor: float = 0.0) -> float:
    """``||actual - expected|| / ||expected||``; ``floor`` is the least root mean square that ``expected`` counts as."""
    assert actual.shape == expected.shape, f"{tuple(actual.shape)} is not {tuple(expected.shape)}"
    if expected.numel() == 0:
        return 0.0
    actual, expected = double(actual), double(expected)
    least = floor * math.sqrt(expected.numel())
    return float((actual - expected).norm() / expected.norm().clamp_min(max(least, 1e-300)))


def assert_same(actual: Tensor, expected: Tensor) -> None:
    """Bit for bit, with NaN equal to itself."""
    assert actual.dtype == expected.dtype
    assert torch.equal(actual.isnan(), expected.isnan())
    assert torch.equal(actual.nan_to_num(), expected.nan_to_num())
