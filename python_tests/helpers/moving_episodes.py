"""Made-up expert episodes whose latents show what their actions did, and a decoder that reads it without an error."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

SIDE, WIDEST = 4, 3
"""Height and width of the latents of :class:`WrittenEpisode`, and the numbers of an action that they have room for."""


@dataclass(frozen=True, kw_only=True)
class Moving:
    """Positions that actions, and pushes which nobody sees coming, have added up to."""

    number: int
    length: int = 12
    action_dim: int = 2
    dataset: str = "moving"
    instruction: str = "move it"
    pushed: tuple[int, ...] = ()
    """Frames at which the executed action is pushed the other way, three times as far."""

    @property
    def episode_id(self) -> str:
        return f"{self.number:03d}"

    @property
    def actions(self) -> Tensor:  # [T, A], whole numbers of -4 to 4
        generator = torch.Generator().manual_seed(self.number)
        rows = torch.randint(-4, 5, (self.length, self.action_dim), generator=generator).float()
        return torch.cat([rows[:-1], rows[-2:-1]])

    @property
    def states(self) -> Tensor:  # [T, 1]
        return torch.arange(self.length).float().unsqueeze(1)

    @property
    def is_pushed(self) -> Tensor:  # [T]
        return torch.tensor([t in self.pushed for t in range(self.length)])

    @property
    def positions(self) -> Tensor:  # [T, A]
        executed = torch.where(self.is_pushed.unsqueeze(1), -3 * self.actions, self.actions)
        return torch.cat([torch.zeros(1, self.action_dim), executed[:-1].cumsum(0)])

    def at(self, **changes) -> "Moving":
        return replace(self, **changes)


class WrittenEpisode(Moving):
    """Latents that list the last positions, the newest first: a row of numbers for each number of an action."""

    def latents(self, indices: Sequence[int]) -> Tensor:  # [N, WIDEST, SIDE, SIDE]
        positions = torch.cat([torch.zeros(SIDE**2, self.action_dim), self.positions])
        latents = torch.zeros(len(indices), WIDEST, SIDE**2)
        for row, t in enumerate(indices):
            latents[row, : self.action_dim] = positions[t + 1 : t + 1 + SIDE**2].flip(0).T
        return latents.unflatten(2, (SIDE, SIDE))


class BlobEpisode(Moving):
    """A blob that moves as the actions say, and comes back on the other side, before a background of its own."""

    def latents(self, indices: Sequence[int]) -> Tensor:  # [N, 2, 8, 8]
        generator = torch.Generator().manual_seed(1000 + self.number)
        background = 0.3 * torch.randn(2, 8, 8, generator=generator)
        away = (torch.arange(8.0) - 0.4 * self.positions[list(indices)].unsqueeze(2) + 4) % 8 - 4  # [N, 2, 8]
        rows, columns = torch.exp(-(away**2) / 2).unbind(1)
        blob = rows.unsqueeze(2) * columns.unsqueeze(1)  # [N, 8, 8]
        return background + torch.stack([2 * blob, -blob], dim=1)


class ReadsWritten:
    """The decoder of :class:`WrittenEpisode`: linear, and without an error. It reads only the second frame."""

    def __init__(self, num_actions: int, action_dim: int = 2, unit: float = 4.0) -> None:
        self.num_actions, self.action_dim, self.unit = num_actions, action_dim, unit

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:  # [N, C, h, w] each -> [N, n, A]
        newest_first = second.flatten(2)[:, : self.action_dim, : self.num_actions + 1]
        return newest_first.flip(2).diff(dim=2).transpose(1, 2) / self.unit

    def normalize(self, actions: Tensor) -> Tensor:
        return actions / self.unit
