"""Simulator → recorded dataset: expert episodes in parallel processes; an interrupted recording can be continued."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vampo_core import envs
from vampo_core.data.folder import writing_to
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
from vampo_core.envs.idle import borrowed_env
from vampo_core.envs.workers import Run, run_each
from vampo_core.files import locked, remove_leftovers, write_text
from vampo_core.progress import progress as progress_bar

PUSH_RATE = 0.03
"""Probability that a push of the expert begins, per action."""
PUSH_LENGTH = 6
"""Number of actions that a push lasts."""


def record(
    env: str,
    root: str | Path,
    *,
    num_episodes: int,
    seed: int = 0,
    num_workers: int = 1,
    env_kwargs: dict[str, Any] | None = None,
    action_noise: float = 0.0,
    overwrite: bool = False,
    progress: bool = True,
) -> RecordedDataset:
    """Record expert episodes; existing episodes are kept, so that a second call continues or extends the first.

    If all of them exist, no simulator is made, and none has to be installed. Episode i depends only on ``seed`` and i,
    for any number of workers and any order of finishing. Several environments take turns: episode i belongs to
    environment i modulo their number. A worker process that dies or hangs is replaced and its episode repeated. Call it
    from under ``if __name__ == "__main__":`` with more than one worker.

    Args:
        env: name of an environment, see :func:`vampo_core.envs.make`, or several names with commas between them, see
            :func:`vampo_core.envs.expand_names`; these must agree in frame size, frame rate and actions.
        root: the dataset's folder, made if it does not exist.
        num_episodes: smallest number of episodes that the dataset will have, over all environments.
        seed: seed of the dataset; datasets with different seeds share no episode.
        num_workers: number of processes; 1 to record in this one.
        env_kwargs: arguments of every environment, e.g. ``{"image_size": 64}``.
        action_noise: standard deviation of pushes that now and then throw the expert off course, in half the range of
            an action, so that episodes show how to recover. The simulator gets the sum, the dataset the expert's own
            actions (as in DART, Laskey et al. 2017, arXiv 1703.09327).
        overwrite: whether to delete a dataset at ``root`` first; other files there stay.
        progress: whether to show a progress bar.

    Returns:
        The dataset, opened, including the episodes in which the expert failed.

    Raises:
        ValueError: an argument is wrong, or ``root`` holds a dataset of another environment, seed or setting.
        ImportError: the simulator is not installed, and episodes are missing.
        PermissionError: the folder is read-only, and episodes are missing.
        SimulatorError: an episode could not be recorded; the message names it.
    """
    given = {
        "num_episodes": (num_episodes, 1),
        "num_workers": (num_workers, 1),
        "seed": (seed, 0),
        "action_noise": (action_noise, 0),
    }
    for name, (value, least) in given.items():
        if value < least:
            raise ValueError(f"{name} is {value}, expected at least {least}")
    root = Path(root)
    env_kwargs = env_kwargs or {}
    names = envs.expand_names(env)
    info = {
        "format": FORMAT,
        "version": VERSION,
        "env": env,
        "env_kwargs": env_kwargs,
        "action_noise": action_noise,
        "seed": seed,
    }
    _check_root(root, info, overwrite)
    if overwrite or _missing(root, num_episodes):
        info["fps"] = _probe(names, env_kwargs, bounded=action_noise > 0)  # before anything is deleted
        with writing_to(root, "episodes"), locked(root):
            _begin(root, info, overwrite)
            missing = _missing(root, num_episodes)  # another process may have recorded some while this one waited
            runs = []
            for i in missing:
                task = _Task(names[i % len(names)], env_kwargs, str(root), i, episode_seed(seed, i), action_noise)
                runs.append((task.name, Run(partial(_record_episode, task))))
            initial, num_failures = num_episodes - len(runs), 0
            with progress_bar(desc=f"record {env}", total=num_episodes, initial=initial, disable=not progress) as bar:
                for success in run_each(runs, num_workers):
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
    """Return the environments' common frame rate.

    Raises:
        ValueError: they differ in frame rate or in the shape of actions, or ``bounded`` asks for bounds of actions that
            one does not have.
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
                f"env {name!r} has {other_fps} frames per second and actions of shape {other_shape}, expected {fps} "
                f"and {shape} as in {names[0]!r}: episodes of one dataset must be alike"
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


_CONTENTS = ("episodes", "latents", "features", INFO)
"""What ``overwrite`` deletes, last the file that marks a dataset; other files in its folder stay."""


def check_recording(
    root: Path, env: str, *, seed: int = 0, env_kwargs: dict[str, Any] | None = None, action_noise: float = 0.0
) -> None:
    """Refuse what :func:`record` would refuse of a folder and these arguments; nothing is made.

    Raises:
        ValueError: ``root`` holds something else, or a dataset of another environment, seed or setting.
    """
    _check_root(
        root, {"env": env, "env_kwargs": env_kwargs or {}, "action_noise": action_noise, "seed": seed}, overwrite=False
    )


def _check_root(root: Path, info: dict[str, Any], overwrite: bool) -> None:
    """Refuse a folder that holds something else, or a dataset with other settings."""
    if root.exists() and not root.is_dir():
        raise ValueError(f"root is {str(root)!r}, expected a folder")
    is_dataset = (root / INFO).exists()
    if root.exists() and not is_dataset and any(not path.name.startswith(".") for path in root.iterdir()):
        raise ValueError(f"root is {str(root)!r}, expected a recorded dataset, or an empty or new folder")
    if is_dataset and not overwrite:
        recorded = read_info(root)
        for key in ("env", "env_kwargs", "action_noise", "seed"):
            if recorded.get(key) != info[key]:
                raise OtherSettingsError(key, info[key], root, recorded.get(key))
        num_steps = recorded.get("steps_after_success", 0)
        if num_steps:
            raise ValueError(
                f"the dataset at {str(root)!r} was recorded with steps_after_success = {num_steps}, which is not "
                "supported any more: it can be read, but not extended; expected another root, or overwrite=True"
            )


def _begin(root: Path, info: dict[str, Any], overwrite: bool) -> None:
    """Make a dataset without episodes, or continue the existing one; the folder is locked."""
    if overwrite:
        for path in (root / name for name in _CONTENTS):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
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

    @property
    def name(self) -> str:
        return f"episode {self.number} of {self.env!r} (seed {self.seed})"


def _record_episode(task: _Task, heartbeat: Callable[[], None]) -> bool:
    """Record one episode and return whether the expert succeeded."""
    try:
        with borrowed_env(task.env, task.env_kwargs) as env:
            return _rollout(env, task, heartbeat)
    except ImportError:  # its message says what to install
        raise
    except Exception as error:
        raise envs.SimulatorError(f"{task.name} could not be recorded: {error}") from error


def _rollout(env: envs.TaskEnv, task: _Task, heartbeat: Callable[[], None]) -> bool:
    pixels, info = env.reset(seed=task.seed)
    expert, disturbed = env.expert(), Disturbance(env.action_space, task.action_noise, task.seed)
    frames, infos = [pixels], [info]
    actions: list[np.ndarray] = []
    is_pushed: list[bool] = []
    done = False
    while not done:
        heartbeat()
        actions.append(expert())
        pixels, _, terminated, truncated, info = env.step(disturbed(actions[-1]))
        is_pushed.append(disturbed.is_pushing)
        frames.append(pixels)
        infos.append(info)
        done = terminated or truncated
    folder = episode_folder(Path(task.root), task.number)
    header = EpisodeHeader(
        episode_id=folder.name,
        length=len(frames),
        success=envs.is_success(info["success"]),
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
    """Pushes an episode's expert off course now and then, by a constant that is added to several actions in a row.

    Pushes are rare, so that most of what follows them is a calm return.

    Args:
        action_space: box that actions are clipped to.
        std: standard deviation of the constant, in half the range of an action.
        seed: seed of the episode.

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
