"""A simulator for tests: a point that moves on a line, as a plain gymnasium environment, with faults on demand."""

import os
import signal
from pathlib import Path

import gymnasium
import numpy as np

from vampo_core.envs.gymnasium_env import GymnasiumTask


class Line(gymnasium.Env):
    """The point has to come within 0.1 of 0; an action moves it by at most 0.2."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012
    success = ...
    """What ``is_success`` is instead of the truth; for tests of simulators that say something else than a bool."""

    def __init__(self, render_mode="rgb_array", height=64):
        self.render_mode, self.height = render_mode, height
        self.observation_space = gymnasium.spaces.Box(-2, 2, (1,), np.float32)
        self.action_space = gymnasium.spaces.Box(-0.2, 0.2, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position = float(self.np_random.uniform(0.5, 1) * self.np_random.choice([-1, 1]))
        return self._observe(), {}

    def step(self, action):
        self.position += float(action[0])
        success = abs(self.position) < 0.1 if self.success is ... else self.success
        return self._observe(), -abs(self.position), False, False, {"is_success": success}

    def render(self):
        frame = np.zeros((self.height, 64, 3), np.uint8)
        column = int(np.clip((self.position + 2) * 16, 0, 63))
        frame[:, max(0, column - 2) : column + 3] = 255
        return frame

    def _observe(self):
        return np.array([self.position], np.float32)


def line(
    task="",
    *,
    image_size=32,
    max_steps=30,
    height=64,
    kill_once="",
    kill_always=False,
    fail=False,
    hang=False,
    nan=False,
):
    """The environment ``simulators:line``; faults strike in an episode's third step."""
    env = _Faulty(Line(height=height), Path(kill_once) if kill_once else None, kill_always, fail, hang, nan)
    return GymnasiumTask(
        env,
        instruction=f"move the point to the middle {task}".strip(),
        image_size=image_size,
        max_steps=max_steps,
        expert=lambda wrapped: lambda: np.clip([-wrapped.unwrapped.position], -0.2, 0.2),
    )


def no_expert(*, image_size: int = 64) -> GymnasiumTask:
    """The line, without its expert."""
    task = line(image_size=image_size)
    task._expert = None
    return task


def broken():
    """An environment that cannot be made."""
    raise KeyError("wheels")


class _Faulty(gymnasium.Wrapper):
    def __init__(self, env, kill_once, kill_always, fail, hang, nan):
        super().__init__(env)
        self._kill_once, self._kill_always = kill_once, kill_always
        self._fail, self._hang, self._nan = fail, hang, nan

    def reset(self, **kwargs):
        self._num_steps = 0
        return super().reset(**kwargs)

    def step(self, action):
        self._num_steps += 1
        if self._num_steps == 3:
            if self._fail:
                raise ValueError("the motor is hot")
            if self._hang:
                os.kill(os.getpid(), signal.SIGSTOP)
            if self._kill_always:
                os.kill(os.getpid(), signal.SIGKILL)
            if self._kill_once is not None and self._claim():
                os.kill(os.getpid(), signal.SIGKILL)
            if self._nan:
                observation, _, *rest = super().step(action)
                return observation, float("nan"), *rest
        return super().step(action)

    def _claim(self):
        try:
            self._kill_once.touch(exist_ok=False)
        except FileExistsError:
            return False
        return True
