"""The CUDA kernels on the CPU: ``csrc/cuda``, compiled by g++ against headers that stand in for CUDA's.

They are called through ctypes; the signatures are those of ``vampo_core.ops``.
"""

import ctypes
import math
import subprocess
from ctypes import byref, c_bool, c_double, c_int, c_int64, c_uint32, c_uint64, c_void_p
from pathlib import Path

import torch
from torch import Tensor

from vampo_core.ops import HybridEulerStep, LatentReward
from vampo_core.ops._arguments import StepArguments, check_log_prob, check_step

FOLDER = Path(__file__).parent / "cuda_emulated"
DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}  # enum class DType
MARGIN = 64  # elements around every tensor


class Shape(ctypes.Structure):
    _fields_ = [(name, c_int64) for name in ("clips", "generations", "frames", "frame_size")]


class Step(ctypes.Structure):
    _fields_ = [
        *((name, c_void_p) for name in ("sample", "model_output", "model_output_uncond", "guidance_per_frame")),
        *((name, c_double) for name in ("guidance_scale", "a", "b", "sigma_up")),
        *((name, c_int) for name in ("latent_dtype", "output_dtype")),
        ("shape", Shape),
    ]


class Noise(ctypes.Structure):
    _fields_ = [("given", c_void_p), ("seed", c_uint64), ("first_clip", c_uint32)]


def build(folder: Path) -> ctypes.CDLL:
    library = folder / "emulated_kernels.so"
    flags = ["-std=c++17", "-O1", "-shared", "-fPIC"]
    includes = ["-I", FOLDER, "-isystem", Path(torch.__file__).parent / "include"]
    subprocess.run(["g++", *flags, *includes, FOLDER / "kernels.cpp", "-o", library], check=True)
    return ctypes.CDLL(str(library))


class EmulatedKernels:
    """One device of ``num_processors`` multiprocessors; with ``shifted``, no tensor on it lies where vectors may begin.

    Every tensor is surrounded by NaN: a read past its ends shows in the result, and a write there is an error.
    """

    def __init__(self, library: ctypes.CDLL, num_processors: int, shifted: bool = False) -> None:
        self.library, self.num_processors, self.shifted = library, num_processors, shifted
        self.storages: list[tuple[Tensor, int]] = []

    def hybrid_euler_step(
        self, sample: Tensor, model_output: Tensor, *, sigma: float, sigma_next: float, eta: float = 0.0,
        prediction_type: str = "v_prediction", model_output_uncond: Tensor | None = None,
        guidance_scale: float | Tensor | None = None, num_generations: int | None = None, noise: Tensor | None = None,
        seed: int | None = None, first_clip: int = 0,
    ) -> HybridEulerStep:  # fmt: skip
        arguments = check_step(
            sample, model_output, sigma, sigma_next, eta, prediction_type, model_output_uncond, guidance_scale,
            num_generations, noise, seed, first_clip, None,
        )  # fmt: skip
        generations = arguments.out_shape[1] if eta > 0 else 1
        step = self._step(arguments, sample, model_output, model_output_uncond, generations)
        prev_sample = self._empty(arguments.out_shape)
        if eta == 0:
            self._run("hybrid_euler_step", byref(step), _pointer(prev_sample))
            return HybridEulerStep(prev_sample, None)
        drawn = Noise(_pointer(self._place(noise)), seed or 0, first_clip)
        log_prob = self._empty(arguments.out_shape[:3])
        self._run(
            "hybrid_euler_step_stochastic", byref(step), byref(drawn), _pointer(prev_sample), _pointer(log_prob),
            self._scratch(step.shape, 1),
        )  # fmt: skip
        return HybridEulerStep(prev_sample, log_prob)

    def gaussian_log_prob(
        self, prev_sample: Tensor, sample: Tensor, model_output: Tensor, *, sigma: float, sigma_next: float,
        eta: float = 1.0, prediction_type: str = "v_prediction", model_output_uncond: Tensor | None = None,
        guidance_scale: float | Tensor | None = None, reduction: str = "mean", weights: Tensor,
    ) -> list[Tensor]:  # fmt: skip
        """Return the log-density, and the gradients of its sum weighted by ``weights``."""
        arguments = check_log_prob(
            prev_sample, sample, model_output, sigma, sigma_next, eta, prediction_type, model_output_uncond,
            guidance_scale, reduction,
        )  # fmt: skip
        step = self._step(arguments, sample, model_output, model_output_uncond, prev_sample.shape[1])
        actions, mean = _pointer(self._place(prev_sample)), c_bool(reduction == "mean")
        log_prob = self._empty(arguments.out_shape)
        self._run(
            "gaussian_log_prob", byref(step), actions, mean, _pointer(log_prob), self._scratch(step.shape, 1)
        )  # fmt: skip
        outputs = [model_output] if model_output_uncond is None else [model_output, model_output_uncond]
        gradients = [self._empty(output.shape, output.dtype) for output in outputs]
        cond, uncond = [_pointer(gradient) for gradient in gradients] + [c_void_p()] * (2 - len(gradients))
        self._run(
            "gaussian_log_prob_backward", byref(step), _pointer(self._place(weights)), actions, mean, cond, uncond
        )  # fmt: skip
        return [log_prob, *gradients]

    def group_advantages(self, rewards: Tensor, *, eps: float = 1e-8, clip: float = math.inf) -> Tensor:
        advantages = self._empty(rewards.shape)
        shape = Shape(*rewards.shape, 1)
        pointers = _pointer(self._place(rewards)), c_double(eps), c_double(clip), c_bool(True), _pointer(advantages)
        self._run("group_advantages", byref(shape), *pointers)
        return advantages

    def latent_reward(
        self, pred: Tensor, target: Tensor, *, l1_weight: float = 1.0, cosine_weight: float = 1.0
    ) -> LatentReward:
        results = [self._empty(pred.shape[:3]) for _ in range(3)]
        shape = Shape(*pred.shape[:3], math.prod(pred.shape[3:]))
        inputs = _pointer(self._place(pred)), _pointer(self._place(target))
        weights = c_double(l1_weight), c_double(cosine_weight)
        scratch = self._scratch(shape, 4)
        self._run("latent_reward", byref(shape), *inputs, *weights, *map(_pointer, results), scratch)
        return LatentReward(*results)

    def philox_normal(self, shape: tuple[int, ...], *, seed: int, first_clip: int = 0) -> Tensor:
        out = self._empty(shape)
        sizes = Shape(*shape[:3], math.prod(shape[3:]))
        self._run("philox_normal", byref(sizes), c_uint64(seed), c_uint32(first_clip), _pointer(out))
        return out

    def num_slices(self, shape: tuple[int, ...]) -> int:
        """Into how many slices kernels that sum over frames divide the generations of ``shape``."""
        self.library.set_num_processors(self.num_processors)
        return self.library.num_slices(byref(Shape(*shape[:3], math.prod(shape[3:]))))

    def _run(self, kernel: str, *arguments: object) -> None:
        self.library.set_num_processors(self.num_processors)
        getattr(self.library, kernel)(*arguments)
        for storage, begin in self.storages:
            margins = torch.cat([storage[:begin], storage[len(storage) - MARGIN :]])
            assert margins.isnan().all(), f"{kernel} writes past the ends of a tensor"

    def _step(
        self, arguments: StepArguments, sample: Tensor, model_output: Tensor, uncond: Tensor | None, generations: int
    ) -> Step:
        clips, frames = sample.shape[:2]
        tensors = (sample, model_output, uncond, arguments.guidance_per_frame)
        return Step(
            *(_pointer(self._place(tensor)) for tensor in tensors),
            *(arguments.guidance_scale, arguments.a, arguments.b, arguments.sigma_up),
            *(DTYPES[sample.dtype], DTYPES[model_output.dtype]),
            Shape(clips, generations, frames, math.prod(sample.shape[2:])),
        )

    def _scratch(self, shape: Shape, statistics: int) -> c_void_p:
        return _pointer(self._empty((self.library.scratch_floats(byref(shape), statistics),)))

    def _empty(self, size: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        begin, count = MARGIN + self.shifted, math.prod(size)
        storage = torch.full((begin + count + MARGIN,), math.nan, dtype=dtype)
        self.storages.append((storage, begin))
        return storage[begin : begin + count].view(size)

    def _place(self, tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else self._empty(tensor.shape, tensor.dtype).copy_(tensor)


def _pointer(tensor: Tensor | None) -> c_void_p:
    return c_void_p(None if tensor is None else tensor.data_ptr())
