"""Closed-loop episodes as a recorded dataset: what a policy saw, did and achieved, to look into or to train on."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vampo_core.data.formats.recorded import (
    FORMAT,
    INFO,
    VERSION,
    EpisodeHeader,
    episode_folder,
    read_header,
    read_info,
    write_episode,
)
from vampo_core.files import remove_leftovers, write_text


@dataclass
class Trace:
    """What happened in an episode so far: T observations, T-1 actions."""

    frames: list[np.ndarray] = field(default_factory=list)  # each [H, W, 3] uint8
    states: list[np.ndarray] = field(default_factory=list)  # each [S] float32
    actions: list[np.ndarray] = field(default_factory=list)  # each [A] float32


class EpisodeRecorder:
    """Writes episodes into a dataset in the recorded format; those that are there already stay.

    Args:
        root: the dataset's folder, made if it is missing.
        env: names of the environments, with commas between them.
        env_kwargs: arguments of every environment.
        seed: seed of the evaluation.
        fps: frames per second of each environment.

    Raises:
        ValueError: the environments differ in frame rate, or the folder holds a dataset of another rate.
    """

    def __init__(
        self,
        root: Path,
        *,
        env: str,
        env_kwargs: Mapping[str, Any],
        seed: int,
        fps: Sequence[float],
    ) -> None:
        if len(set(fps)) > 1:
            raise ValueError(
                f"env is {env!r}, whose frame rates are {sorted(set(fps))}, expected one: episodes are kept"
            )
        self._root = root
        info = {"format": FORMAT, "version": VERSION, "env": env, "env_kwargs": dict(env_kwargs), "seed": seed}
        if not (root / INFO).exists():
            (root / "episodes").mkdir(parents=True, exist_ok=True)
            write_text(root / INFO, json.dumps({**info, "action_noise": 0.0, "fps": fps[0]}, indent=2) + "\n")
        elif read_info(root)["fps"] != fps[0]:
            raise ValueError(f"root is {str(root)!r}, whose episodes have {read_info(root)['fps']} frames per second")
        remove_leftovers(root / "episodes")
        self._kept = recorded_episodes(root)
        self._next = max((int(folder.name) for folder in _folders(root)), default=-1) + 1

    def save(self, trace: Trace, *, env: str, seed: int, success: bool, instruction: str, fps: float) -> None:
        """Write one episode, with the next number, unless it is there."""
        if (env, seed) in self._kept:
            return
        folder = episode_folder(self._root, self._next)
        header = EpisodeHeader(
            episode_id=folder.name,
            length=len(trace.frames),
            success=success,
            seed=seed,
            instruction=instruction,
            fps=fps,
            env=env,
        )
        length, states = len(trace.frames), np.stack(trace.states)
        privileged = np.zeros((length, 0))  # controllers do not see it
        write_episode(
            folder,
            header,
            trace.frames,
            {"actions": np.stack(trace.actions), "states": states, "privileged_states": privileged},
        )
        self._kept.add((env, seed))
        self._next += 1


def recorded_episodes(root: Path) -> set[tuple[str, int]]:
    """Environments and seeds of the episodes in a dataset, which may be missing."""
    headers = map(read_header, _folders(root))
    return {(header.env, header.seed) for header in headers}


def _folders(root: Path) -> list[Path]:
    return sorted((root / "episodes").glob("[0-9]*"))
