"""Runs every CUDA operator at awkward sizes and checks it: the program that compute-sanitizer watches.

    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck python benchmarks/sanitize_ops.py

Without torch's caching allocator every tensor is an allocation of its own, so that an access past its end is seen.
Inputs are made and results compared on the CPU, so that the GPU runs little else than the operators.
"""

import argparse
import itertools
import sys
from collections.abc import Iterator

import torch
from torch import Tensor

import vampo_core
from vampo_core import ops
from vampo_core.ops import reference

# (B, G, F, C, H, W): one element, odd sizes, whole and broken tiles of both sizes, frames of several tiles, more
# generations than a block sums, and enough frames for a block to take several generations
SHAPES = (
    (1, 2, 1, 1, 1, 1),
    (2, 3, 3, 3, 5, 7),
    (1, 33, 1, 1, 3, 5),
    (1, 5, 2, 4, 17, 19),
    (2, 4, 2, 4, 16, 16),
    (1, 33, 1, 3, 35, 39),
    (1, 3, 2, 4, 32, 32),
    (1, 3, 1, 4, 25, 41),
    (1, 33, 450, 1, 3, 5),
    (1, 3, 450, 1, 25, 41),
)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SIGMAS = {"sigma": 1.8, "sigma_next": 1.1}
TOLERANCE = 1e-5
GRADIENT_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}

Errors = Iterator[tuple[str, float]]  # which result, and its relative error


class Runner:
    """One setting: the shape, the dtype of model outputs, and how tensors lie on the device."""

    def __init__(self, device: str, shape: tuple[int, ...], dtype: torch.dtype, shifted: bool, guided: bool) -> None:
        self.device, self.shape, self.dtype, self.shifted, self.guided = device, shape, dtype, shifted, guided
        self.generator = torch.Generator().manual_seed(1)

    def run(self) -> Errors:
        """Call every operator and its reference."""
        clips = self.shape[:1] + self.shape[2:]
        sample, model_output = self.randn(clips), self.randn(clips, self.dtype)
        step = dict(SIGMAS)
        if self.guided:
            step |= {
                "model_output_uncond": self.randn(clips, self.dtype),
                "guidance_scale": torch.linspace(1, 3, self.shape[2]),
            }
        noise, out = self.randn(self.shape), torch.full(self.shape, torch.nan)
        yield from self.compare("hybrid_euler_step", sample, model_output, **step, out=torch.full(clips, torch.nan))
        step["eta"] = 1.0
        yield from self.compare("hybrid_euler_step", sample, model_output, **step, noise=noise, out=out)
        yield from self.compare(
            "hybrid_euler_step", sample, model_output, **step, seed=2**40 + 3, num_generations=self.shape[1], out=out
        )
        yield from self.compare("gaussian_log_prob", noise, sample, model_output, **step)
        yield from self.compare_gradients(noise, sample, model_output, **step)
        yield from self.compare("group_advantages", self.randn(self.shape[:3]), clip=2.0)
        yield from self.compare("latent_reward", noise, sample)

    def randn(self, size: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(size, generator=self.generator).to(dtype)

    def place(self, value: object) -> object:
        """Copy a tensor to the device; where shifted, to where no vector load may begin."""
        if not isinstance(value, Tensor):
            return value
        storage = torch.empty(value.numel() + self.shifted, dtype=value.dtype, device=self.device)
        return storage[int(self.shifted) :].view(value.shape).copy_(value)

    def call(self, name: str, *args: object, **kwargs: object) -> tuple[object, object]:
        """Return results of the operator and of its reference in float64."""
        placed = {key: self.place(value) for key, value in kwargs.items()}
        result = getattr(ops, name)(*map(self.place, args), **placed)
        doubled = {key: _double(value) for key, value in kwargs.items()}
        return result, getattr(reference, name)(*map(_double, args), **doubled)

    def compare(self, name: str, *args: object, **kwargs: object) -> Errors:
        result, expected = self.call(name, *args, **kwargs)
        if isinstance(result, Tensor):
            yield name, _relative_error(result, expected)
            return
        for part, value in vars(result).items():
            if value is not None:
                yield f"{name}.{part}", _relative_error(value, getattr(expected, part))

    def compare_gradients(self, prev_sample: Tensor, sample: Tensor, model_output: Tensor, **step: object) -> Errors:
        gradients = []
        weights = self.randn(self.shape[:3])
        for module, move in ((ops, self.place), (reference, _double)):
            moved = {key: move(value) for key, value in step.items()}
            wanted = [move(model_output).requires_grad_()]
            if self.guided:
                wanted.append(moved["model_output_uncond"].requires_grad_())
            log_prob = module.gaussian_log_prob(move(prev_sample), move(sample), wanted[0], **moved)
            gradients.append(torch.autograd.grad(log_prob, wanted, move(weights)))
        for got, expected in zip(*gradients, strict=True):
            error = _relative_error(got, expected)
            yield "gaussian_log_prob gradient", error * TOLERANCE / GRADIENT_TOLERANCE[self.dtype]


def _double(value: object) -> object:
    return value.double() if isinstance(value, Tensor) else value


def _relative_error(got: Tensor, expected: Tensor) -> float:
    difference = torch.linalg.vector_norm(got.cpu().double() - expected)
    return float(difference / torch.linalg.vector_norm(expected).clamp_min(1e-300))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="default: %(default)s")
    device = parser.parse_args().device
    info = vampo_core.build_info()
    if not (info["cuda"] and torch.cuda.is_available() if device == "cuda" else info["compiled"]):
        sys.exit(f"no compiled operators or no device for {device}: {info}")
    num_results, wrong = 0, []
    for setting in itertools.product(SHAPES, DTYPES, (False, True), (False, True)):
        for name, error in Runner(device, *setting).run():
            num_results += 1
            if not error <= TOLERANCE:
                shape, dtype, shifted, guided = setting
                wrong.append(f"{name} at {shape}, {dtype}, {shifted=}, {guided=}: {error / TOLERANCE:.1f} x tolerance")
    print(f"{num_results} results on {device}, {len(wrong)} wrong", *wrong, sep="\n")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
