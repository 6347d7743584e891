"""Throughput of closed-loop evaluation: experts in 2 worker processes and in 1, in turns, without the time to start.

``python benchmarks/closed_loop.py --env pusht --episodes 24 --repeats 3`` needs two idle cores.
"""

import argparse
import statistics
import tempfile
import time
from unittest import mock

from vampo_core.evaluation.closed_loop import evaluate_closed_loop
from vampo_core.evaluation.episodes import EpisodeLog, EpisodeResult

NUM_SKIPPED = 4
"""Number of episodes, the first to finish, that wait for processes to start."""


def steps_per_second(env: str, num_episodes: int, num_workers: int) -> float:
    """Control steps per second, from the end of the first few episodes to the end of the last."""
    ends: list[tuple[float, int]] = []
    append = EpisodeLog.append

    def note(log: EpisodeLog, episode: EpisodeResult) -> None:
        ends.append((time.perf_counter(), episode.length))
        append(log, episode)

    with tempfile.TemporaryDirectory() as folder, mock.patch.object(EpisodeLog, "append", note):
        evaluate_closed_loop(
            None, env, num_episodes=num_episodes, num_workers=num_workers, output=folder, progress=False
        )
    return sum(length for _, length in ends[NUM_SKIPPED:]) / (ends[-1][0] - ends[NUM_SKIPPED - 1][0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--env", default="pusht")
    parser.add_argument("--episodes", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    ratios = []
    for _ in range(args.repeats):
        one, two = (steps_per_second(args.env, args.episodes, workers) for workers in (1, 2))
        ratios.append(two / one)
        print(f"1 worker {one:.0f} steps/s, 2 workers {two:.0f} steps/s: {two / one:.2f}x", flush=True)
    print(f"median {statistics.median(ratios):.2f}x")


if __name__ == "__main__":
    main()
