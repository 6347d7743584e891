"""Simulator → recorded dataset: expert episodes in parallel processes, resumable."""

import json
import math
import multiprocessing
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from vampo_core import envs
from vampo_core.data.formats.recorded import (
    FORMAT,
    INFO,
    VERSION,
    EpisodeHeader,
    RecordedDataset,
    episode_folder,
    is_whole,
    read_info,
    write_episode,
)
from vampo_core.envs.pool import borrowed_env, close_envs, start_worker
from vampo_core.files import LOCK, locked, remove_leftovers, write_text

PUSH_RATE, PUSH_LENGTH = 0.03, 6
"""How often a push of an expert begins, per action, and how many actions it lasts."""
_BEFORE = {"action_noise": 0.0, "steps_after_success": 0}
"""Settings of datasets recorded before there was a choice."""


def record(
    env: str,
    root: str | Path,
    *,
    num_episodes: int,
    seed: int = 0,
    num_workers: int = 1,
    env_kwargs: dict[str, Any] | None = None,
    action_noise: float = 0.0,
    steps_after_success: int = 0,
    overwrite: bool = False,
    progress: bool = True,
) -> RecordedDataset:
    """Record expert episodes; those already there are kept, so a second call continues or extends the first.

    Where all of them are there no simulator is made, so that it need not be installed either.
    Episode i depends on ``seed`` and i alone, whatever the number of workers and whichever order they finish in.
    Several environments take turns: episode i is of environment i modulo their number.

    Args:
        env: name of an environment, see :func:`vampo_core.envs.make`, or several with commas between them, which then
            share frame size, frame rate and actions.
        root: the dataset's folder, made where it does not exist.
        num_episodes: how many episodes the dataset shall have at least, over all environments.
        seed: of the dataset; datasets with different seeds share no episode.
        num_workers: processes; 1 records in this one.
        env_kwargs: passed to every environment, e.g. ``{"image_size": 64}``.
        action_noise: standard deviation of what now and then pushes the expert off its way, in half the range of an
            action, so that episodes show how to come back. The simulator gets the sum, the dataset the expert's own
            actions (as in DART, Laskey et al. 2017, arXiv 1703.09327).
        steps_after_success: actions that the expert goes on for once it has succeeded, as far as the environment's
            ``max_steps`` allow, so that episodes show how to stay. The simulator must go on too.
        overwrite: delete a dataset at ``root`` first.
        progress: show a progress bar.

    Returns:
        The dataset, opened, failures of the expert included.

    Raises:
        ValueError: an argument is wrong, or ``root`` holds a dataset of another environment, seed or setting.
        ImportError: the simulator is not installed, and episodes are missing.
        SimulatorError: an episode could not be recorded; the message names it.
    """
    given = {
        "num_episodes": (num_episodes, 1),
        "num_workers": (num_workers, 1),
        "seed": (seed, 0),
        "action_noise": (action_noise, 0),
        "steps_after_success": (steps_after_success, 0),
    }
    for name, (value, least) in given.items():
        if value < least:
            raise ValueError(f"{name} is {value}, expected at least {least}")
    root = Path(root)
    env_kwargs = env_kwargs or {}
    names = envs.split_names(env)
    info = {
        "format": FORMAT,
        "version": VERSION,
        "env": env,
        "env_kwargs": env_kwargs,
        "action_noise": action_noise,
        "steps_after_success": steps_after_success,
        "seed": seed,
    }
    _check_root(root, info, overwrite)
    if overwrite or _missing(root, num_episodes):
        info["fps"] = _probe(names, env_kwargs, bounded=action_noise > 0)  # or wrong arguments fail after the deletion
        with locked(root):
            _begin(root, info, overwrite)
            task = partial(
                _Task,
                env_kwargs=env_kwargs,
                root=str(root),
                action_noise=action_noise,
                steps_after_success=steps_after_success,
            )
            missing = _missing(root, num_episodes)  # while this one waited another process may have recorded some
            tasks = [task(env=names[i % len(names)], number=i, seed=episode_seed(seed, i)) for i in missing]
            initial, num_failures = num_episodes - len(tasks), 0
            with tqdm(total=num_episodes, initial=initial, desc=f"record {env}", disable=not progress) as bar:
                for success in _run(tasks, min(num_workers, len(tasks))):
                    num_failures += not success
                    bar.set_postfix(failures=num_failures)
                    bar.update()
    return RecordedDataset(root, include_failures=True)


def _missing(root: Path, num_episodes: int) -> list[int]:
    return [i for i in range(num_episodes) if not is_whole(episode_folder(root, i))]


def episode_seed(seed: int, index: int) -> int:
    """Seed of one episode, from the dataset's seed and the episode's number."""
    return int(np.random.SeedSequence([seed, index]).generate_state(1)[0])


def _probe(names: list[str], env_kwargs: dict[str, Any], *, bounded: bool) -> float:
    """The environments' common frame rate.

    Raises:
        ValueError: they differ in frame rate or in the shape of actions, or have no bounds of actions where those are
            asked for.
    """
    found = {}
    for name in names:
        env = envs.make(name, **env_kwargs)
        found[name] = (env.fps, env.action_space.shape)
        has_bounds = env.action_space.is_bounded()
        env.close()
        if bounded and not has_bounds:
            raise ValueError(f"action_noise is above 0, but actions of env {name!r} have no bounds to measure it by")
    fps, shape = found[names[0]]
    for name, (other_fps, other_shape) in found.items():
        if (other_fps, other_shape) != (fps, shape):
            raise ValueError(
                f"env {name!r} has {other_fps} frames a second and actions of shape {other_shape}, expected {fps} and "
                f"{shape} as of {names[0]!r}: episodes of one dataset are alike"
            )
    return fps


class OtherSettingsError(ValueError):
    """A dataset was recorded with another value of an argument of :func:`record`."""

    def __init__(self, name: str, value: object, root: Path, found: object) -> None:
        super().__init__(
            f"{name} is {value!r}, but the dataset at {str(root)!r} was recorded with {found!r}; "
            "expected the same, another root, or overwrite=True"
        )
        self.name, self.found = name, found


def _check_root(root: Path, info: dict[str, Any], overwrite: bool) -> None:
    """Refuse a folder that holds something else, or a dataset with other settings."""
    is_dataset = (root / INFO).exists()
    if root.exists() and not is_dataset and any(not path.name.startswith(".") for path in root.iterdir()):
        raise ValueError(f"root is {str(root)!r}, expected a recorded dataset, or an empty or new folder")
    if is_dataset and not overwrite:
        for key, found in (_BEFORE | read_info(root)).items():
            if key in info and info[key] != found:
                raise OtherSettingsError(key, info[key], root, found)


def _begin(root: Path, info: dict[str, Any], overwrite: bool) -> None:
    """Make a dataset without episodes, or continue the one that is there; the folder is locked."""
    if overwrite:
        for path in sorted(root.iterdir(), key=lambda path: path.name == INFO):  # last what says that it is a dataset
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != LOCK:
                path.unlink()
    else:
        _check_root(root, info, overwrite)  # another process may have begun one since
    if not (root / INFO).exists():
        write_text(root / INFO, json.dumps(info, indent=2) + "\n")
    (root / "episodes").mkdir(exist_ok=True)
    remove_leftovers(root / "episodes")


class _Task(NamedTuple):
    """An episode to record."""

    env: str
    env_kwargs: dict[str, Any]
    root: str
    number: int
    seed: int
    action_noise: float
    steps_after_success: int


def _run(tasks: list[_Task], num_workers: int) -> Iterator[bool]:
    if num_workers <= 1:
        try:
            yield from map(_record_episode, tasks)
        finally:
            close_envs()
        return
    # spawn: forking a process in which torch already runs threads can hang
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(num_workers, mp_context=context, initializer=start_worker)
    try:
        for future in as_completed([pool.submit(_record_episode, task) for task in tasks]):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _record_episode(task: _Task) -> bool:
    """Record one episode and return whether the expert succeeded."""
    try:
        with borrowed_env(task.env, task.env_kwargs) as env:
            return _rollout(env, task)
    except ImportError:  # says what to install
        raise
    except Exception as error:
        message = f"episode {task.number} of {task.env!r} (seed {task.seed}) could not be recorded: {error}"
        raise envs.SimulatorError(message) from error


def _rollout(env: envs.TaskEnv, task: _Task) -> bool:
    pixels, info = env.reset(seed=task.seed)
    expert, disturbed = env.expert(), Disturbance(env.action_space, task.action_noise, task.seed)
    frames, infos = [pixels], [info]
    actions: list[np.ndarray] = []
    is_pushed: list[bool] = []
    success, num_actions = False, math.inf
    while len(actions) < num_actions:
        actions.append(expert())
        pixels, _, terminated, truncated, info = env.step(disturbed(actions[-1]))
        is_pushed.append(disturbed.is_pushing)
        frames.append(pixels)
        infos.append(info)
        if num_actions == math.inf and (terminated or truncated):
            success = bool(info["success"])
            num_actions = min(len(actions) + success * task.steps_after_success, env.max_steps)
    folder = episode_folder(Path(task.root), task.number)
    header = EpisodeHeader(
        episode_id=folder.name,
        length=len(frames),
        success=success,
        seed=task.seed,
        instruction=env.instruction,
        fps=env.fps,
        env=task.env,
    )
    arrays = {
        "actions": np.stack(actions),
        "states": np.stack([i["state"] for i in infos]),
        "privileged_states": np.stack([i["privileged_state"] for i in infos]),
    }
    if task.action_noise:
        arrays["is_pushed"] = np.array(is_pushed)[:, None]
    write_episode(folder, header, frames, arrays)
    return header.success


class Disturbance:
    """Pushes an episode's expert off its way now and then: something constant is added to some actions in a row.

    Rare, so that most of what follows is a calm return.

    Attributes:
        is_pushing: whether something was added to the last action.
    """

    def __init__(self, action_space: Any, std: float, seed: int) -> None:
        self._space, self._std = action_space, std
        self._generator = np.random.default_rng([seed, 1])
        self._push, self._num_left = np.zeros(action_space.shape), 0
        self.is_pushing = False

    def __call__(self, action: np.ndarray) -> np.ndarray:  # [A] -> [A]
        if self._std == 0:
            return action
        low, high = self._space.low, self._space.high
        if self._num_left == 0 and self._generator.random() < PUSH_RATE:
            self._push = self._std * (high - low) / 2 * self._generator.standard_normal(low.shape)
            self._num_left = PUSH_LENGTH
        self.is_pushing = self._num_left > 0
        if not self.is_pushing:
            return action
        self._num_left -= 1
        return np.clip(action + self._push, low, high).astype(np.float32)
