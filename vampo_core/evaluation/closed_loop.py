"""Closed-loop evaluation: a controller acts in simulators, on seeded episodes, and its successes are counted."""

import contextlib
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from vampo_core import envs
from vampo_core.envs.slots import Lost, Reply, Reset, Step
from vampo_core.envs.workers import MAX_ATTEMPTS, InProcess, Workers
from vampo_core.evaluation.episode_recorder import EpisodeRecorder, Trace, recorded_episodes
from vampo_core.evaluation.episode_videos import EpisodeVideos, Imagine
from vampo_core.evaluation.episodes import (
    EPISODES,
    ClosedLoopResult,
    EpisodeLog,
    EpisodeResult,
    read_episodes,
)
from vampo_core.files import locked, remove_leftovers
from vampo_core.progress import progress as progress_bar


class Controller(Protocol):
    """What decides on actions, for several episodes at once; each episode has its own slot."""

    def begin(self, slot: int, instruction: str, seed: int) -> None:
        """Begin a new episode in ``slot``; the one that was there before is over."""
        ...

    def act(self, observations: Mapping[int, Mapping[str, np.ndarray]]) -> Mapping[int, np.ndarray]:
        """Return an action [A] per observation: ``{"pixels": uint8 [H, W, 3], "state": float32 [S]}``, by slot."""
        ...


@dataclass(frozen=True)
class _Task:
    """What all episodes of an environment share."""

    instruction: str
    fps: float
    action_shape: tuple[int, ...]


@dataclass
class _Running:
    """An episode in progress."""

    env: str
    seed: int
    attempt: int = 1
    length: int = 0
    episode_return: float = 0.0
    max_coverage: float | None = None
    latencies_ms: list[float] = field(default_factory=list)
    trace: Trace = field(default_factory=Trace)


def evaluation_seeds(seed: int, num_episodes: int) -> list[int]:
    """Seeds of the episodes; except by chance (1 in 2**32), none is the seed of a recorded episode of any dataset."""
    return [int(np.random.SeedSequence([seed, i], spawn_key=(1,)).generate_state(1)[0]) for i in range(num_episodes)]


def evaluate_closed_loop(
    controller: Controller | None,
    env: str,
    *,
    num_episodes: int,
    seed: int = 0,
    first_seed: int | None = None,
    num_workers: int = 1,
    num_envs: int | None = None,
    begin_every: int = 1,
    env_kwargs: Mapping[str, Any] | None = None,
    output: str | Path | None = None,
    controller_id: str = "",
    num_videos: int = 0,
    imagine: Imagine | None = None,
    record: bool = False,
    progress: bool = True,
) -> ClosedLoopResult:
    """Run seeded episodes: simulators in worker processes, the controller in this process and in batches.

    All slots step together, so that batches do not depend on timing. If all episodes are in ``output``, no simulator is
    made, and none has to be installed. Call it from under ``if __name__ == "__main__":``.

    Args:
        controller: what acts; None for the environments' experts, which act inside the workers.
        env: name of an environment (see :func:`vampo_core.envs.make`), or several names with commas between them; see
            :func:`vampo_core.envs.expand_names` for names that stand for several.
        num_episodes: number of episodes of each environment.
        seed: seed of the episodes; the same seed gives every controller the same episodes.
        first_seed: simulator's seed of the first episode, from which the others count up, where its seeds name
            published initial states; None to draw them from ``seed``, so that none was recorded.
        num_workers: number of worker processes; 0 for this process, which a crashing simulator then takes with it.
        num_envs: number of simulators at once, and thus the size of the largest batch; by default, and at least, one
            per process.
        begin_every: number of control steps between the moments at which episodes may begin. If a controller predicts a
            chunk every so many steps, episodes that are in step need theirs at the same time, in one batch.
        env_kwargs: arguments of every environment, e.g. ``{"image_size": 64}``.
        output: folder for finished episodes; episodes that are in it already are not run again. None keeps nothing.
        controller_id: identity of the controller, such as a hash of its weights, so that ``output`` never mixes two.
        num_videos: number of videos of successes, and of failures, of each environment, under ``<output>/videos``.
        imagine: function that makes what a video shows beside an episode's frames.
        record: whether to keep frames, states and actions of all episodes, failures included, as a dataset in the
            recorded format at ``<output>/recorded``; those that were run without it are run again.
        progress: whether to show a progress bar.

    Raises:
        ValueError: an argument or an action of the controller is wrong, or ``output`` holds other episodes.
        ImportError: a simulator is not installed or cannot render.
        SimulatorError: a simulator raised an error, or a worker died or hung three times in one episode.
    """
    least = {"num_episodes": 1, "num_envs": 1, "begin_every": 1, "seed": 0, "num_workers": 0, "num_videos": 0}
    given = (num_episodes, 1 if num_envs is None else num_envs, begin_every, seed, num_workers, num_videos)
    for (name, minimum), value in zip(least.items(), given, strict=True):
        if value < minimum:
            raise ValueError(f"{name} is {value}, expected at least {minimum}")
    if num_videos and output is None:
        raise ValueError(f"num_videos is {num_videos} with output = None, expected a folder for them")
    if record and (output is None or controller is None):
        lacking = "output" if output is None else "controller"
        raise ValueError(f"record is True with {lacking} = None, expected one (experts are recorded by `vampo record`)")
    env_kwargs = dict(env_kwargs or {})
    if first_seed is not None and first_seed < 0:
        raise ValueError(f"first_seed is {first_seed}, expected at least 0")
    seeds = evaluation_seeds(seed, num_episodes) if first_seed is None else range(first_seed, first_seed + num_episodes)
    names = envs.expand_names(env)
    wanted = [(name, episode_seed) for name in names for episode_seed in seeds]
    folder = None if output is None else Path(output)
    known = {episode.key for episode in ([] if folder is None else read_episodes(folder / EPISODES))}
    if record and folder is not None:
        known &= recorded_episodes(folder / "recorded")
    tasks = {} if known.issuperset(wanted) else {name: _describe(name, env_kwargs) for name in names}
    with contextlib.nullcontext() if folder is None else locked(folder):
        log = None
        if folder is not None:
            log = EpisodeLog(folder, {"env_kwargs": env_kwargs, "controller_id": controller_id})
            for written in (folder, folder / "videos"):
                remove_leftovers(written)
        done = {episode.key: episode for episode in (log.episodes if log else [])}
        kept = recorded_episodes(folder / "recorded") if record and folder is not None else done
        missing = [key for key in wanted if key not in done or key not in kept]
        if missing:
            recorder = None
            if record and folder is not None:
                recorder = EpisodeRecorder(
                    folder / "recorded",
                    env=env,
                    env_kwargs=env_kwargs,
                    seed=seed,
                    fps=[task.fps for task in tasks.values()],
                )
            loop = _Loop(controller, tasks, EpisodeVideos(folder, num_videos, imagine), recorder, log, done)
            num_workers = min(num_workers, len(missing))
            num_slots = min(max(num_workers, num_envs or 1), len(missing))
            workers = Workers(num_workers, num_slots, env_kwargs) if num_workers else InProcess(env_kwargs)
            done_before = len(wanted) - len(missing)
            bar = progress_bar(desc="closed loop", total=len(wanted), initial=done_before, disable=not progress)
            try:
                with bar:
                    loop.run(workers, missing, num_slots, begin_every, bar)
            finally:
                workers.close()
    return ClosedLoopResult([done[key] for key in wanted])


def _describe(name: str, env_kwargs: Mapping[str, Any]) -> _Task:
    env = envs.make(name, **env_kwargs)  # wrong names and arguments fail before processes start
    task = _Task(env.instruction, env.fps, tuple(env.action_space.shape))
    env.close()
    return task


class _Loop:
    """The episodes of one call."""

    def __init__(
        self,
        controller: Controller | None,
        tasks: Mapping[str, _Task],
        videos: EpisodeVideos,
        recorder: EpisodeRecorder | None,
        log: EpisodeLog | None,
        done: dict[tuple[str, int], EpisodeResult],
    ) -> None:
        self._controller, self._tasks, self._videos = controller, tasks, videos
        self._recorder, self._log, self._done = recorder, log, done
        self._running: dict[int, _Running] = {}

    def run(
        self,
        workers: Workers | InProcess,
        episodes: Sequence[tuple[str, int]],
        num_slots: int,
        begin_every: int,
        bar: "tqdm[Any]",
    ) -> None:
        self._workers = workers
        pending = deque(_Running(name, seed) for name, seed in episodes)
        num_successes = num_rounds = 0
        while pending or self._running:
            if num_rounds % begin_every == 0 or not self._running:
                num_rounds = 0
                for slot in [slot for slot in range(num_slots) if slot not in self._running][: len(pending)]:
                    self._begin(slot, pending.popleft())
            for result in self._round(pending):
                num_successes += result.success
                bar.set_postfix(successes=num_successes)
                bar.update()
            num_rounds += 1

    def _round(self, pending: deque[_Running]) -> list[EpisodeResult]:
        """Take one control step in the slots that are ready; with a controller all of them are."""
        finished = []
        observed: dict[int, Reply] = {}
        lost: list[tuple[_Running, Lost]] = []
        for slot, reply in self._workers.receive(every=self._controller is not None).items():
            if slot not in self._running:
                continue  # a slot without an episode, lost with its worker
            if isinstance(reply, Lost):
                lost.append((self._running.pop(slot), reply))
            elif self._observe(slot, reply):
                finished.append(self._finish(slot, reply))
            else:
                observed[slot] = reply
        pending.extendleft(_again(lost))
        if observed:
            self._act(observed)
        return finished

    def _begin(self, slot: int, episode: _Running) -> None:
        self._running[slot] = episode
        if self._controller is not None:
            self._controller.begin(slot, self._tasks[episode.env].instruction, episode.seed)
        self._workers.send(slot, Reset(episode.env, episode.seed))

    def _observe(self, slot: int, reply: Reply) -> bool:
        """Account for a reply and return whether the episode is over."""
        episode = self._running[slot]
        episode.episode_return += reply.reward
        if reply.coverage is not None:
            episode.max_coverage = max(reply.coverage, episode.max_coverage or 0.0)
        if self._videos.needs_frames or self._recorder is not None:
            episode.trace.frames.append(reply.pixels)
        if self._recorder is not None:
            episode.trace.states.append(reply.state)
        return reply.done

    def _act(self, observed: Mapping[int, Reply]) -> None:
        if self._controller is None:
            actions: Mapping[int, np.ndarray | None] = dict.fromkeys(observed)
        else:
            observations = {slot: {"pixels": reply.pixels, "state": reply.state} for slot, reply in observed.items()}
            start = time.perf_counter()
            actions = self._controller.act(observations)
            latency = round(1000 * (time.perf_counter() - start), 3)
            for slot in observed:
                self._check(actions.get(slot), slot)
                self._running[slot].latencies_ms.append(latency)
        for slot in observed:
            episode = self._running[slot]
            episode.length += 1
            action = actions[slot]
            if self._recorder is not None and action is not None:
                episode.trace.actions.append(np.asarray(action, np.float32))
            self._workers.send(slot, Step(action))

    def _check(self, action: np.ndarray | None, slot: int) -> None:
        episode = self._running[slot]
        shape = self._tasks[episode.env].action_shape
        if action is None or np.shape(action) != shape or not np.isfinite(action).all():
            raise ValueError(
                f"act returned {action!r} for slot {slot} ({episode.env!r}, seed {episode.seed}), expected finite "
                f"numbers of shape {shape}"
            )

    def _finish(self, slot: int, reply: Reply) -> EpisodeResult:
        episode = self._running.pop(slot)
        task = self._tasks[episode.env]
        if self._recorder is not None:
            self._recorder.save(
                episode.trace,
                env=episode.env,
                seed=episode.seed,
                success=reply.success,
                instruction=task.instruction,
                fps=task.fps,
            )
        result = EpisodeResult(
            env=episode.env,
            seed=episode.seed,
            success=reply.success,
            length=episode.length,
            episode_return=episode.episode_return,
            max_coverage=episode.max_coverage,
            latencies_ms=tuple(episode.latencies_ms),
            video=self._videos.save(
                episode.trace.frames,
                env=episode.env,
                seed=episode.seed,
                success=reply.success,
                instruction=task.instruction,
                fps=task.fps,
                done=self._done.values(),
            ),
        )
        if self._log is not None and result.key not in self._done:  # it may have run again, to be recorded
            self._log.append(result)
        self._done.setdefault(result.key, result)
        return result


def _again(lost: Sequence[tuple[_Running, Lost]]) -> list[_Running]:
    """Lost episodes, to be run again from the beginning."""
    given_up = [(episode, reason) for episode, reason in lost if episode.attempt == MAX_ATTEMPTS]
    if given_up:  # any episode that ran in the worker may be at fault
        names = " or ".join(f"{episode.env!r} with seed {episode.seed}" for episode, _ in given_up)
        raise envs.SimulatorError(
            f"episode of {names}: its worker was lost {MAX_ATTEMPTS} times ({given_up[0][1].reason})"
        )
    return [_Running(episode.env, episode.seed, attempt=episode.attempt + 1) for episode, _ in lost]
