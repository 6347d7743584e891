"""The condition of a flow: first latent frame and text tokens."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from vampo_core.models.condition import Condition


@dataclass(frozen=True)
class FlowCondition(Condition):
    """Conditions of B clips; without guidance the first frame stays, and the text is the negative prompt's."""

    negative_hidden_states: Tensor  # [B, L, D]: tokens of the negative prompt

    def drop(self, mask: Tensor) -> FlowCondition:  # mask [B] bool
        """Make the marked clips unconditional: their text becomes the negative prompt's."""
        states = torch.where(mask.view(-1, 1, 1), self.negative_hidden_states, self.encoder_hidden_states)
        return dataclasses.replace(self, encoder_hidden_states=states)
