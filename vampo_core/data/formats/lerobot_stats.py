"""Statistics that a LeRobotDataset keeps of each feature: extremes, mean, standard deviation, quantiles, count."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
_LEVELS = np.arange(256) / 255


def row_stats(rows: np.ndarray) -> dict[str, np.ndarray]:  # [T] or [T, D] -> each [1] or [D]
    """Statistics of a column."""
    values = rows.reshape(len(rows), -1).astype(np.float64)
    quantiles = np.quantile(values, list(QUANTILES.values()), axis=0)
    return {
        "min": values.min(0),
        "max": values.max(0),
        "mean": values.mean(0),
        "std": values.std(0),
        "count": np.array([len(rows)]),
        **dict(zip(QUANTILES, quantiles, strict=True)),
    }


class ImageStats:
    """Statistics of pictures, by channel and in [0, 1], from counts of their 256 levels."""

    def __init__(self) -> None:
        self._counts = np.zeros((3, 256), np.int64)
        self._num_pictures = 0

    def add(self, pictures: Tensor) -> None:  # [N, H, W, 3] uint8
        """Count pictures."""
        self._num_pictures += len(pictures)
        for channel in range(3):
            self._counts[channel] += np.bincount(pictures[..., channel].numpy().ravel(), minlength=256)

    def merge(self, other: "ImageStats") -> None:
        """Add what another one has counted."""
        self._counts += other._counts
        self._num_pictures += other._num_pictures

    def result(self) -> dict[str, np.ndarray]:  # each [3, 1, 1]
        """The statistics."""
        share = self._counts / self._counts.sum(1, keepdims=True)
        mean = share @ _LEVELS
        found: dict[str, np.ndarray] = {
            "min": _LEVELS[(self._counts > 0).argmax(1)],
            "max": _LEVELS[255 - (self._counts[:, ::-1] > 0).argmax(1)],
            "mean": mean,
            "std": np.sqrt(np.maximum(share @ _LEVELS**2 - mean**2, 0)),
        }
        below = share.cumsum(1)
        for name, quantile in QUANTILES.items():
            found[name] = _LEVELS[(below >= quantile - 1e-12).argmax(1)]
        shaped = {name: values.reshape(3, 1, 1) for name, values in found.items()}
        return {**shaped, "count": np.array([self._num_pictures])}


def json_lists(stats: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The statistics as nested lists of numbers."""
    return {name: values.tolist() for name, values in stats.items()}
