"""Clips of batch n, as a pure function of seed and n for any number of ranks."""

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler


class ClipSampler(Sampler[list[int]]):
    """Endless batches of clip indices, for the ``batch_sampler`` of a DataLoader.

    A single dataset is visited in a new random order each epoch. With several datasets, each draw picks a dataset by
    weight and then the clip at this position of the dataset's order, so that no clip comes twice in one epoch of its
    dataset. Indices count through the datasets one after the other, as in ``torch.utils.data.ConcatDataset``.

    Args:
        sizes: number of clips of each dataset.
        batch_size: number of clips per batch, over all ranks together.
        weights: relative frequency of each dataset; by default its number of clips.
        seed: seed of the order.
        rank: number of this process; ranks take adjacent parts of each batch.
        world_size: number of ranks, a divisor of ``batch_size``.
        start_batch: number of the first batch to give; to resume, the number of batches consumed so far.

    Raises:
        ValueError: an argument is wrong.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        batch_size: int,
        weights: Sequence[float] | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        start_batch: int = 0,
    ) -> None:
        weights = sizes if weights is None else weights
        if not sizes or min(sizes) < 1:
            raise ValueError(f"sizes is {list(sizes)}, expected at least one dataset and one clip in each")
        if len(weights) != len(sizes) or not np.isfinite(weights).all() or min(weights) <= 0:
            raise ValueError(f"weights is {list(weights)}, expected {len(sizes)} positive numbers")
        if batch_size < 1 or world_size < 1 or batch_size % world_size:
            raise ValueError(f"batch_size is {batch_size}, expected a positive multiple of world_size = {world_size}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank is {rank}, expected 0 to {world_size - 1}")
        if seed < 0 or start_batch < 0:
            raise ValueError(f"seed is {seed} and start_batch is {start_batch}, expected at least 0")
        self.batch_size, self.seed, self.start_batch = batch_size, seed, start_batch
        self._share = range(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)
        self._sizes = list(sizes)
        self._offsets = np.cumsum([0, *sizes[:-1]]).tolist()
        self._shares = (np.cumsum(weights) / np.sum(weights)).tolist()
        self._orders: dict[int, tuple[int, np.ndarray]] = {}

    def __iter__(self) -> Iterator[list[int]]:
        number = self.start_batch
        while True:
            yield self.batch(number)
            number += 1

    def batch(self, number: int) -> list[int]:
        """Return this rank's part of batch ``number``."""
        return [self._clip(number * self.batch_size + i) for i in self._share]

    def _clip(self, position: int) -> int:
        dataset = 0
        if len(self._sizes) > 1:
            draw = np.random.default_rng([self.seed, 0, position]).random()
            dataset = min(int(np.searchsorted(self._shares, draw, side="right")), len(self._sizes) - 1)
        epoch, index = divmod(position, self._sizes[dataset])
        return self._offsets[dataset] + int(self._order(dataset, epoch)[index])

    def _order(self, dataset: int, epoch: int) -> np.ndarray:
        cached_epoch, order = self._orders.get(dataset, (-1, np.empty(0)))
        if cached_epoch != epoch:
            draws = np.random.default_rng([self.seed, 1, dataset, epoch]).random(self._sizes[dataset])
            order = np.argsort(draws, kind="stable")
            self._orders[dataset] = (epoch, order)
        return order
