"""A piece of a post-training iteration on made-up clips: the model, memory and time of a run, before it begins."""

import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from vampo_core.config import RewardConfig, VampoConfig
from vampo_core.data.clips import ClipDataset
from vampo_core.data.episode import Episode
from vampo_core.grpo.trainer import VampoTrainer
from vampo_core.models.codecs.latent import LatentCodec
from vampo_core.models.predictor import VideoPredictor
from vampo_core.pipeline.clips import windows_of
from vampo_core.pipeline.diagnosis import Diagnosis, first_line
from vampo_core.pipeline.predictor import add_adapters, check_sampler, load_predictor, new_predictor
from vampo_core.report.page import count
from vampo_core.training.health import findings
from vampo_core.training.memory import keep_freed_memory, peak_memory_mb
from vampo_core.training.processes import new_accelerator

FEW_CLIPS = 2
"""Clips on a CPU, where the time grows with their number and memory is rarely short."""
LATENT = ("l1_weight", "cosine_weight", "motion_weight", "moving_weight")
"""Rewards that need nothing but latents."""


@dataclass(frozen=True)
class _MadeUp:
    """An episode of noise that moves."""

    episode_id: str
    length: int
    latents_shape: tuple[int, ...]  # (C, h, w)
    dataset = instruction = "made-up"

    @property
    def actions(self) -> Tensor:  # [T, 0]
        return torch.empty(self.length, 0)

    states = actions

    @property
    def is_pushed(self) -> Tensor:  # [T]
        return torch.zeros(self.length, dtype=torch.bool)

    def latents(self, indices: Sequence[int]) -> Tensor:  # [N, C, h, w]
        generator = torch.Generator().manual_seed(int(self.episode_id))
        first, last = torch.randn(2, 1, *self.latents_shape, generator=generator)
        place = torch.tensor(list(indices)).view(-1, 1, 1, 1) / self.length
        return torch.lerp(first, last, place)


def dry_run(config: VampoConfig, latents_shape: tuple[int, ...] | None = None) -> list[Diagnosis]:
    """Roll out, reward and update one part of a batch at the sizes of a configuration; on a CPU a few of its clips.

    The model is ``model.pretrained``, or an untrained one of the same size; rewards that need a decoder or frames are
    left out. A temporary folder stands for ``run.dir``.

    Args:
        config: settings of the run.
        latents_shape: shape ``(C, h, w)`` of the data's own latents; None for that of encoded frames.
    """
    accelerator, part = new_accelerator(), config.grpo.batch_size // config.optim.gradient_accumulation_steps
    is_cpu = accelerator.device.type == "cpu"
    num_clips = min(part, FEW_CLIPS) if is_cpu else part
    if config.run.num_threads:
        torch.set_num_threads(config.run.num_threads)
    if config.run.keep_memory and is_cpu:
        keep_freed_memory()
    with tempfile.TemporaryDirectory(prefix="vampo-doctor-") as folder:
        small = replace(
            config,
            grpo=replace(config.grpo, num_iterations=1, batch_size=num_clips),
            optim=replace(config.optim, gradient_accumulation_steps=1),
            reward=_latent_rewards(config.reward),
            evaluation=replace(config.evaluation, num_clips=2, action_error=False, best_by="reward"),
            data=replace(config.data, num_workers=0, weights=None, root="made-up"),
            run=replace(config.run, dir=folder, trackers=()),
        )
        begin = time.perf_counter()
        try:
            trainer = _trainer(small, latents_shape)
            loaded = time.perf_counter()
            row = {"iteration": 1, **trainer.iterate(1, trainer.batches(0))}
        except torch.OutOfMemoryError as error:
            remedy = "`vampo plan` says which setting takes less"
            return [Diagnosis("broken", "dry run", f"out of memory: {first_line(error)}", remedy)]
        except (ValueError, RuntimeError, ImportError, OSError, ArithmeticError) as error:
            return [Diagnosis("broken", "dry run", first_line(error), "correct the setting that it names")]
    seconds = time.perf_counter() - loaded
    found = (
        f"{count(num_clips, 'clip')} of {config.grpo.batch_size}, {config.grpo.num_generations} generations each, in "
        f"{seconds:.3g} s (model: {loaded - begin:.3g} s), {peak_memory_mb() / 1024:.1f} GiB at most"
    )
    found += _duration(seconds * config.grpo.batch_size / num_clips * config.grpo.num_iterations)
    ill = [Diagnosis("warning", f"dry run, {x.check}", x.found, x.remedy) for x in findings([row], config)]
    if not math.isfinite(row["grad_norm"]) and config.model.dtype != "float16":
        ill.append(Diagnosis("broken", "dry run", "the gradient is not finite", "set model.dtype=float32"))
    return [Diagnosis("ok", "dry run", found), *ill]


def _trainer(config: VampoConfig, latents_shape: tuple[int, ...] | None) -> VampoTrainer:
    model = _model(config)
    check_sampler(config, model)
    windows = windows_of(config, model.codec)
    frames = config.data.num_frames if windows is None else windows.num_latents
    if latents_shape is None:
        height, width = (size // model.codec.spatial_ratio for size in config.data.image_size)
        latents_shape = (model.codec.latent_channels, height, width)
    clips = [
        ClipDataset([cast(Episode, _MadeUp(str(i), frames, latents_shape)) for i in numbers], num_frames=frames)
        for numbers in (range(config.grpo.batch_size), range(100, 102))
    ]
    return VampoTrainer(model=model, config=config, train_dataset=clips[0], eval_dataset=clips[1])


def _model(config: VampoConfig) -> VideoPredictor:
    if config.model.pretrained is not None:
        return load_predictor(config, config.model.pretrained)
    codec = LatentCodec(latent_channels=config.model.latent_channels, spatial_ratio=config.model.patch_size)
    model = new_predictor(config, codec)
    add_adapters(config, model)
    return model


def _latent_rewards(reward: RewardConfig) -> RewardConfig:
    weights = {name: getattr(reward, name) for name in LATENT}
    weights = weights if any(weights.values()) else {**weights, "l1_weight": 1.0}
    return RewardConfig(**weights)


def _duration(seconds: float) -> str:
    unit, size = ("h", 3600) if seconds > 5400 else ("min", 60) if seconds > 90 else ("s", 1)
    return f"; all iterations take about {seconds / size:.2g} {unit}"
