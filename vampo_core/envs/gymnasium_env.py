"""Adapter that makes a task for recording and closed loops from any gymnasium environment with continuous actions."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

try:
    import gymnasium
except ImportError as error:
    raise ImportError(f"gymnasium_env needs gymnasium ({error}): `pip install gymnasium`") from error

from vampo_core.envs import SimulatorWarning, is_success


def _flat(observation: Any) -> np.ndarray:  # [S]
    if not isinstance(observation, np.ndarray) or observation.ndim != 1:
        shape = getattr(observation, "shape", None)
        raise ValueError(
            f"observation is a {type(observation).__name__} of shape {shape}, expected an array [S]: "
            "give state, a function that makes one from it"
        )
    return observation


class GymnasiumTask(gymnasium.Env):
    """An environment that satisfies :class:`vampo_core.envs.TaskEnv`.

    Args:
        env: environment made with ``render_mode="rgb_array"``; the model sees its frames.
        instruction: the task in words.
        fps: control steps per second; by default ``env.metadata["render_fps"]``.
        max_steps: number of actions after which an episode is truncated; the environment may do so earlier.
        image_size: height and width that frames are resized to, by averaging. Other shapes than squares are squeezed.
        state: function that returns the readings of the robot's sensors [S] for an observation; by default the
            observation itself.
        success: function that returns whether the task is done, for reward, terminated and info of a step; by default
            ``info["success"]`` or ``info["is_success"]``. Success ends an episode.
        expert: function that returns an expert for the environment, a function that returns the action for its current
            state; needed for recording.

    Raises:
        ValueError: the environment shows no frames, has no frame rate, or its actions are not a vector of numbers.
    """

    render_mode = "rgb_array"

    def __init__(
        self,
        env: gymnasium.Env,
        *,
        instruction: str,
        fps: float | None = None,
        max_steps: int = 300,
        image_size: int = 64,
        state: Callable[[Any], np.ndarray] = _flat,
        success: Callable[[float, bool, dict[str, Any]], bool] | None = None,
        expert: Callable[[gymnasium.Env], Callable[[], np.ndarray]] | None = None,
    ) -> None:
        space = env.action_space
        if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1:
            raise ValueError(f"env has the action space {space}, expected a Box of one axis")
        if env.render_mode != "rgb_array":
            raise ValueError(f"env has render_mode {env.render_mode!r}, expected it made with render_mode='rgb_array'")
        fps = fps or env.metadata.get("render_fps")
        if not fps:
            raise ValueError(f"fps is {fps}, expected the control steps per second: env has no metadata['render_fps']")
        for name, value in (("max_steps", max_steps), ("image_size", image_size)):
            if value < 1:
                raise ValueError(f"{name} is {value}, expected at least 1")
        self.env, self.instruction, self.fps = env, instruction, float(fps)
        self.max_steps, self.image_size = max_steps, image_size
        self.metadata = {**env.metadata, "render_modes": ["rgb_array"], "render_fps": fps}
        self.action_space: gymnasium.spaces.Box = space
        self.observation_space = gymnasium.spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        self._state, self._success, self._expert = state, success or _reported_success, expert
        self._num_steps, self._is_checked = 0, False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:  # [H, W, 3] uint8, info
        observation, _ = self.env.reset(seed=seed, options=options)
        self._num_steps = 0
        self._warn_if_squeezed()
        return self.render(), self._info(observation, success=False)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        space = self.action_space
        action = np.asarray(action, space.dtype)
        if action.shape != space.shape or not np.isfinite(action).all():
            raise ValueError(f"action is {action!r}, expected finite numbers of shape {space.shape}")
        clipped = np.clip(action, space.low, space.high)
        observation, reward, terminated, truncated, info = self.env.step(clipped)
        self._num_steps += 1
        success = is_success(self._success(float(reward), terminated, info))
        terminated = bool(terminated) or success
        truncated = not terminated and (bool(truncated) or self._num_steps >= self.max_steps)
        return self.render(), float(reward), terminated, truncated, self._info(observation, success)

    def render(self) -> np.ndarray:  # [H, W, 3] uint8
        frame, size = self._frame(), (self.image_size, self.image_size)
        return frame if frame.shape[:2] == size else np.array(Image.fromarray(frame).resize(size, Image.Resampling.BOX))

    def _frame(self) -> np.ndarray:  # [H, W, 3] uint8
        frame = np.asarray(self.env.render())
        if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
            raise ValueError(f"env renders {frame.dtype} {frame.shape}, expected uint8 [H, W, 3]")
        return frame

    def _warn_if_squeezed(self) -> None:
        if self._is_checked:
            return
        self._is_checked = True
        height, width, _ = self._frame().shape
        if height != width:
            message = (
                f"env renders {height}x{width} frames, which are squeezed to {self.image_size}x{self.image_size}: let "
                "it render squares to keep the proportions"
            )
            warnings.warn(message, SimulatorWarning, stacklevel=3)

    @property
    def has_expert(self) -> bool:
        """Whether there is an expert."""
        return self._expert is not None

    def expert(self) -> Callable[[], np.ndarray]:
        if self._expert is None:
            raise ValueError("expert is None, expected a function that makes one: without it nothing can be recorded")
        return self._expert(self.env)

    def close(self) -> None:
        self.env.close()

    def _info(self, observation: Any, success: bool) -> dict[str, Any]:
        state = np.asarray(self._state(observation), np.float32)
        if state.ndim != 1:
            raise ValueError(f"state gives an array of shape {state.shape}, expected [S]")
        return {"state": state, "privileged_state": state.copy(), "success": success}


def _reported_success(reward: float, terminated: bool, info: dict[str, Any]) -> bool:
    for key in ("success", "is_success"):
        if key in info:
            return is_success(info[key])
    raise ValueError(f"info holds {', '.join(sorted(info)) or 'nothing'}, expected 'success': give success, a function")
