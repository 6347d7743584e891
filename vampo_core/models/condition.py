"""What a predicted video depends on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

C = TypeVar("C", bound="Condition")


@dataclass(frozen=True)
class Condition:
    """Conditions of B clips. Backbones add fields; every field is a tensor whose first axis is B."""

    image_latents: Tensor  # [B, C, h, w]: latents of the first frame, not multiplied by the codec's scaling factor
    encoder_hidden_states: Tensor  # [B, L, D]: tokens for cross-attention

    def __post_init__(self) -> None:
        sizes = {field.name: getattr(self, field.name).shape[0] for field in dataclasses.fields(self)}
        if len(set(sizes.values())) != 1:
            raise ValueError(f"condition holds {sizes} clips, expected as many in each part")

    @property
    def num_clips(self) -> int:
        """Number of clips (B)."""
        return self.image_latents.shape[0]

    def index_select(self: C, clip_index: Tensor) -> C:  # clip_index [N]
        """The conditions of rows: row n has the condition of clip ``clip_index[n]``."""
        return self._map(lambda value: value.index_select(0, clip_index))

    def repeat(self: C, num_generations: int) -> C:
        """Each clip's condition G times in a row, the order of a folded ``[B, G]``."""
        return self._map(lambda value: value.repeat_interleave(num_generations, 0))

    def unconditional(self: C) -> C:
        """The condition of the unconditional half of classifier-free guidance: zero image latents and zero tokens."""
        return self.drop(torch.ones(self.num_clips, dtype=torch.bool, device=self.image_latents.device))

    def drop(self: C, mask: Tensor) -> C:  # mask [B] bool
        """Make the marked clips unconditional, as training for classifier-free guidance does to a random few."""
        return dataclasses.replace(
            self,
            image_latents=self.image_latents.masked_fill(mask.view(-1, 1, 1, 1), 0),
            encoder_hidden_states=self.encoder_hidden_states.masked_fill(mask.view(-1, 1, 1), 0),
        )

    def detach(self: C) -> C:
        """The same without gradient to a trainable text encoder."""
        return self._map(Tensor.detach)

    def to(self: C, *args, **kwargs) -> C:
        """As ``Tensor.to``."""
        return self._map(lambda value: value.to(*args, **kwargs))

    @classmethod
    def cat(cls: type[C], conditions: Sequence[C]) -> C:
        """The clips of several conditions of one kind, one after the other."""
        kind, fields = type(conditions[0]), dataclasses.fields(conditions[0])
        return kind(*(torch.cat([getattr(c, field.name) for c in conditions]) for field in fields))

    def _map(self: C, function: Callable[[Tensor], Tensor]) -> C:
        return type(self)(*(function(getattr(self, field.name)) for field in dataclasses.fields(self)))
