"""Held-out metrics of a predictor, with bootstrap confidence intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from vampo_core.config import RewardConfig
from vampo_core.data.clips import collate
from vampo_core.diffusion.sampler import EulerHybridSampler
from vampo_core.evaluation.images import psnr, ssim
from vampo_core.models.codecs.codec import AnyCodec
from vampo_core.models.predictor import VideoPredictor
from vampo_core.ops import latent_reward

NUM_RESAMPLES = 2000
HIGHER_IS_BETTER = {"l1": False, "cosine": True, "reward": True, "psnr": True, "ssim": True}
"""The metrics there are, in the order in which they are shown."""


@dataclass(frozen=True)
class Metric:
    """Mean over held-out clips and its 95 % bootstrap interval."""

    mean: float
    ci95: tuple[float, float]


@dataclass(frozen=True)
class EvalResult:
    """Metrics of one predictor on held-out clips.

    ``reward`` is ``cosine - l1``, the paper's, whatever a run was rewarded for: one yardstick for all. ``psnr`` (dB)
    and ``ssim`` compare decoded predictions with the expert's decoded latents, so that what the codec loses counts for
    neither; None where nothing was decoded.
    """

    l1: Metric
    cosine: Metric
    reward: Metric
    num_clips: int
    num_samples: int
    per_frame: dict[str, list[float]]  # metric -> [F]
    per_clip: dict[str, list[float]]  # metric -> [num_clips]
    episode_ids: list[str]  # of each clip: intervals resample episodes, whose clips resemble each other
    psnr: Metric | None = None
    ssim: Metric | None = None

    @property
    def metrics(self) -> dict[str, Metric]:
        """Those that were measured, by name."""
        return {name: value for name in HIGHER_IS_BETTER if (value := getattr(self, name)) is not None}

    def score(self, reward: RewardConfig) -> float:
        """What the best checkpoint has the highest of: cosine and L1 as the reward weighs them.

        Motion and pixels are not measured here; of a reward of these alone the score is :attr:`reward`.
        """
        if not reward.l1_weight and not reward.cosine_weight:
            return self.reward.mean
        return reward.cosine_weight * self.cosine.mean - reward.l1_weight * self.l1.mean

    def row(self) -> dict[str, float]:
        """What ``metrics.jsonl`` gets."""
        return {name: self.metrics[name].mean for name in ("l1", "cosine", "reward")}

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain Python values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "EvalResult":
        """The inverse of :meth:`to_dict`."""
        metrics = {
            name: Metric(values[name]["mean"], tuple(values[name]["ci95"]))
            for name in HIGHER_IS_BETTER
            if values.get(name) is not None
        }
        return cls(**{**values, **metrics})


def bootstrap(values: Sequence[float], groups: Sequence[str], *, seed: int = 0) -> Metric:
    """Mean and 95 % percentile interval, resampling whole groups (episodes); single values where there is one group.

    Source: Efron and Tibshirani 1993, chapter 13; resampling clusters, as clips of one episode are not independent.
    """
    data = np.asarray(values, dtype=np.float64)
    _, codes = np.unique(np.asarray(groups), return_inverse=True)
    if codes.max(initial=0) == 0:
        codes = np.arange(len(data))
    num_groups = codes.max() + 1
    sums, counts = np.bincount(codes, weights=data), np.bincount(codes)
    picks = np.random.default_rng(seed).integers(num_groups, size=(NUM_RESAMPLES, num_groups))
    means = sums[picks].sum(1) / counts[picks].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Metric(float(data.mean()), (float(low), float(high)))


class PerClip(Protocol):
    """A result that tells its metrics clip by clip."""

    @property
    def per_clip(self) -> dict[str, list[float]]:
        """Metric to its values."""
        ...

    @property
    def episode_ids(self) -> list[str]:
        """Of each clip."""
        ...


def paired_difference(before: PerClip, after: PerClip, metric: str) -> Metric:
    """``after - before`` of a metric on the same clips, with its interval.

    Raises:
        ValueError: the results are of different clips.
    """
    if before.episode_ids != after.episode_ids:
        raise ValueError("before and after are of different clips, expected the same for a paired difference")
    difference = np.subtract(after.per_clip[metric], before.per_clip[metric])
    return bootstrap(difference.tolist(), before.episode_ids)


def outcome(before: EvalResult, after: EvalResult, metric: str) -> Literal["better", "worse", "unclear"]:
    """What the interval of the paired difference says; where it includes 0, or is of one clip, nothing."""
    low, high = paired_difference(before, after, metric).ci95
    if low <= 0 <= high or after.num_clips < 2:
        return "unclear"
    return "better" if (low > 0) == HIGHER_IS_BETTER[metric] else "worse"


def held_out_batch(dataset: Dataset[Any], num_clips: int) -> dict[str, Any]:
    """``num_clips`` clips spread evenly over a dataset, collated; all where it has fewer."""
    total = len(dataset)  # type: ignore[arg-type]
    indices = np.unique(np.linspace(0, total - 1, min(num_clips, total)).round().astype(int))
    return collate([dataset[int(i)] for i in indices])


@torch.no_grad()
def predict(
    model: VideoPredictor,
    sampler: EulerHybridSampler,
    batch: Mapping[str, Any],
    *,
    num_samples: int,
    seed: int,
    batch_size: int,
) -> Tensor:  # [B, num_samples, F, C, h, w] on the CPU
    """Draw videos as in training, ``num_samples`` of every clip; what a clip's are depends on seed and index alone."""
    device = model.device
    videos = []
    for start in range(0, len(batch["instruction"]), batch_size):
        latents = batch["latents"][start : start + batch_size].to(device)
        condition = model.observed_condition(latents[:, 0], batch["instruction"][start : start + batch_size])
        noise = sampler.initial_noise(
            tuple(latents.shape), seed=seed, num_generations=num_samples, first_clip=start, device=device
        )
        rollout = sampler.rollout(
            noise,
            model.denoiser(condition, guidance=sampler.uses_guidance),
            num_generations=num_samples,
            seed=seed,
            chunk_size=batch_size,
            first_clip=start,
        )
        videos.append(rollout.latents.cpu())
    return torch.cat(videos)


def evaluate_predictor(
    model: VideoPredictor,
    sampler: EulerHybridSampler,
    batch: Mapping[str, Any],  # collated held-out clips
    *,
    num_samples: int = 4,
    seed: int = 0,
    batch_size: int = 16,
    decode: bool = False,
) -> EvalResult:
    """Latent L1, cosine and reward on held-out clips, under fixed noise, so that two models can be paired.

    With ``decode`` PSNR and SSIM as well, where the codec can.
    """
    was_training = model.training
    model.eval()
    videos = predict(model, sampler, batch, num_samples=num_samples, seed=seed, batch_size=batch_size)
    model.train(was_training)
    return score(videos, batch, codec=model.codec if decode else None)


def score(
    videos: Tensor,  # [B, num_samples, F, C, h, w]
    batch: Mapping[str, Any],  # collated clips
    *,
    codec: AnyCodec | None = None,
) -> EvalResult:
    """Metrics of predictions; PSNR and SSIM too where there is a codec that decodes."""
    result = latent_reward(videos, batch["latents"].float())
    episodes = list(batch["episode_id"])
    values = {"l1": result.l1, "cosine": result.cosine, "reward": result.reward}  # each [B, num_samples, F]
    if codec is not None and codec.can_decode:
        values |= _decoded_metrics(videos, batch["latents"], codec)
    per_clip = {name: value.mean((1, 2)).tolist() for name, value in values.items()}
    return EvalResult(
        **{name: bootstrap(per_clip[name], episodes) for name in values},
        num_clips=len(episodes),
        num_samples=videos.shape[1],
        per_frame={name: value.mean((0, 1)).tolist() for name, value in values.items()},
        per_clip=per_clip,
        episode_ids=episodes,
    )


def decode_video(
    codec: AnyCodec,
    latents: Tensor,  # [..., F, C, h, w]
) -> Tensor:  # [..., F, 3, H, W] in [0, 1], on the CPU
    """Frames of latent videos.

    Raises:
        ValueError: the codec only stands for one that is not at hand.
    """
    return codec.decode(latents.to(codec.device)).float().cpu()


def _decoded_metrics(
    videos: Tensor,  # [B, num_samples, F, C, h, w]
    target: Tensor,  # [B, F, C, h, w]
    codec: AnyCodec,
) -> dict[str, Tensor]:  # each [B, num_samples, F]
    """PSNR and SSIM, one clip after the other: decoded videos are much larger than latents."""
    values: dict[str, list[Tensor]] = {"psnr": [], "ssim": []}
    for clip, expert in zip(videos, target, strict=True):
        frames = decode_video(codec, clip)
        expected = decode_video(codec, expert).expand_as(frames)
        values["psnr"].append(psnr(frames, expected))
        values["ssim"].append(ssim(frames, expected))
    return {name: torch.stack(parts) for name, parts in values.items()}
