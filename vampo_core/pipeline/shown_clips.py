"""Held-out clips for the eye: some of them, spread evenly, as the expert did them and as predictors imagine them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vampo_core.config import VampoConfig
from vampo_core.evaluation.predictor import decode_video, held_out_batch, predict
from vampo_core.models.codecs.base import Codec
from vampo_core.models.predictor import VideoPredictor
from vampo_core.pipeline.clips import prepare_clips
from vampo_core.report.values import EXPERT, ClipVideo

NUM_VIDEOS = 6


@dataclass(frozen=True, kw_only=True)
class ShownClips:
    """The clips that a page shows, out of those that an evaluation measures."""

    batch: Mapping[str, Any]
    """All measured clips, collated."""
    indices: list[int]
    """Those that are shown; the noise of a prediction follows from the index."""

    @property
    def expert(self) -> Tensor:
        """Latents of the expert's videos ``[clips shown, F, C, h, w]``."""
        return self.batch["latents"][self.indices].float()


def shown_clips(config: VampoConfig, codec: Codec) -> ShownClips:
    """The clips of a configuration's evaluation, and which of them to show; what is missing of the data is made.

    Raises:
        FileNotFoundError: there is no such dataset.
        ValueError: the dataset does not fit the codec, or the split is empty.
    """
    batch = held_out_batch(prepare_clips(config, codec).held_out, config.evaluation.num_clips)
    return ShownClips(batch=batch, indices=spread(len(batch["clip_id"])))


def predict_shown(config: VampoConfig, model: VideoPredictor, clips: ShownClips) -> Tensor:
    """What a predictor imagines of the shown clips ``[clips shown, num_samples, F, C, h, w]``, as it was measured."""
    parts = [{key: clips.batch[key][i : i + 1] for key in ("latents", "instruction")} for i in clips.indices]
    return torch.cat([predict_held_out(config, model, part, i) for part, i in zip(parts, clips.indices, strict=True)])


def predict_held_out(
    config: VampoConfig, model: VideoPredictor, batch: Mapping[str, Any], first_clip: int = 0
) -> Tensor:  # [B, num_samples, F, C, h, w]
    """Predictions of held-out clips with the sampler and the noise of a configuration's evaluation."""
    settings = config.evaluation
    return predict(
        model,
        model.sampler(**config.sampler.overrides(cheap_tail=config.evaluation.cheap_tail)),
        batch,
        num_samples=settings.num_samples,
        seed=settings.seed,
        batch_size=settings.batch_size,
        first_clip=first_clip,
    )


def videos_of(
    clips: ShownClips,
    latents: Mapping[str, Tensor],  # label -> [clips shown, num_samples, F, C, h, w]
    codec: Codec,
) -> list[ClipVideo]:
    """The expert's video of each clip, and the first prediction of each predictor, by its label."""
    expert, view = clips.expert, view_of(codec, clips.expert)
    return [
        ClipVideo(
            clip_id=clips.batch["clip_id"][i],
            instruction=clips.batch["instruction"][i],
            panels={EXPERT: view(expert[n]), **{label: view(x[n, 0]) for label, x in latents.items()}},
            l1={label: (x[n, 0] - expert[n]).abs().mean().item() for label, x in latents.items()},
        )
        for n, i in enumerate(clips.indices)
    ]


def view_of(codec: Codec, expert: Tensor) -> Callable[[Tensor], Tensor]:  # [..., F, C, h, w] -> [..., F, 3, H, W]
    """What shows latents: the codec's decoder, or false colours where it cannot decode."""
    return (lambda x: decode_video(codec, x)) if codec.can_decode else false_colours(expert)


def false_colours(latents: Tensor) -> Callable[[Tensor], Tensor]:  # [..., C, h, w]
    """A function from latents to colours: their three principal components, scaled so that 1 to 99 % span the range."""
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


def spread(num_clips: int) -> list[int]:
    """Indices of the clips that are shown."""
    return np.unique(np.linspace(0, num_clips - 1, NUM_VIDEOS).round().astype(int)).tolist()
