"""What the episodes of all readers have in common: a name, and latents in a file of their own."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from vampo_core.data.episode import check_indices, reading
from vampo_core.data.latent_files import read_latents, shape_of


@dataclass(frozen=True, kw_only=True)
class EncodedEpisode:
    """The part of :class:`vampo_core.data.Episode` that does not depend on the format."""

    dataset: str
    episode_id: str
    instruction: str
    length: int
    latents_file: Path | None = None
    is_held_out: bool | None = None

    @property
    def has_latents(self) -> bool:
        return self.latents_file is not None

    @property
    def latents_fingerprint(self) -> int | None:
        with reading(self.dataset, self.episode_id):
            return None if self.latents_file is None else self.latents_file.stat().st_size

    @property
    def latents_shape(self) -> tuple[int, ...] | None:  # (C, h, w)
        with reading(self.dataset, self.episode_id):
            return None if self.latents_file is None else shape_of(self.latents_file)

    def latents(self, indices: Sequence[int]) -> Tensor:  # [N, C, h, w] float32
        indices = check_indices(indices, self.length)
        if self.latents_file is None:
            raise ValueError(f"dataset {self.dataset!r} was opened without latents, expected the name of an encoding")
        with reading(self.dataset, self.episode_id):
            return read_latents(self.latents_file, indices)
