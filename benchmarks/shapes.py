"""The problem sizes that every operator is measured at."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """A batch of latent videos: B clips, G generations of each, F frames of C x H x W."""

    name: str
    num_clips: int
    num_generations: int
    num_frames: int
    latent: tuple[int, int, int]

    @property
    def clips(self) -> tuple[int, ...]:
        """One video per clip: ``[B, F, C, H, W]``."""
        return (self.num_clips, self.num_frames, *self.latent)

    @property
    def group(self) -> tuple[int, ...]:
        """G videos per clip: ``[B, G, F, C, H, W]``."""
        return (self.num_clips, self.num_generations, self.num_frames, *self.latent)

    @property
    def folded(self) -> tuple[int, ...]:
        """The group as one batch, as the deterministic tail of a rollout sees it: ``[B * G, F, C, H, W]``."""
        return (self.num_clips * self.num_generations, self.num_frames, *self.latent)


TINY = Shape("tiny", 1, 2, 1, (1, 2, 2))  # for the cost of the call itself
SMALL = Shape("small", 4, 8, 8, (16, 8, 8))  # the embedded default
PAPER = Shape("paper", 8, 8, 16, (4, 32, 32))  # VAMPO, arXiv 2603.19370
LARGE = Shape("large", 4, 16, 25, (4, 72, 128))  # Stable Video Diffusion's native 576 x 1024 pixels
SHAPES = {shape.name: shape for shape in (SMALL, PAPER, LARGE)}
