"""PushT: an agent pushes a T-shaped block onto its target (gym-pusht, Chi et al. 2023, arXiv 2303.04137)."""

import os
from collections.abc import Callable
from typing import Any

import numpy as np

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
try:
    import cv2
    import gymnasium
    from gym_pusht.envs import PushTEnv
except ImportError as error:
    _libraries = "; OpenCV also needs the system libraries libgl1 and libglib2.0-0" if ".so" in str(error) else ""
    raise ImportError(
        f"environment 'pusht' needs gym-pusht ({error}): `pip install vampo_core[pusht]`{_libraries}"
    ) from error

from vampo_core.envs.pusht_expert import PushTExpert

_RENDER_SIZE = 512  # gym-pusht always draws at this size


class PushT(gymnasium.Env):
    """PushT seen as pixels, 10 control steps a second; an action is the agent's target position in [0, 512]².

    ``info["state"]`` is the agent's position in px, ``info["privileged_state"]`` adds the block's position and angle,
    ``info["coverage"]`` is the share of the target that the block covers; an episode ends with success above 0.95.
    Frames are averaged down from gym-pusht's 512 px, so that motion below a pixel shows; gym-pusht itself only keeps
    every few pixels.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 (gymnasium's own form)
    render_mode = "rgb_array"
    fps = 10.0
    instruction = "push the T-shaped block onto the green target"

    def __init__(self, *, image_size: int = 64, max_steps: int = 300) -> None:
        if not 16 <= image_size <= _RENDER_SIZE:
            raise ValueError(f"image_size is {image_size}, expected 16 to {_RENDER_SIZE} pixels")
        if max_steps < 1:
            raise ValueError(f"max_steps is {max_steps}, expected at least 1")
        self.image_size, self.max_steps = image_size, max_steps
        self._env = PushTEnv(obs_type="pixels", observation_width=_RENDER_SIZE, observation_height=_RENDER_SIZE)
        self.action_space = self._env.action_space
        self.observation_space = gymnasium.spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        self._pixels: np.ndarray = np.zeros((image_size, image_size, 3), np.uint8)
        self._num_steps: int | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:  # [H, W, 3] uint8, info
        super().reset(seed=seed)
        pixels, _ = self._env.reset(seed=seed, options=options)
        self._num_steps = 0
        return self._shrink(pixels), self._info(coverage=self._env._get_coverage(), success=False)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if self._num_steps is None:
            raise RuntimeError("step was called before reset")
        action = np.asarray(action, np.float64)
        if action.shape != (2,) or not np.isfinite(action).all():
            raise ValueError(f"action is {action!r}, expected two finite numbers (a position in px)")
        pixels, reward, success, _, info = self._env.step(np.clip(action, 0, 512))
        self._num_steps += 1
        truncated = not success and self._num_steps >= self.max_steps
        return (
            self._shrink(pixels),
            float(reward),
            bool(success),
            truncated,
            self._info(info["coverage"], bool(success)),
        )

    def render(self) -> np.ndarray:  # [H, W, 3] uint8
        return self._pixels.copy()

    def expert(self) -> Callable[[], np.ndarray]:
        return PushTExpert(self._env)

    def close(self) -> None:
        self._env.close()

    def _shrink(self, pixels: np.ndarray) -> np.ndarray:
        size = (self.image_size, self.image_size)
        self._pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
        return self._pixels.copy()

    def _info(self, coverage: float, success: bool) -> dict[str, Any]:
        agent, block = self._env.agent, self._env.block
        privileged = np.array([*agent.position, *block.position, block.angle], np.float32)
        return {
            "state": privileged[:2].copy(),
            "privileged_state": privileged,
            "coverage": float(coverage),
            "success": success,
        }
