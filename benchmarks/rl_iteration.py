"""One iteration of ours against the reference's schedule of work, same model, same B, G, T.

    python benchmarks/rl_iteration.py [--preset default|svd] [--rounds N] [--threads N] [--results FOLDER]
                                      [--clips B] [--generations G] [--steps T] [--tail-steps N] [--solver NAME]
                                      [--tail-dtype NAME] [--pathwise N] [--compile]

The reference rolls out every member of a group on its own (G T denoiser forwards a clip) and runs G forwards and
backwards a clip for the update. It is written here in plain PyTorch with diffusers' UNet, and with the faults of the
published code corrected: right clipping, right grouping, right input scaling. Both take turns in one process, and
both iterations end with gradient clipping and a step of AdamW. Were forwards all that costs, a backward counted as two,
ours would be ``(G T + 3 G) / (G (T - 1) + 3)`` times as fast: 1.49 for G = T = 8, 4.2 for G = 16, T = 2. With N steps
behind the split it is ``(G T + 3 G) / (G N + 3)``; ``tail.py`` says what that costs. Credit by derivative needs no
large groups: with M generations and N steps it is ``(G T + 3 G) / (2 M N + 3)``. The memory of an update is what
autograd keeps for its backward pass, weights aside: counted, not sampled, so that it is the same on every device. The
preset svd, of 1.5 billion weights, is measured only on a GPU. There the results also say how often an iteration after
the warm-up asks the driver for memory or gives some back, which should be never; PYTORCH_ALLOC_CONF=
expandable_segments:True in the environment shows whether that changes anything.
"""

import argparse
import copy
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from vampo_core.config import OptimConfig
from vampo_core.grpo.loss import clipped_surrogate, pathwise_surrogate
from vampo_core.grpo.rewards import latent
from vampo_core.grpo.rollout import GroupRollout, RolloutEngine
from vampo_core.models.codecs.latent import LatentCodec
from vampo_core.models.float8 import check_float8
from vampo_core.models.predictor import VideoPredictor
from vampo_core.ops import group_advantages, latent_reward
from vampo_core.ops.coefficients import euler_coefficients
from vampo_core.training.optimizer import ModelOptimizer
from vampo_core.training.processes import new_accelerator

PRESETS = {  # latent [F, C, h, w] and arguments of the UNet
    "default": ((8, 16, 8, 8), {}),
    "svd": (
        (16, 4, 32, 32),
        {
            "down_block_types": ("CrossAttnDownBlockSpatioTemporal",) * 3 + ("DownBlockSpatioTemporal",),
            "up_block_types": ("UpBlockSpatioTemporal",) + ("CrossAttnUpBlockSpatioTemporal",) * 3,
            "block_out_channels": (320, 640, 1280, 1280),
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 768,
            "layers_per_block": 2,
            "cross_attention_dim": 1024,
            "num_attention_heads": (5, 10, 20, 20),
        },
    ),
}
CLIP_RANGE = 1e-3
ALLOC_CONF = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
COUNTERS = ("num_device_alloc", "num_device_free", "num_alloc_retries")  # of torch.cuda.memory_stats
NEEDS_GPU = {"svd"}


class Phases:
    """Seconds of one iteration, those spent in the denoiser, what autograd kept, and calls of the driver for memory."""

    def __init__(self, model: torch.nn.Module, device: torch.device) -> None:
        self.device, self.seconds, self.denoiser = device, 0.0, 0.0
        self.driver_calls: dict[str, int] = {}  # of a GPU
        self._weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self._kept: dict[int, int] = {}

    @property
    def update_mb(self) -> float:
        return sum(self._kept.values()) / 2**20

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    @contextmanager
    def iteration(self) -> Iterator[None]:
        begin, before = self.now(), driver_calls(self.device)
        yield
        self.seconds = self.now() - begin
        self.driver_calls = {name: count - before[name] for name, count in driver_calls(self.device).items()}

    @contextmanager
    def in_denoiser(self) -> Iterator[None]:
        begin = self.now()
        yield
        self.denoiser += self.now() - begin

    def update(self) -> torch.autograd.graph.saved_tensors_hooks:
        """Context of the forward passes with gradient."""

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self._weights:
                self._kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        return torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)


def driver_calls(device: torch.device) -> dict[str, int]:
    """How often torch's allocator has turned to the driver so far; empty where it has none."""
    stats = torch.cuda.memory_stats(device) if device.type == "cuda" else {}
    return {name: stats[name] for name in COUNTERS if name in stats}


def ours(optimizer: ModelOptimizer, batch: dict, engine: RolloutEngine, seed: int, phases: Phases) -> None:
    """One forward a clip at the split, which carries the gradient, and G tails."""

    def watch(module: torch.nn.Module) -> list:
        begins: list[float] = []
        return [
            module.register_forward_pre_hook(lambda *_: begins.append(phases.now())),
            module.register_forward_hook(lambda *_: _add(phases, phases.now() - begins.pop())),
        ]

    hooks = watch(engine.model.denoiser_network) if is_timed(engine) else []
    with phases.update():
        rollout = engine.rollout(batch, seed=seed)
        if engine.differentiable:
            _pathwise(optimizer, engine, rollout, phases)
        else:
            _by_advantages(optimizer, engine, rollout, phases)
        optimizer.step(what="round")
    for hook in hooks:
        hook.remove()


def _by_advantages(optimizer: ModelOptimizer, engine: RolloutEngine, rollout: GroupRollout, phases: Phases) -> None:
    target = rollout.batch["latents"]
    advantages = group_advantages(latent_reward(rollout.latents, target).reward, clip=2.0)
    for _, _, log_prob, _ in engine.log_probs(rollout):
        loss = clipped_surrogate(log_prob, log_prob.detach(), advantages, clip_range=CLIP_RANGE).loss
        with phases.in_denoiser():
            optimizer.backward(loss)


def _pathwise(optimizer: ModelOptimizer, engine: RolloutEngine, rollout: GroupRollout, phases: Phases) -> None:
    (step,), output = rollout.steps, rollout.output
    assert output is not None
    reward = latent(rollout.latents, rollout.batch["latents"], rollout.batch).reward
    with phases.in_denoiser():
        (slope,) = torch.autograd.grad(reward.mean(), step.prev_sample)
        b = engine.sampler.coefficients(step.step_index).b
        optimizer.backward(pathwise_surrogate(output.cond, slope, b=b).loss)


def is_timed(engine: RolloutEngine) -> bool:
    """Whether hooks can time the denoiser: in a compiled graph they would break it, and in float8 a copy runs."""
    return not engine.model.is_compiled and engine.tail_dtype != "float8"


def _add(phases: Phases, seconds: float) -> None:
    phases.denoiser += seconds


def reference(optimizer: ModelOptimizer, batch: dict, engine: RolloutEngine, seed: int, phases: Phases) -> None:
    """G T forwards a clip without gradient, then G forwards and backwards a clip."""
    model, sampler, num_generations = engine.model, engine.sampler, engine.num_generations
    target = batch["latents"]
    sigmas, prediction = sampler.sigmas, sampler.prediction_type
    with torch.no_grad():
        condition = model.condition(instructions=batch["instruction"], first_latents=target[:, 0])
        condition = condition.repeat(num_generations)
        noise = sampler.initial_noise(tuple(target.shape), seed=seed, device=target.device)
        noise = noise.repeat_interleave(num_generations, 0)
        x, first = noise, None
        for i in range(len(sigmas) - 1):
            with phases.in_denoiser():
                output = model(x, sigmas[i], condition)
            a, b, sigma_up = euler_coefficients(sigmas[i], sigmas[i + 1], 1.0 if i == 0 else 0.0, prediction)
            mean = a * x + b * output
            if i == 0:
                x = mean + sigma_up * torch.randn_like(mean)
                first, old = x, _log_prob(x, mean, sigma_up)
            else:
                x = mean
        shape = (target.shape[0], num_generations)
        repeated = target.repeat_interleave(num_generations, 0)
        l1 = (x - repeated).abs().flatten(2).mean(-1)
        cosine = torch.nn.functional.cosine_similarity(x.flatten(2), repeated.flatten(2), dim=-1)
        rewards = (cosine - l1).unflatten(0, shape)
        centred = rewards - rewards.mean(1, keepdim=True)
        advantages = (centred / (rewards.std(1, keepdim=True) + 1e-8)).clamp(-2, 2).flatten(0, 1)
    assert first is not None
    a, b, sigma_up = euler_coefficients(sigmas[0], sigmas[1], 1.0, prediction)
    with phases.update():
        with phases.in_denoiser():
            output = model(noise, sigmas[0], condition)
        ratio = (_log_prob(first, a * noise + b * output, sigma_up) - old).exp()
        clipped = ratio.clamp(1 - CLIP_RANGE, 1 + CLIP_RANGE)
        loss = torch.maximum(-advantages * ratio, -advantages * clipped).mean()
        with phases.in_denoiser():
            loss.backward()
    torch.nn.utils.clip_grad_norm_(optimizer.parameters, optimizer.config.max_grad_norm)
    optimizer.adamw.step()
    optimizer.adamw.zero_grad()


def _log_prob(x: Tensor, mean: Tensor, sigma: float) -> Tensor:
    return torch.distributions.Normal(mean, sigma).log_prob(x).flatten(2).mean(-1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="default")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--generations", type=int, default=8)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--tail-steps", type=int, help="steps behind the split, ours only; default: all of them")
    parser.add_argument("--solver", default="euler", help="solver of these steps")
    parser.add_argument("--tail-dtype", choices=["bfloat16", "float16", "float8"], help="of these steps, ours only")
    parser.add_argument("--pathwise", type=int, metavar="N", help="ours: N generations, credited by derivative")
    parser.add_argument("--compile", action="store_true", help="compile the denoiser, ours only")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    args.results.mkdir(parents=True, exist_ok=True)
    sizes = f"b{args.clips}-g{args.generations}-t{args.steps}"
    if (args.solver, args.tail_steps) != ("euler", None):
        sizes += f"-{args.solver.replace('+', 'p')}{args.tail_steps or ''}"
    is_expandable = "expandable_segments:True" in "".join(os.environ.get(name, "") for name in ALLOC_CONF)
    marks = (
        args.pathwise and f"pathwise{args.pathwise}",
        args.tail_dtype,
        args.compile and "compiled",
        is_expandable and "expandable",
    )
    sizes += "".join(f"-{mark}" for mark in marks if mark)
    path = args.results / f"rl_iteration-{args.preset}-{sizes}-{device.type}.json"
    if args.preset in NEEDS_GPU and device.type == "cpu":
        _write(path, {"preset": args.preset, "result": "not measured", "reason": "there is no GPU"})
        return
    latent, overrides = PRESETS[args.preset]
    torch.manual_seed(0)
    codec = LatentCodec(latent_channels=latent[1])
    model = VideoPredictor.create(codec, num_frames=latent[0], **overrides).to(device)
    assert model.text_encoder is not None
    model.text_encoder.requires_grad_(False)  # no part of the policy
    models = {"ours": model, "reference": model}
    if args.compile:
        models["ours"] = copy.deepcopy(model)
        models["ours"].compile_denoiser()
    optimizers = {
        name: ModelOptimizer(each, new_accelerator(), OptimConfig(lr=1e-6), num_updates=args.rounds + 1, ema_decay=0.0)
        for name, each in models.items()
    }
    sampler = model.sampler(num_inference_steps=args.steps)
    samplers = {"ours": replace(sampler, solver=args.solver, tail_steps=args.tail_steps), "reference": sampler}
    if args.tail_dtype == "float8":
        check_float8(device)
    engines = {
        name: RolloutEngine(
            models[name],
            samplers[name],
            num_generations=args.pathwise or args.generations if name == "ours" else args.generations,
            chunk_size=None,
            reuse_first_step=True,
            tail_dtype=args.tail_dtype if name == "ours" else None,
            differentiable=args.pathwise is not None and name == "ours",
        )
        for name in models
    }
    batch = {
        "latents": torch.randn(args.clips, *latent, device=device),
        "instruction": ["push the T"] * args.clips,
        "clip_id": [str(i) for i in range(args.clips)],
    }
    schedules: dict[str, Callable] = {"ours": ours, "reference": reference}
    measured: dict[str, list[Phases]] = {name: [] for name in schedules}
    for number in range(args.rounds + 1):
        for name, schedule in schedules.items():
            phases = Phases(models[name], device)
            with phases.iteration():
                schedule(optimizers[name], batch, engines[name], number, phases)
            if number:  # the first round warms up
                measured[name].append(phases)
    ratios = [r.seconds / o.seconds for o, r in zip(measured["ours"], measured["reference"], strict=True)]
    result = {
        "preset": args.preset,
        "B": args.clips, "G": args.generations, "T": args.steps,
        "pathwise": args.pathwise, "solver": args.solver, "tail_steps": args.tail_steps, "compiled": args.compile,
        "tail_dtype": args.tail_dtype, "expandable_segments": is_expandable,
        "machine": torch.cuda.get_device_name() if device.type == "cuda" else platform.machine(),
        "threads": args.threads,
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "speedup": statistics.median(ratios),
        "speedup_range": [min(ratios), max(ratios)],
        **{
            name: {
                "seconds": statistics.median(p.seconds for p in phases),
                "update_mb": max(p.update_mb for p in phases),
                "denoiser_share": statistics.median(p.denoiser / p.seconds for p in phases)
                if is_timed(engines[name]) else None,
                "driver_calls": {n: max(p.driver_calls[n] for p in phases) for n in phases[0].driver_calls},
            }
            for name, phases in measured.items()
        },
    }  # fmt: skip
    _write(path, result)


def _write(path: Path, result: dict[str, object]) -> None:
    text = json.dumps(result, indent=2)
    path.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
