"""The operators under measurement: one function each, returning the contenders and the bytes that must move.

Latents are float32 and model outputs bfloat16. Every contender takes the same tensors and returns the same result.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from shapes import Shape
from torch import Tensor

from vampo_core import ops
from vampo_core.ops import reference
from vampo_core.ops.coefficients import euler_coefficients

SIGMAS = {"sigma": 10.0, "sigma_next": 6.0}
HALF = torch.bfloat16


@dataclass(frozen=True)
class Case:
    """One operator at one shape."""

    operator: str
    bytes_moved: int  # each input read once, each output written once
    make_inputs: Callable[[], tuple[Tensor, ...]]
    contenders: dict[str, Callable[..., object]]  # "fused", "eager", "compile" and where it is measured "eager out="
    same_result: bool = True  # False where contenders draw noise of their own


def deterministic_step(shape: Shape, device: str) -> Case:
    """Take the ODE step over the folded group into a buffer: reads x and m, writes x'."""
    a, b, _ = euler_coefficients(**SIGMAS, eta=0.0, prediction_type="v_prediction")

    def fused(sample: Tensor, model_output: Tensor, out: Tensor) -> Tensor:
        return ops.hybrid_euler_step(sample, model_output, **SIGMAS, out=out).prev_sample

    def eager(sample: Tensor, model_output: Tensor, out: Tensor) -> Tensor:
        return reference.hybrid_euler_step(sample, model_output, **SIGMAS).prev_sample

    def eager_out(sample: Tensor, model_output: Tensor, out: Tensor) -> Tensor:
        return torch.mul(sample, a, out=out).add_(model_output, alpha=b)

    def compiled(sample: Tensor, model_output: Tensor, out: Tensor) -> Tensor:
        return reference.hybrid_euler_step(sample, model_output, **SIGMAS, out=out).prev_sample

    def inputs() -> tuple[Tensor, ...]:
        sample = torch.randn(shape.folded, device=device)
        return sample, torch.randn(shape.folded, device=device).to(HALF), torch.empty_like(sample)

    return Case(
        "deterministic_step",
        (4 + 2 + 4) * math.prod(shape.folded),
        inputs,
        {"fused": fused, "eager": eager, "eager out=": eager_out, "compile": _compile(compiled)},
    )


def stochastic_step(shape: Shape, device: str) -> Case:
    """G draws per clip from given noise into a buffer: reads x, m and the noise, writes x' and its log-probability."""
    a, b, sigma_up = euler_coefficients(**SIGMAS, eta=1.0, prediction_type="v_prediction")
    constant = math.log(sigma_up) + 0.5 * math.log(2 * math.pi)
    frame_size = math.prod(shape.latent)

    def fused(sample: Tensor, model_output: Tensor, noise: Tensor, out: Tensor) -> tuple[Tensor, ...]:
        step = ops.hybrid_euler_step(sample, model_output, **SIGMAS, eta=1.0, noise=noise, out=out)
        return step.prev_sample, step.log_prob

    def eager(sample: Tensor, model_output: Tensor, noise: Tensor, out: Tensor) -> tuple[Tensor, ...]:
        step = reference.hybrid_euler_step(sample, model_output, **SIGMAS, eta=1.0, noise=noise)
        return step.prev_sample, step.log_prob

    def eager_out(sample: Tensor, model_output: Tensor, noise: Tensor, out: Tensor) -> tuple[Tensor, ...]:
        mean = torch.mul(sample, a).add_(model_output, alpha=b)
        torch.mul(noise, sigma_up, out=out).add_(mean.unsqueeze(1))
        norm = torch.linalg.vector_norm(noise, dim=(-3, -2, -1))
        return out, norm.square_().mul_(-0.5 / frame_size).sub_(constant)

    def compiled(sample: Tensor, model_output: Tensor, noise: Tensor, out: Tensor) -> tuple[Tensor, ...]:
        step = reference.hybrid_euler_step(sample, model_output, **SIGMAS, eta=1.0, noise=noise, out=out)
        return step.prev_sample, step.log_prob

    def inputs() -> tuple[Tensor, ...]:
        noise = torch.randn(shape.group, device=device)
        return *_clip_inputs(shape, device), noise, torch.empty_like(noise)

    return Case(
        "stochastic_step",
        _clip_bytes(shape) + (4 + 4) * math.prod(shape.group) + _frame_bytes(shape),
        inputs,
        {"fused": fused, "eager": eager, "eager out=": eager_out, "compile": _compile(compiled)},
    )


def stochastic_step_seed(shape: Shape, device: str) -> Case:
    """G draws per clip from noise made inside the kernel, against ``torch.randn`` and the step: writes x'."""

    def fused(sample: Tensor, model_output: Tensor, out: Tensor) -> tuple[Tensor, ...]:
        step = ops.hybrid_euler_step(
            sample, model_output, **SIGMAS, eta=1.0, num_generations=shape.num_generations, seed=7, out=out
        )
        return step.prev_sample, step.log_prob

    def eager(sample: Tensor, model_output: Tensor, out: Tensor) -> tuple[Tensor, ...]:
        noise = torch.randn(shape.group, device=device)
        step = reference.hybrid_euler_step(sample, model_output, **SIGMAS, eta=1.0, noise=noise)
        return step.prev_sample, step.log_prob

    def compiled_step(sample: Tensor, model_output: Tensor, noise: Tensor, out: Tensor) -> tuple[Tensor, ...]:
        step = reference.hybrid_euler_step(sample, model_output, **SIGMAS, eta=1.0, noise=noise, out=out)
        return step.prev_sample, step.log_prob

    def draw_and_step(sample: Tensor, model_output: Tensor, out: Tensor) -> tuple[Tensor, ...]:
        return step(sample, model_output, torch.randn(shape.group, device=device), out)

    # torch.compile draws within its kernels: much slower than torch.randn on CPU, without a noise tensor on a GPU.
    # It gets the better of the two.
    step = _compile(compiled_step) if device == "cpu" else compiled_step
    compiled = draw_and_step if device == "cpu" else _compile(draw_and_step)

    def inputs() -> tuple[Tensor, ...]:
        return *_clip_inputs(shape, device), torch.empty(shape.group, device=device)

    return Case(
        "stochastic_step_seed",
        _clip_bytes(shape) + 4 * math.prod(shape.group) + _frame_bytes(shape),
        inputs,
        {"fused": fused, "eager": eager, "compile": compiled},
        same_result=False,
    )


def gaussian_log_prob(shape: Shape, device: str) -> Case:
    """Log-probability of G actions per clip: reads x, m and the actions."""

    def fused(prev_sample: Tensor, sample: Tensor, model_output: Tensor) -> Tensor:
        return ops.gaussian_log_prob(prev_sample, sample, model_output, **SIGMAS)

    def eager(prev_sample: Tensor, sample: Tensor, model_output: Tensor) -> Tensor:
        return reference.gaussian_log_prob(prev_sample, sample, model_output, **SIGMAS)

    def inputs() -> tuple[Tensor, ...]:
        return _actions(shape, device)

    return Case(
        "gaussian_log_prob",
        _clip_bytes(shape) + 4 * math.prod(shape.group) + _frame_bytes(shape),
        inputs,
        {"fused": fused, "eager": eager, "compile": _compile(eager)},
    )


def gaussian_log_prob_backward(shape: Shape, device: str) -> Case:
    """Log-probability and its gradient: the backward pass reads everything again and writes the gradient of m."""

    def gradient(log_prob: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def forward_backward(prev_sample: Tensor, sample: Tensor, model_output: Tensor, weights: Tensor) -> Tensor:
            result = log_prob(prev_sample, sample, model_output, **SIGMAS)
            return torch.autograd.grad(result, model_output, weights)[0]

        return forward_backward

    def inputs() -> tuple[Tensor, ...]:
        prev_sample, sample, model_output = _actions(shape, device)
        weights = torch.randn(shape.group[:3], device=device)
        return prev_sample, sample, model_output.requires_grad_(), weights

    compiled = _compile(lambda *args, **kwargs: reference.gaussian_log_prob(*args, **kwargs))
    one_pass = _clip_bytes(shape) + 4 * math.prod(shape.group) + _frame_bytes(shape)
    return Case(
        "gaussian_log_prob_backward",
        2 * one_pass + 2 * math.prod(shape.clips),
        inputs,
        {
            "fused": gradient(ops.gaussian_log_prob),
            "eager": gradient(reference.gaussian_log_prob),
            "compile": gradient(compiled),
        },
    )


def group_advantages(shape: Shape, device: str) -> Case:
    """Advantages within groups: reads and writes one number per frame."""

    def fused(rewards: Tensor) -> Tensor:
        return ops.group_advantages(rewards, clip=2.0)

    def eager(rewards: Tensor) -> Tensor:
        return reference.group_advantages(rewards, clip=2.0)

    def inputs() -> tuple[Tensor, ...]:
        return (torch.randn(shape.group[:3], device=device),)

    return Case(
        "group_advantages",
        2 * _frame_bytes(shape),
        inputs,
        {"fused": fused, "eager": eager, "compile": _compile(eager)},
    )


def latent_reward(shape: Shape, device: str) -> Case:
    """Reward of G predictions per clip: reads them and the target, writes three numbers per frame."""

    def fused(pred: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        result = ops.latent_reward(pred, target)
        return result.reward, result.l1, result.cosine

    def eager(pred: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        result = reference.latent_reward(pred, target)
        return result.reward, result.l1, result.cosine

    def inputs() -> tuple[Tensor, ...]:
        target = torch.randn(shape.clips, device=device)
        return target.unsqueeze(1) + 0.5 * torch.randn(shape.group, device=device), target

    return Case(
        "latent_reward",
        4 * math.prod(shape.clips) + 4 * math.prod(shape.group) + 3 * _frame_bytes(shape),
        inputs,
        {"fused": fused, "eager": eager, "compile": _compile(eager)},
    )


def philox_normal(shape: Shape, device: str) -> Case:
    """Noise for every clip of a batch, against ``torch.randn``: writes it once."""
    size = (shape.clips[0], 1, *shape.clips[1:])

    def fused() -> Tensor:
        return ops.philox_normal(size, seed=7, device=device)

    def eager() -> Tensor:
        return reference.philox_normal(size, seed=7, device=device)

    def draw() -> Tensor:
        return torch.randn(size, device=device)

    return Case(
        "philox_normal",
        4 * math.prod(size),
        lambda: (),
        {"fused": fused, "eager": eager, "compile": draw if device == "cpu" else _compile(draw)},
        same_result=False,
    )


OPERATORS: dict[str, Callable[[Shape, str], Case]] = {
    function.__name__: function
    for function in (
        deterministic_step,
        stochastic_step,
        stochastic_step_seed,
        gaussian_log_prob,
        gaussian_log_prob_backward,
        group_advantages,
        latent_reward,
        philox_normal,
    )
}


def _compile(function: Callable[..., object]) -> Callable[..., object]:
    return torch.compile(function, dynamic=False)


def _clip_inputs(shape: Shape, device: str) -> tuple[Tensor, Tensor]:
    """Return ``(sample, model_output)``."""
    return torch.randn(shape.clips, device=device), torch.randn(shape.clips, device=device).to(HALF)


def _actions(shape: Shape, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``(prev_sample, sample, model_output)``, the actions drawn around their mean."""
    a, b, sigma_up = euler_coefficients(**SIGMAS, eta=1.0, prediction_type="v_prediction")
    sample, model_output = _clip_inputs(shape, device)
    mean = a * sample + b * model_output
    return torch.randn(shape.group, device=device).mul_(sigma_up).add_(mean.unsqueeze(1)), sample, model_output


def _clip_bytes(shape: Shape) -> int:
    """Sample and model output of every clip."""
    return (4 + 2) * math.prod(shape.clips)


def _frame_bytes(shape: Shape) -> int:
    """One float32 per clip, generation and frame."""
    return 4 * math.prod(shape.group[:3])
