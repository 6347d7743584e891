"""SVD's condition: first frame, tokens and micro-conditioning."""

from dataclasses import dataclass

from torch import Tensor

from vampo_core.models.condition import Condition


@dataclass(frozen=True)
class SVDCondition(Condition):
    """Conditions of B clips, as SVD's UNet takes them; without guidance the time ids stay as they are.

    ``encoder_hidden_states`` are text tokens, or SVD's own image embedding.
    """

    added_time_ids: Tensor  # [B, 3]: fps, motion bucket, noise augmentation
