"""Results of closed-loop evaluation: episodes and their file, rates with intervals, paired comparisons."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vampo_core.evaluation.statistics import Metric, bootstrap, mcnemar_exact, success_rate
from vampo_core.files import write_text
from vampo_core.files.jsonl import append_row, read_rows, write_rows

FORMAT, VERSION = "vampo_core.closed_loop", 1
_SETTINGS, EPISODES = "closed_loop.json", "episodes.jsonl"


@dataclass(frozen=True)
class EpisodeResult:
    """One episode; two are equal if the same happened in the simulator, however long that took."""

    env: str
    seed: int
    success: bool
    length: int
    """Control steps."""
    episode_return: float
    """Sum of the simulator's rewards."""
    max_coverage: float | None = None
    """Largest share of the target that the block covered (PushT)."""
    latencies_ms: tuple[float, ...] = field(
        default=(), compare=False
    )  # [length], time that each step waited for its action
    video: str | None = field(default=None, compare=False)
    """Name of its file in ``videos``."""

    @property
    def key(self) -> tuple[str, int]:
        return self.env, self.seed


@dataclass(frozen=True)
class Latency:
    """How long control steps waited for their action, over all slots of the batch."""

    p50_ms: float
    p99_ms: float
    hz: float
    """Control steps per second if only the controller took time: one over the mean."""


@dataclass(frozen=True)
class ClosedLoopResult:
    """Episodes of one controller, in the order of environments and seeds."""

    episodes: list[EpisodeResult]

    @property
    def success(self) -> Metric:
        """Success rate with its Wilson interval."""
        return success_rate([episode.success for episode in self.episodes])

    @property
    def success_by_env(self) -> dict[str, Metric]:
        """Success rate of every environment."""
        names = dict.fromkeys(episode.env for episode in self.episodes)
        return {name: success_rate([e.success for e in self.episodes if e.env == name]) for name in names}

    @property
    def max_coverage(self) -> Metric | None:
        """Mean of the episodes' largest coverage; None where a simulator does not report it."""
        return _mean([episode.max_coverage for episode in self.episodes])

    @property
    def length(self) -> Metric:
        """Mean number of control steps."""
        return _bootstrap([episode.length for episode in self.episodes])

    @property
    def latency(self) -> Latency | None:
        """Waiting times; None for the expert, which acts inside the simulator's process."""
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
    success: Metric  # difference of the rates, with its paired bootstrap interval, if any episode differs
    num_only_before: int  # episodes that only before solved
    num_only_after: int
    p_value: float  # exact McNemar test that both are equally good
    max_coverage: Metric | None  # difference of the means


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
    """Finished episodes in a folder: settings in ``closed_loop.json``, one episode a line in ``episodes.jsonl``.

    A line is on disk before the next one is written; a half-written last one is dropped on opening.

    Args:
        folder: folder to write to, which is made if it is missing.
        settings: settings that episodes depend on besides environment and seed.

    Raises:
        ValueError: the folder holds episodes with other settings, or is damaged.
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
        write_rows(self._path, map(asdict, self.episodes))

    def append(self, episode: EpisodeResult) -> None:
        """Write an episode to disk."""
        with self._path.open("a", encoding="utf-8") as file:
            append_row(file, asdict(episode))
        self.episodes.append(episode)


def read_episodes(path: Path) -> list[EpisodeResult]:
    """The episodes of a file; a half-written last line is left out.

    Raises:
        ValueError: another line is damaged.
    """
    return read_rows(path, _parse, expected="an episode as JSON")


def _parse(row: Any) -> EpisodeResult:
    return EpisodeResult(**{**row, "latencies_ms": tuple(row["latencies_ms"])})


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


def _mean(values: Sequence[float | None]) -> Metric | None:
    known = [value for value in values if value is not None]
    return _bootstrap(known) if len(known) == len(values) else None


def _bootstrap(values: Sequence[float]) -> Metric:
    return bootstrap(values, [str(i) for i in range(len(values))])
