"""The judge: what actions predicted videos stand for, measured with decoders that no training sees."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vampo_core.evaluation.actions import Decoders, action_errors, action_lengths, has_valid_actions


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Measures actions in predicted videos.

    Args:
        decoders: the judge's own decoders, by dataset.
        trained_on: decoders of the action reward, by dataset, whose error shows beside the judge's whether a gain is
            real; None where there is no such reward.
    """

    decoders: Decoders
    trained_on: Decoders | None = None

    @torch.no_grad()
    def __call__(
        self,
        videos: Tensor,  # [B, S, F, C, h, w]
        batch: Mapping[str, Any],  # B collated clips
    ) -> dict[str, Tensor]:  # each [B, S, F]
        """Errors and lengths of decoded actions, with those of the expert's video and of one that stands still."""
        videos = videos.float()
        expert = batch["latents"].to(videos).unsqueeze(1)  # [B, 1, F, C, h, w]
        still = expert[:, :, :1].expand_as(expert)

        counts = has_valid_actions(batch).to(videos.device).unsqueeze(1)  # [B, 1, F]

        def error(decoders: Decoders, of: Tensor) -> Tensor:  # [B, S, F]
            """Errors, with a clip's mean at frames that have none, so that they do not weigh in means over frames."""
            errors = action_errors(decoders, of, batch)
            mean = (errors * counts).sum(-1, keepdim=True) / counts.sum(-1, keepdim=True).clamp_min(1)
            return torch.where(counts, errors, mean).expand(videos.shape[:3])

        measured = {
            "action_error": error(self.decoders, videos),
            "action_error_true": error(self.decoders, expert),
            "action_error_still": error(self.decoders, still),
            "action_length": action_lengths(self.decoders, videos, batch),
            "expert_action_length": action_lengths(self.decoders, expert, batch).expand(videos.shape[:3]),
        }
        if self.trained_on is not None:
            measured["decoder_error"] = error(self.trained_on, videos)
        return measured
