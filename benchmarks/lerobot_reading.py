"""Random clips from a LeRobotDataset: our reader against the format's own library, on the same files.

    python benchmarks/lerobot_reading.py path/to/dataset

Needs ``lerobot`` or ``lerobot-dataset``, and torchcodec.
"""

import argparse
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from vampo_core.data.formats.lerobot import LeRobotDataset

sys.path.insert(0, str(Path(__file__).parents[1] / "python_tests" / "helpers"))
from lerobot_library import library, open_with_library


def main() -> None:
    """Print a line for each camera: milliseconds a clip, and whether the frames are the same."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("--frames", type=int, default=8, help="frames of a clip")
    parser.add_argument("--clips", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for camera in library().LeRobotDatasetMetadata("local/dataset", root=args.root).video_keys:
        print(_measured(camera, args))


def _measured(camera: str, args: argparse.Namespace) -> str:
    """Milliseconds a clip from one camera, and whether the frames are the same."""
    ours, num_frames = LeRobotDataset(args.root, camera=camera), args.frames
    theirs = open_with_library(args.root, delta_timestamps={camera: [i / ours.fps for i in range(num_frames)]})
    firsts = np.cumsum([0] + [episode.length for episode in ours.episodes])
    rng = random.Random(0)
    long = [number for number, episode in enumerate(ours.episodes) if episode.length >= num_frames]
    clips = [(e, rng.randrange(ours.episodes[e].length - num_frames + 1)) for e in rng.choices(long, k=args.clips)]

    def read() -> list[torch.Tensor]:
        return [ours.episodes[e].frames(range(t, t + num_frames)) for e, t in clips]

    def items() -> list[torch.Tensor]:
        return [theirs[int(firsts[e] + t)][camera] for e, t in clips]

    def decoded() -> list[torch.Tensor]:
        found = []
        for e, t in clips:
            episode = ours.episodes[e]
            times = [episode.video_begin + (t + i) / ours.fps for i in range(num_frames)]
            path = args.root / str(episode.video_file)
            found.append(library().decode_video_frames(path, times, 1e-4, "torchcodec"))
        return found

    pairs = zip(decoded(), read(), strict=True)
    is_same = all(torch.equal((a * 255).round().to(torch.uint8), b.permute(0, 3, 1, 2)) for a, b in pairs)
    names = ("ours", "their dataset", "their decoder")
    times = _paired((read, items, decoded), args.rounds)
    shown = ", ".join(f"{name} {1e3 * t / args.clips:.2f} ms" for name, t in zip(names, times, strict=True))
    return f"{camera}: {shown} a clip of {num_frames}; frames {'identical' if is_same else 'DIFFER'}"


def _paired(calls: tuple[Callable[[], object], ...], rounds: int) -> list[float]:
    """Median seconds of each call, taken in turns."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, found in zip(calls, times, strict=True):
            begin = time.perf_counter()
            call()
            found.append(time.perf_counter() - begin)
    return [float(np.median(found)) for found in times]


if __name__ == "__main__":
    main()
