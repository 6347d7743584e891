"""What a report shows: metrics of base and result on the same held-out clips, a few videos, the history."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vampo_core.config import VampoConfig
from vampo_core.evaluation.panels import colour_map, frame_error
from vampo_core.evaluation.predictor import EvalResult, decode_video, held_out_batch, predict, score
from vampo_core.models.predictor import VideoPredictor
from vampo_core.pipeline.base import find_base
from vampo_core.pipeline.clips import prepare_clips
from vampo_core.pipeline.predictor import inference_predictor
from vampo_core.training.checkpoint import Checkpoints, find_checkpoint, read_counters, step_of
from vampo_core.training.metrics import read_metrics

NUM_VIDEOS = 6
EXPERT, BASE, RESULT, PRETRAINED = "Expert", "Base", "VAMPO", "Pretrained"


@dataclass(frozen=True)
class ClipVideo:
    """Panels of one held-out clip, in the order in which they are shown."""

    clip_id: str
    instruction: str
    panels: dict[str, Tensor]  # label -> [F, 3, H, W] in [0, 1]
    l1: dict[str, float]  # of the prediction shown, by label


@dataclass(frozen=True)
class RunSummary:
    """A finished or interrupted run."""

    config: VampoConfig
    rows: list[dict[str, Any]]  # metrics.jsonl
    before: EvalResult
    after: EvalResult
    videos: list[ClipVideo]
    error_scale: float  # where the error map is at its brightest
    decoded: bool  # whether videos are frames, or latents in false colours
    step: int  # of the checkpoint that is shown
    best_step: int
    num_parameters: int
    base: Path | None  # None where the base model is not there any more: nothing of it was predicted

    @property
    def result_name(self) -> str:
        """What the run made, as panels and tables call it."""
        return _result_name(self.rows)


def gather(config: VampoConfig) -> RunSummary:
    """Load the run in ``run.dir`` and predict its held-out clips with its base and its newest checkpoint.

    Raises:
        ValueError: there is no run with a checkpoint.
    """
    folder = Path(config.run.dir)
    checkpoint = find_checkpoint(folder)
    model = inference_predictor(config, checkpoint)
    codec, num_parameters = model.codec, sum(p.numel() for p in model.unet.parameters())
    batch = held_out_batch(prepare_clips(config, codec).held_out, config.evaluation.num_clips)
    rows = read_metrics(folder / "metrics.jsonl")
    result = _result_name(rows)
    latents = {result: _predict(config, model, batch)}
    model.unet.cpu()  # two large models need not fit the device together
    base = find_base(config, codec)
    if base is None:
        before = EvalResult.from_dict(read_counters(checkpoint)["before"])
    else:
        latents = {BASE: _predict(config, inference_predictor(config, base), batch), **latents}
        before = score(latents[BASE], batch, codec=codec)
    decoded = codec.can_decode
    shown = np.unique(np.linspace(0, len(batch["clip_id"]) - 1, NUM_VIDEOS).round().astype(int)).tolist()
    expert = batch["latents"][shown].float()
    view: Callable[[Tensor], Tensor] = (lambda x: decode_video(codec, x)) if decoded else false_colours(expert)
    videos, error_scale = _videos(batch, shown, latents, view)
    best = Checkpoints(checkpoint.parent).best
    return RunSummary(
        config=config,
        rows=rows,
        before=before,
        after=score(latents[result], batch, codec=codec),
        videos=videos,
        error_scale=error_scale,
        decoded=decoded,
        step=step_of(checkpoint),
        best_step=step_of(checkpoint if best is None else best),
        num_parameters=num_parameters,
        base=base,
    )


def false_colours(latents: Tensor) -> Callable[[Tensor], Tensor]:  # [..., C, h, w]
    """A map from latents to colours: their three principal components, 1 to 99 % of which span the range."""
    channels = latents.movedim(-3, -1).reshape(-1, latents.shape[-3]).double()  # [N, C]
    mean = channels.mean(0)
    axes = torch.linalg.eigh((channels - mean).T @ (channels - mean)).eigenvectors.flip(1)[:, :3]  # [C, 3]
    axes = axes * axes.sum(0).sign()  # the sign of an eigenvector is arbitrary
    axes = torch.nn.functional.pad(axes, (0, 3 - axes.shape[1]))
    projected = (channels - mean) @ axes
    low, high = np.quantile(projected.numpy(), [0.01, 0.99], axis=0)
    low, span = torch.from_numpy(low), torch.from_numpy(np.maximum(high - low, 1e-9))

    def view(latents: Tensor) -> Tensor:  # [..., C, h, w] -> [..., 3, h, w]
        colours = ((latents.movedim(-3, -1).double() - mean) @ axes - low) / span
        return colours.clamp(0, 1).movedim(-1, -3).float()

    return view


def _result_name(rows: Sequence[Mapping[str, Any]]) -> str:
    return PRETRAINED if rows and "rollout_s" not in rows[-1] else RESULT


def _predict(config: VampoConfig, model: VideoPredictor, batch: Mapping[str, Any]) -> Tensor:
    settings = config.evaluation
    return predict(
        model,
        model.sampler(**config.sampler.overrides()),
        batch,
        num_samples=settings.num_samples,
        seed=settings.seed,
        batch_size=settings.batch_size,
    )


def _videos(
    batch: Mapping[str, Any],
    shown: list[int],
    latents: Mapping[str, Tensor],  # label -> [B, num_samples, F, C, h, w]
    view: Callable[[Tensor], Tensor],
) -> tuple[list[ClipVideo], float]:
    """The first sample of each clip, and error maps on one scale for all of them."""
    frames = [
        {EXPERT: view(batch["latents"][i].float()), **{label: view(x[i, 0]) for label, x in latents.items()}}
        for i in shown
    ]
    errors = [{label: frame_error(panels[label], panels[EXPERT]) for label in latents} for panels in frames]
    first = next(iter(latents))
    scale = float(np.quantile(torch.stack([error[first] for error in errors]).numpy(), 0.995)) or 1.0
    videos = [
        ClipVideo(
            clip_id=batch["clip_id"][i],
            instruction=batch["instruction"][i],
            panels=frames[n] | {f"{label} error": colour_map(errors[n][label] / scale) for label in latents},
            l1={label: (x[i, 0] - batch["latents"][i]).abs().mean().item() for label, x in latents.items()},
        )
        for n, i in enumerate(shown)
    ]
    return videos, scale
