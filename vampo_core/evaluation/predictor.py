"""Held-out metrics of a predictor, with their intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from vampo_core.config import RewardConfig
from vampo_core.data.clips import collate
from vampo_core.diffusion.sampler import EulerHybridSampler
from vampo_core.evaluation.images import psnr, ssim
from vampo_core.evaluation.judge import Judge
from vampo_core.evaluation.metrics import METRICS
from vampo_core.evaluation.statistics import Metric, bootstrap, metrics_of
from vampo_core.models.codecs.base import Codec, per_latent_frame
from vampo_core.models.predictor import VideoPredictor
from vampo_core.ops import latent_reward

RATIOS = {
    "motion_ratio": ("motion", "expert_motion"),
    "action_ratio": ("action_length", "expert_action_length"),
}
"""Metrics that are a ratio of means, each with what it divides; 1 is the expert's."""
LEVELS = ("action_error_true", "action_error_still")
"""What a metric would be for other videos than the predicted ones."""


@dataclass(frozen=True)
class EvalResult:
    """Metrics of one predictor on held-out clips.

    ``reward`` is always the paper's ``cosine - l1``, so that runs with different rewards can be compared. ``psnr`` (dB)
    and ``ssim`` compare decoded predictions with the expert's decoded latents, so that what the codec loses does not
    count; both are None where nothing was decoded. ``motion_ratio`` is how much of the expert's change from frame to
    frame is left in the predictions. A judge measures the actions that are read from them, normalized:
    ``action_error``, and ``action_ratio``, how much of the length of the expert's actions is left; ``decoder_error`` is
    the error of the decoder that a reward trains on. They are None where they cannot be measured. A new metric is a
    field here and a line in ``METRICS``.
    """

    l1: Metric
    cosine: Metric
    reward: Metric
    num_clips: int
    num_samples: int
    per_frame: dict[str, list[float]]  # metric -> [F]
    per_clip: dict[str, list[float]]  # metric -> [num_clips]
    episode_ids: list[str]  # [num_clips]: intervals resample episodes, as clips of one episode resemble each other
    psnr: Metric | None = None
    ssim: Metric | None = None
    motion_ratio: Metric | None = None
    action_error: Metric | None = None
    action_ratio: Metric | None = None
    decoder_error: Metric | None = None
    action_error_true: float | None = None
    """``action_error`` of the expert's own video: what the judge's mistakes cost."""
    action_error_still: float | None = None
    """``action_error`` of a video in which nothing moves."""

    @property
    def metrics(self) -> dict[str, Metric]:
        """The metrics that were measured, by name."""
        return metrics_of(self)

    def score(self, reward: RewardConfig, best_by: str = "reward") -> float:
        """The number that is highest for the best checkpoint.

        Args:
            reward: weights of cosine and L1, for ``best_by = "reward"``. Other rewards are not measured here; where
                there are only such, the score is :attr:`reward`.
            best_by: name of the metric that decides; what was not measured leaves the decision to ``"reward"``.
        """
        metric = self.metrics.get(best_by)
        if best_by != "reward" and metric is not None:
            return _score_of(best_by, metric.mean)
        if not reward.l1_weight and not reward.cosine_weight:
            return self.reward.mean
        return reward.cosine_weight * self.cosine.mean - reward.l1_weight * self.l1.mean

    def row(self) -> dict[str, float]:
        """The means for a line of ``metrics.jsonl``."""
        return {name: metric.mean for name, metric in self.metrics.items() if name not in ("psnr", "ssim")}

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain Python values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "EvalResult":
        """The inverse of :meth:`to_dict`."""
        metrics = {name: Metric.from_dict(values[name]) for name in METRICS if values.get(name) is not None}
        return cls(**{**values, **metrics})


def held_out_batch(dataset: Dataset[Any], num_clips: int) -> dict[str, Any]:
    """``num_clips`` clips spread evenly over a dataset, collated; all of them where there are fewer."""
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
    first_clip: int = 0,
) -> Tensor:  # [B, num_samples, F, C, h, w] on the CPU
    """Draw videos as in training, ``num_samples`` for every clip; they depend only on the seed and the clip's index.

    ``first_clip`` is the index of the batch's first clip: parts of a batch draw what the whole batch would.
    """
    device = model.device
    videos = []
    for start in range(0, len(batch["instruction"]), batch_size):
        latents = batch["latents"][start : start + batch_size].to(device)
        condition = model.observed_condition(latents[:, 0], batch["instruction"][start : start + batch_size])
        shape = tuple(model.predicted(latents).shape)
        noise = sampler.initial_noise(shape, seed=seed, first_clip=first_clip + start, device=device)
        rollout = sampler.rollout(
            noise,
            model.denoiser(condition, guidance=sampler.guides),
            num_generations=num_samples,
            seed=seed,
            chunk_size=batch_size,
            first_clip=first_clip + start,
        )
        videos.append(model.whole(condition, rollout.latents).cpu())
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
    judge: Judge | None = None,
) -> EvalResult:
    """Metrics on held-out clips, with fixed noise, so that two models can be paired.

    With ``decode``, also PSNR and SSIM where the codec can decode; with a judge, also those of actions.
    """
    was_training = model.training
    model.eval()
    videos = predict(model, sampler, batch, num_samples=num_samples, seed=seed, batch_size=batch_size)
    model.train(was_training)
    codec = model.codec if decode else None
    return score(videos, batch, codec=codec, judge=judge, num_given_frames=model.num_given_frames)


def score(
    videos: Tensor,  # [B, num_samples, F, C, h, w]
    batch: Mapping[str, Any],  # collated clips
    *,
    codec: Codec | None = None,
    judge: Judge | None = None,
    num_given_frames: int = 0,
) -> EvalResult:
    """Metrics of predictions; arguments are those of :func:`frame_metrics`."""
    values = frame_metrics(videos, batch, codec=codec, judge=judge, num_given_frames=num_given_frames)
    return summarize(values, list(batch["episode_id"]))


def frame_metrics(
    videos: Tensor,  # [B, num_samples, F, C, h, w]
    batch: Mapping[str, Any],  # collated clips
    *,
    codec: Codec | None = None,
    judge: Judge | None = None,
    num_given_frames: int = 0,
) -> dict[str, Tensor]:  # each [B, num_samples, F - num_given_frames]
    """What is measured of every predicted frame, by name.

    Args:
        videos: predictions.
        batch: clips with the expert's latents.
        codec: codec for PSNR and SSIM, where it can decode.
        judge: judge of actions; it is on the CPU, as the predictions are.
        num_given_frames: number of first frames that were given, not predicted; they are not measured.
    """
    expert = batch["latents"].float()
    result = latent_reward(videos, expert)
    values = {"l1": result.l1, "cosine": result.cosine, "reward": result.reward, "motion": _motion(videos)}
    values["expert_motion"] = _motion(expert.unsqueeze(1)).expand(videos.shape[:3])
    if judge is not None:
        values |= judge(videos, batch)
    if codec is not None and codec.can_decode:
        values |= _decoded_metrics(videos, batch["latents"], codec)
    return {name: value[:, :, num_given_frames:] for name, value in values.items()}


def summarize(
    values: Mapping[str, Tensor],  # name -> [B, num_samples, F], from frame_metrics
    episodes: Sequence[str],  # [B], episode of each clip
) -> EvalResult:
    """Means and intervals of metrics of frames."""
    shown = {name: value for name, value in values.items() if name in METRICS}
    per_clip = {name: value.mean((1, 2)).tolist() for name, value in shown.items()}
    per_frame = {name: value.mean((0, 1)).tolist() for name, value in shown.items()}
    for name, (part, whole) in RATIOS.items():
        if part in values and float(values[whole].mean()) > 0:
            # The ratio of means, as ratios of single clips explode where the expert hardly moves. A clip's part is
            # linearized (the delta method), so that an interval does not count how much the expert's clips differ.
            clip, expert = values[part].mean((1, 2)).double(), values[whole].mean((1, 2)).double()
            ratio = clip.mean() / expert.mean()
            per_clip[name] = (ratio + (clip - ratio * expert) / expert.mean()).tolist()
            per_frame[name] = (values[part].mean((0, 1)) / values[whole].mean((0, 1)).clamp_min(1e-12)).tolist()
    measured: dict[str, Any] = {name: bootstrap(x, episodes) for name, x in per_clip.items()}
    measured |= {name: values[name].mean().item() for name in LEVELS if name in values}
    return EvalResult(
        **measured,
        num_clips=len(episodes),
        num_samples=values["l1"].shape[1],
        per_frame=per_frame,
        per_clip=per_clip,
        episode_ids=list(episodes),
    )


def _score_of(metric: str, mean: float) -> float:
    """How good a value of a metric is: errors count down, ratios towards 1."""
    if metric in RATIOS:
        return -abs(mean - 1)
    return mean if METRICS[metric].higher_is_better else -mean


def _motion(videos: Tensor) -> Tensor:  # [B, S, F, C, h, w] -> [B, S, F]
    """Mean absolute change from the frame before; the first frame is credited with the change to its successor."""
    change = videos.float().diff(dim=2).abs().flatten(3).mean(-1)
    return torch.cat([change[:, :, :1], change], dim=2)


def decode_video(
    codec: Codec,
    latents: Tensor,  # [..., F, C, h, w]
) -> Tensor:  # [..., F, 3, H, W] in [0, 1], on the CPU
    """Frames of latent videos.

    Raises:
        ValueError: the codec cannot decode.
    """
    return codec.decode(latents.to(codec.device)).float().cpu()


def _decoded_metrics(
    videos: Tensor,  # [B, num_samples, F, C, h, w]
    target: Tensor,  # [B, F, C, h, w]
    codec: Codec,
) -> dict[str, Tensor]:  # each [B, num_samples, F]
    """PSNR and SSIM, one clip at a time, as decoded videos are much larger than latents."""
    values: dict[str, list[Tensor]] = {"psnr": [], "ssim": []}
    for clip, expert in zip(videos, target, strict=True):
        frames = decode_video(codec, clip)
        expected = decode_video(codec, expert).expand_as(frames)
        values["psnr"].append(per_latent_frame(psnr(frames, expected), codec.temporal_ratio))
        values["ssim"].append(per_latent_frame(ssim(frames, expected), codec.temporal_ratio))
    return {name: torch.stack(parts) for name, parts in values.items()}
