"""What closed-loop evaluation found: episodes, rates with intervals, paired comparisons, and where they are kept."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from vampo_core.evaluation.predictor import Metric, bootstrap
from vampo_core.files import write_text

FORMAT, VERSION = "vampo_core.closed_loop", 1
_SETTINGS, EPISODES = "closed_loop.json", "episodes.jsonl"


@dataclass(frozen=True)
class EpisodeResult:
    """One episode; two are equal where the simulator did the same, however long that took."""

    env: str
    seed: int
    success: bool
    length: int
    """Control steps."""
    episode_return: float
    """Sum of the simulator's rewards."""
    max_coverage: float | None = None
    """PushT: the largest share of the target that the block covered."""
    latencies_ms: tuple[float, ...] = field(default=(), compare=False)  # [length], what each step waited for its action
    video: str | None = field(default=None, compare=False)
    """File name under ``videos``."""

    @property
    def key(self) -> tuple[str, int]:
        return self.env, self.seed


@dataclass(frozen=True)
class Latency:
    """How long control steps waited for their action, over all slots of the batch together."""

    p50_ms: float
    p99_ms: float
    hz: float
    """Control steps per second that the controller alone would allow: one over the mean."""


@dataclass(frozen=True)
class ClosedLoopResult:
    """Episodes of one controller, in the order of environments and seeds."""

    episodes: list[EpisodeResult]

    @property
    def success(self) -> Metric:
        """Success rate with its Wilson interval."""
        return success_rate(self.episodes)

    @property
    def success_by_env(self) -> dict[str, Metric]:
        """Success rate of every environment."""
        names = dict.fromkeys(episode.env for episode in self.episodes)
        return {name: success_rate([e for e in self.episodes if e.env == name]) for name in names}

    @property
    def max_coverage(self) -> Metric | None:
        """Mean of the episodes' largest coverage; None where a simulator tells none."""
        return _mean([episode.max_coverage for episode in self.episodes])

    @property
    def length(self) -> Metric:
        """Mean number of control steps."""
        return _bootstrap([episode.length for episode in self.episodes])

    @property
    def latency(self) -> Latency | None:
        """None for the expert, which acts inside of the simulator's process."""
        latencies = np.array([ms for episode in self.episodes for ms in episode.latencies_ms])
        if not latencies.size:
            return None
        p50, p99 = np.percentile(latencies, [50, 99])
        return Latency(float(p50), float(p99), float(1000 / max(latencies.mean(), 1e-6)))

    def to_dict(self) -> dict[str, Any]:
        """Figures and episodes as plain Python values, for JSON."""
        coverage, latency = self.max_coverage, self.latency
        return {
            "num_episodes": len(self.episodes),
            "success": asdict(self.success),
            "success_by_env": {name: asdict(rate) for name, rate in self.success_by_env.items()},
            "max_coverage": None if coverage is None else asdict(coverage),
            "length": asdict(self.length),
            "latency": None if latency is None else asdict(latency),
            "episodes": [asdict(episode) for episode in self.episodes],
        }


@dataclass(frozen=True)
class Comparison:
    """``after - before`` on the same episodes."""

    num_episodes: int
    success: Metric  # difference of the rates, with its paired bootstrap interval
    num_only_before: int  # episodes that before alone solved
    num_only_after: int
    p_value: float  # exact McNemar test that both are equally good
    max_coverage: Metric | None  # difference of the means


def success_rate(episodes: Sequence[EpisodeResult]) -> Metric:
    """Share of successes and its 95 % Wilson interval."""
    num_successes = sum(episode.success for episode in episodes)
    return Metric(num_successes / len(episodes), wilson_interval(num_successes, len(episodes)))


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


def compare(before: ClosedLoopResult, after: ClosedLoopResult) -> Comparison:
    """Compare two controllers episode by episode.

    Raises:
        ValueError: the results are of different episodes.
    """
    old, new = ({episode.key: episode for episode in result.episodes} for result in (before, after))
    if old.keys() != new.keys():
        raise ValueError(
            f"before has {len(old)} episodes and after {len(new)}, {len(old.keys() & new.keys())} of them the same, "
            "expected the same environments and seeds for a paired comparison"
        )
    pairs = [(old[key], new[key]) for key in old]
    only_before = sum(b.success and not a.success for b, a in pairs)
    only_after = sum(a.success and not b.success for b, a in pairs)
    coverage = [
        None if b.max_coverage is None or a.max_coverage is None else a.max_coverage - b.max_coverage for b, a in pairs
    ]
    return Comparison(
        num_episodes=len(pairs),
        success=_bootstrap([a.success - b.success for b, a in pairs]),
        num_only_before=only_before,
        num_only_after=only_after,
        p_value=mcnemar_exact(only_before, only_after),
        max_coverage=_mean(coverage),
    )


class EpisodeLog:
    """Finished episodes in a folder: ``closed_loop.json`` with the settings, ``episodes.jsonl`` with one a line.

    A line is on disk before the next one is written; a half-written last one is dropped on opening.

    Args:
        folder: made where it does not exist.
        settings: what episodes depend on besides environment and seed.

    Raises:
        ValueError: the folder holds episodes of other settings, or is damaged.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self._path = folder / EPISODES
        folder.mkdir(parents=True, exist_ok=True)
        header = {"format": FORMAT, "version": VERSION, **settings}
        path = folder / _SETTINGS
        if path.exists():
            _check_settings(path, header)
        else:
            write_text(path, json.dumps(header, indent=2) + "\n")
        self.episodes = read_episodes(self._path)
        write_text(self._path, "".join(map(_line, self.episodes)))

    def append(self, episode: EpisodeResult) -> None:
        """Keep an episode."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_line(episode))
            file.flush()
            os.fsync(file.fileno())
        self.episodes.append(episode)


def read_episodes(path: Path) -> list[EpisodeResult]:
    """The episodes of a file; a half-written last line is left out.

    Raises:
        ValueError: another line is damaged.
    """
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else [""]
    return [_parse(line, f"{path}, line {number}") for number, line in enumerate(lines[:-1], start=1)]


def _parse(line: str, where: str) -> EpisodeResult:
    try:
        row = json.loads(line)
        return EpisodeResult(**{**row, "latencies_ms": tuple(row["latencies_ms"])})
    except (ValueError, TypeError, KeyError):
        raise ValueError(f"{where} is {line[:80]!r}, expected an episode as JSON") from None


def _check_settings(path: Path, expected: Mapping[str, Any]) -> None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error})") from None
    for key, value in json.loads(json.dumps(expected)).items():
        if found.get(key) != value:
            raise ValueError(
                f"{key} is {value!r}, but {path.parent} holds episodes with {found.get(key)!r}; expected the same, or "
                "another folder"
            )


def _line(episode: EpisodeResult) -> str:
    return json.dumps(asdict(episode), allow_nan=False) + "\n"


def _mean(values: Sequence[float | None]) -> Metric | None:
    known = [value for value in values if value is not None]
    return _bootstrap(known) if len(known) == len(values) else None


def _bootstrap(values: Sequence[float]) -> Metric:
    return bootstrap(values, [str(i) for i in range(len(values))])
