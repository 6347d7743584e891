"""What a predicted video depends on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class Condition:
    """Conditions of B clips, as SVD's UNet takes them."""

    image_latents: Tensor  # [B, C, h, w]: first frame's latents, not multiplied by the codec's scaling factor
    encoder_hidden_states: Tensor  # [B, L, D]: text tokens (or SVD's image embedding) for cross-attention
    added_time_ids: Tensor  # [B, 3]: fps, motion bucket, noise augmentation

    def __post_init__(self) -> None:
        sizes = {field.name: getattr(self, field.name).shape[0] for field in fields(self)}
        if len(set(sizes.values())) != 1:
            raise ValueError(f"condition holds {sizes} clips, expected as many in each part")

    @property
    def num_clips(self) -> int:
        """B."""
        return self.image_latents.shape[0]

    def index_select(self, clip_index: Tensor) -> Condition:  # clip_index [N]
        """The conditions of rows: row n is that of clip ``clip_index[n]``."""
        return self._map(lambda value: value.index_select(0, clip_index))

    def repeat(self, num_generations: int) -> Condition:
        """Each clip's condition G times in a row, the order of a folded ``[B, G]``."""
        return self._map(lambda value: value.repeat_interleave(num_generations, 0))

    def unconditional(self) -> Condition:
        """Of classifier-free guidance: zero image latents and zero text, as in SVD; the time ids stay."""
        return self.drop(torch.ones(self.num_clips, dtype=torch.bool, device=self.image_latents.device))

    def drop(self, mask: Tensor) -> Condition:  # mask [B] bool
        """Make the marked clips unconditional: what training for classifier-free guidance does to a random few."""
        return Condition(
            image_latents=self.image_latents.masked_fill(mask.view(-1, 1, 1, 1), 0),
            encoder_hidden_states=self.encoder_hidden_states.masked_fill(mask.view(-1, 1, 1), 0),
            added_time_ids=self.added_time_ids,
        )

    def detach(self) -> Condition:
        """The same without gradient to a trainable text encoder."""
        return self._map(Tensor.detach)

    def to(self, *args, **kwargs) -> Condition:
        """As ``Tensor.to``."""
        return self._map(lambda value: value.to(*args, **kwargs))

    @staticmethod
    def cat(conditions: Sequence[Condition]) -> Condition:
        """The clips of several conditions, one after the other."""
        return Condition(*(torch.cat([getattr(c, f.name) for c in conditions]) for f in fields(Condition)))

    def _map(self, function) -> Condition:
        return Condition(*(function(getattr(self, field.name)) for field in fields(self)))
