"""Gathers what pages show: loads results, and predicts held-out clips with a run's base and its newest checkpoint."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vampo_core.config import VampoConfig
from vampo_core.evaluation.panels import colour_map, frame_error
from vampo_core.evaluation.predictor import EvalResult, held_out_batch, score
from vampo_core.pipeline.base import find_base
from vampo_core.pipeline.clips import prepare_clips
from vampo_core.pipeline.predictor import inference_predictor
from vampo_core.pipeline.shown_clips import (
    predict_held_out,
    predict_shown,
    shown_clips,
    spread,
    videos_of,
    view_of,
)
from vampo_core.policy.evaluation import PolicyEvalResult
from vampo_core.policy.settings import SETTINGS_FILE, policy_settings
from vampo_core.report.values import BASE, EXPERT, ChainResult, ClipVideo, PolicySummary, RunSummary, result_name
from vampo_core.training.checkpoint import Checkpoints, find_checkpoint, read_counters, step_of
from vampo_core.training.metrics import read_metrics


def gather(config: VampoConfig) -> RunSummary:
    """Load the run in ``run.dir`` and predict its held-out clips with its base and its newest checkpoint.

    Raises:
        ValueError: there is no run with a checkpoint.
    """
    folder = Path(config.run.dir)
    checkpoint = find_checkpoint(folder)
    model = inference_predictor(config, checkpoint)
    codec, num_parameters, given = model.codec, model.num_parameters, model.num_given_frames
    batch = held_out_batch(prepare_clips(config, codec).held_out, config.evaluation.num_clips)
    rows = read_metrics(folder / "metrics.jsonl")
    result = result_name(rows)
    latents = {result: predict_held_out(config, model, batch)}
    del model  # two large models need not fit the device together
    base = find_base(config, codec)
    if base is None:
        before = EvalResult.from_dict(read_counters(checkpoint)["before"])
    else:
        latents = {BASE: predict_held_out(config, inference_predictor(config, base), batch), **latents}
        before = score(latents[BASE], batch, codec=codec, num_given_frames=given)
    decoded = codec.can_decode
    shown = spread(len(batch["clip_id"]))
    view = view_of(codec, batch["latents"][shown].float())
    videos, error_scale = _videos(batch, shown, latents, view)
    best = Checkpoints(checkpoint.parent).best
    return RunSummary(
        config=config,
        rows=rows,
        before=before,
        after=score(latents[result], batch, codec=codec, num_given_frames=given),
        videos=videos,
        error_scale=error_scale,
        decoded=decoded,
        step=step_of(checkpoint),
        best_step=step_of(checkpoint if best is None else best),
        num_parameters=num_parameters,
        base=base,
    )


def gather_chain(config: VampoConfig, result: ChainResult) -> tuple[list[ClipVideo], bool]:
    """Predict some held-out clips with all arms of a chain, those with the base's weights left out.

    Returns:
        The clips with the expert's video and one of each arm, by the arm's title, and whether they show frames. No
        clips where the arms' predictors are not known.
    """
    predictors = {arm.title: arm.predictor for name, arm in result.arms.items() if name == "base" or arm.unit}
    if None in predictors.values():
        return [], True
    latents: dict[str, Tensor] = {}  # each [clips shown, num_samples, F, C, h, w]
    for title, folder in predictors.items():
        assert folder is not None
        model = inference_predictor(config, folder)
        if not latents:
            codec = model.codec
            clips = shown_clips(config, codec)
        latents[title] = predict_shown(config, model, clips)
        del model  # two large models need not fit the device together
    return videos_of(clips, latents, codec), codec.can_decode


def is_policy_run(folder: Path) -> bool:
    """Whether the newest checkpoint of a run is a policy's."""
    return (find_checkpoint(folder) / SETTINGS_FILE).is_file()


def gather_policy(config: VampoConfig) -> PolicySummary:
    """Load the results of the policy run in ``run.dir``; nothing is computed again.

    Raises:
        ValueError: there is no run with a checkpoint.
    """
    checkpoint = find_checkpoint(config.run.dir)
    counters, settings = read_counters(checkpoint), policy_settings(checkpoint)
    source = f" of {config.policy.predictor or 'the base'}" if settings.uses_predictions else ""
    return PolicySummary(
        config=config,
        rows=read_metrics(Path(config.run.dir) / "metrics.jsonl"),
        before=PolicyEvalResult.from_dict(counters["before"]),
        after=PolicyEvalResult.from_dict(counters["last"]),
        step=step_of(checkpoint),
        facts=[
            f"{settings.sees}{source}",
            f"chunks of {settings.action_horizon} actions, {settings.num_executed_steps} executed",
        ],
    )


def _videos(
    batch: Mapping[str, Any],
    shown: list[int],
    latents: Mapping[str, Tensor],  # label -> [B, num_samples, F, C, h, w]
    view: Callable[[Tensor], Tensor],
) -> tuple[list[ClipVideo], float]:
    """The first sample of each clip, with error maps that all have the same scale."""
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
