"""Means with intervals, paired differences, success rates and their tests."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal, Protocol

import numpy as np

from vampo_core.evaluation.metrics import METRICS

NUM_RESAMPLES = 2000
CHANGE = "eval_change"
"""Beginning of the entries of ``metrics.jsonl`` that :func:`changes` makes."""
Direction = Literal["better", "worse", "unclear"]


@dataclass(frozen=True)
class Metric:
    """A mean and its 95 % interval.

    Formatting applies to every number: ``f"{metric:.2f}"`` is ``0.50 [0.41, 0.60]``, or ``0.50`` without an interval.
    """

    mean: float
    ci95: tuple[float, float] | None = None
    """None where there is no telling: of a single value, of equal ones, or of some that are not finite."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Metric":
        """The inverse of ``dataclasses.asdict``, also after JSON. A point is no interval."""
        ci95 = values["ci95"]
        return cls(values["mean"], None if ci95 is None else _interval(*ci95))

    def __format__(self, spec: str) -> str:
        return f"{self.mean:{spec}}{self.interval(spec, before=' ')}"

    def interval(self, spec: str, *, before: str = "") -> str:
        """``[low, high]`` after ``before``, or nothing without an interval."""
        return "" if self.ci95 is None else f"{before}[{self.ci95[0]:{spec}}, {self.ci95[1]:{spec}}]"


class PerClip(Protocol):
    """A result that has its metrics clip by clip."""

    @property
    def per_clip(self) -> dict[str, list[float]]:
        """Values by metric, one per clip."""
        ...

    @property
    def episode_ids(self) -> list[str]:
        """Episode of each clip."""
        ...


def bootstrap(values: Sequence[float], groups: Sequence[str], *, seed: int = 0) -> Metric:
    """Mean and 95 % percentile interval, resampling whole groups (episodes).

    With only one group, single values are resampled. Equal values, and a single one, get no interval: every resample
    is the same, and a point would look like certainty.

    Source: Efron and Tibshirani 1993, chapter 13; resampling clusters, as clips of one episode are not independent.
    """
    data = np.asarray(values, dtype=np.float64)
    if not np.isfinite(data).all():
        return Metric(float(data.mean()))
    _, codes = np.unique(np.asarray(groups), return_inverse=True)
    if codes.max(initial=0) == 0:
        codes = np.arange(len(data))
    num_groups = codes.max() + 1
    sums, counts = np.bincount(codes, weights=data), np.bincount(codes)
    picks = np.random.default_rng(seed).integers(num_groups, size=(NUM_RESAMPLES, num_groups))
    means = sums[picks].sum(1) / counts[picks].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Metric(float(data.mean()), _interval(float(low), float(high)))


def paired_difference(before: PerClip, after: PerClip, metric: str) -> Metric:
    """``after - before`` of a metric on the same clips, with its interval.

    Raises:
        ValueError: the results are of different clips.
    """
    if before.episode_ids != after.episode_ids:
        raise ValueError("before and after are of different clips, expected the same for a paired difference")
    difference = np.subtract(after.per_clip[metric], before.per_clip[metric])
    return bootstrap(difference.tolist(), before.episode_ids)


def outcome(before: PerClip, after: PerClip, metric: str) -> Direction:
    """What the interval of the paired difference says; unclear where it includes 0, or there is none."""
    interval = paired_difference(before, after, metric).ci95
    old, new = (float(np.mean(x.per_clip[metric])) for x in (before, after))
    return direction(metric, interval, before=old, after=new)


def direction(metric: str, interval: Sequence[float] | None, *, before: float, after: float) -> Direction:
    """Which way a metric went.

    Args:
        metric: name of the metric.
        interval: 95 % interval of its paired difference, if there is one.
        before: value of the base.
        after: value of the trained model.
    """
    if interval is None or interval[0] <= 0 <= interval[1]:
        return "unclear"
    info = METRICS[metric]
    if info.ideal is not None:
        return "better" if abs(after - info.ideal) < abs(before - info.ideal) else "worse"
    return "better" if (interval[0] > 0) == info.higher_is_better else "worse"


def changes(before: PerClip, after: PerClip, metrics: Iterable[str]) -> dict[str, float]:
    """Paired differences that are finite, as entries of a line of ``metrics.jsonl``.

    ``eval_change/l1`` is the difference of the metric ``l1``; ``eval_change/l1/low`` and ``/high`` are its interval.
    """
    entries = {}
    for name in metrics:
        difference = paired_difference(before, after, name)
        if math.isfinite(difference.mean):
            entries[f"{CHANGE}/{name}"] = difference.mean
            if difference.ci95 is not None:
                entries |= dict(zip((f"{CHANGE}/{name}/low", f"{CHANGE}/{name}/high"), difference.ci95, strict=True))
    return entries


def changes_of(row: Mapping[str, Any]) -> dict[str, Metric]:
    """The inverse of :func:`changes`: differences by metric, of a line of ``metrics.jsonl``."""
    found = {}
    for key, mean in row.items():
        start, _, name = key.partition("/")
        if start == CHANGE and "/" not in name:
            low, high = (row.get(f"{key}/{end}") for end in ("low", "high"))
            found[name] = Metric(mean, None if low is None or high is None else (low, high))
    return found


def metrics_of(result: Any) -> dict[str, Metric]:
    """The metrics that a result has as attributes, by name, in the order of ``METRICS``; None is left out."""
    return {name: value for name in METRICS if (value := getattr(result, name, None)) is not None}


def success_rate(successes: Sequence[bool]) -> Metric:
    """Share of successes and its 95 % Wilson interval."""
    num_successes = sum(successes)
    return Metric(num_successes / len(successes), wilson_interval(num_successes, len(successes)))


def wilson_interval(num_successes: int, num_trials: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of a proportion (Wilson 1927).

    Raises:
        ValueError: there are no trials, or more successes than trials.
    """
    if not 0 <= num_successes <= num_trials or num_trials < 1:
        raise ValueError(f"num_successes is {num_successes} of num_trials = {num_trials}, expected 0 to num_trials > 0")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    p, n = num_successes / num_trials, num_trials
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def mcnemar_exact(num_only_before: int, num_only_after: int) -> float:
    """Two-sided p-value of the exact McNemar test: a fair coin for every episode that only one of the two solved."""
    n, k = num_only_before + num_only_after, min(num_only_before, num_only_after)
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n)


def _interval(low: float, high: float) -> tuple[float, float] | None:
    """None for a point, apart from rounding."""
    return (low, high) if high - low > 1e-12 * max(abs(low), abs(high)) else None
