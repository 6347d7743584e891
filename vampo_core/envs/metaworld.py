"""MetaWorld: fifty table-top tasks of a Sawyer arm (Yu et al. 2019, arXiv 1910.10897), with their expert policies."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from vampo_core.envs.metaworld_tasks import INSTRUCTIONS, task_name
from vampo_core.envs.mujoco_backend import no_backend, rendering

with rendering("metaworld", "metaworld", "packaging", "gymnasium"):  # metaworld does not declare packaging
    import mujoco

import gymnasium
from metaworld.env_dict import ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE
from metaworld.policies import ENV_POLICY_MAP, SawyerDoorOpenV3Policy

# every step of an expert warns
warnings.filterwarnings("ignore", message=r"Constant\(s\) may be too high", category=UserWarning)

CONTROL_HZ = 80.0
"""Steps per second of MetaWorld itself; experts and published horizons (500) count in them."""

# outside the camera's view, but a third of all triangles
_UNSEEN_BODIES = ("head", "right_arm_base_link", "right_l0")
_HIDDEN_GROUP = 5
_CAMERA = {"lookat": (0.0, 0.7, 0.15), "distance": 1.15, "azimuth": 120.0, "elevation": -30.0}  # m, degrees
_SUPERSAMPLING = 2


class DoorOpenPolicy(SawyerDoorOpenV3Policy):
    """MetaWorld's expert lands on the wrong side of the handle in 7 of 100 layouts; this one flies past it first."""

    def __init__(self) -> None:
        self._is_past = False

    def get_action(self, obs: np.ndarray) -> np.ndarray:  # [39] -> [4]
        offset = obs[4:7] - obs[:3] + np.array([0.01, 0.02, 0.2])  # m, from the hand to above and beyond the handle
        self._is_past = self._is_past or bool(np.linalg.norm(offset[:2]) < 0.02)
        return super().get_action(obs) if self._is_past else np.append(25 * offset, 1.0)


class MetaWorld(gymnasium.Env):
    """A MetaWorld task seen as pixels; an action is [dx, dy, dz, gripper] in [-1, 1], held for ``action_repeat`` steps.

    Args:
        task: ``"reach"`` or ``"reach-v3"``; see :data:`~vampo_core.envs.metaworld_tasks.INSTRUCTIONS` for all fifty.
        image_size: height and width of a frame, 16 to 512 px.
        max_steps: number of actions after which an episode is truncated.
        action_repeat: number of simulator steps of 1/80 s per action and frame.

    ``info["state"]`` is the end effector's position in m and the gripper's opening (0 shut, 1 open);
    ``info["privileged_state"]`` is MetaWorld's complete observation of 39 numbers, including the goal. An episode ends
    with the first simulator step that MetaWorld calls a success, as is usual in publications. If a task has a goal
    position, its marker is visible in the frames. The view is none of MetaWorld's cameras, some of which hang upside
    down while most show objects a few pixels large: it is closer, upright, and the same in every task.

    Raises:
        ValueError: an argument is out of range, or there is no such task.
        ImportError: there is no rendering backend; the message names the system packages.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 40}  # noqa: RUF012 (gymnasium's own form)
    render_mode = "rgb_array"

    def __init__(self, task: str = "", *, image_size: int = 64, max_steps: int = 250, action_repeat: int = 2) -> None:
        if not 16 <= image_size <= 512:
            raise ValueError(f"image_size is {image_size}, expected 16 to 512 pixels")
        for name, count in (("max_steps", max_steps), ("action_repeat", action_repeat)):
            if count < 1:
                raise ValueError(f"{name} is {count}, expected at least 1")
        self.task = task_name(task)
        self.instruction = INSTRUCTIONS[self.task]
        self.image_size, self.max_steps, self.action_repeat = image_size, max_steps, action_repeat
        self.fps = CONTROL_HZ / action_repeat
        self._env = ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE[f"{self.task}-v3-goal-observable"]()
        self._env._freeze_rand_vec = False  # a new layout at every reset, drawn from the seed
        self._env.seeded_rand_vec = True
        self._env.max_path_length = max_steps * action_repeat + 1  # it refuses further steps
        self.action_space = gymnasium.spaces.Box(-1, 1, (4,), np.float32)
        self.observation_space = gymnasium.spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        self._renderer: mujoco.Renderer | None = None
        self._camera = mujoco.MjvCamera()
        for name, value in _CAMERA.items():
            setattr(self._camera, name, value)
        self._pixels: np.ndarray = np.zeros((image_size, image_size, 3), np.uint8)
        self._observation: np.ndarray = np.zeros(39)
        self._num_steps: int | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:  # [H, W, 3] uint8, info
        super().reset(seed=seed)
        if seed is not None:
            self._env.seed(seed)  # because MetaWorld ignores the seed of a reset
        self._env.reset()
        # MetaWorld has moved objects and markers, but draws and observes them at their old place until its next step
        mujoco.mj_forward(self._env.model, self._env.data)
        self._env._prev_obs = self._env._get_curr_obs_combined_no_goal()
        self._observation = self._env._get_obs()
        self._num_steps = 0
        return self._look(), self._info(success=False)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if self._num_steps is None:
            raise RuntimeError("step was called before reset")
        action = np.asarray(action, np.float32)
        if action.shape != (4,) or not np.isfinite(action).all():
            raise ValueError(f"action is {action!r}, expected four finite numbers (dx, dy, dz, gripper) in [-1, 1]")
        reward, success = 0.0, False
        for _ in range(self.action_repeat):
            self._observation, step_reward, _, _, info = self._env.step(np.clip(action, -1, 1))
            reward += float(step_reward)
            success = bool(info["success"])
            if success:
                break
        self._num_steps += 1
        truncated = not success and self._num_steps >= self.max_steps
        return self._look(), reward, success, truncated, self._info(success)

    def render(self) -> np.ndarray:  # [H, W, 3] uint8
        return self._pixels.copy()

    def expert(self) -> Callable[[], np.ndarray]:
        policy_class: Any = DoorOpenPolicy if self.task == "door-open" else ENV_POLICY_MAP[f"{self.task}-v3"]
        policy = policy_class()
        return lambda: np.clip(policy.get_action(self._observation), -1, 1).astype(np.float32)

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
        self._env.close()

    def _look(self) -> np.ndarray:
        if self._renderer is None:
            self._renderer = self._new_renderer()
        self._renderer.update_scene(self._env.data, camera=self._camera)
        size = self.image_size
        pixels = self._renderer.render().reshape(size, _SUPERSAMPLING, size, _SUPERSAMPLING, 3)
        self._pixels = pixels.mean((1, 3)).round().astype(np.uint8)  # so that motion below a pixel shows
        return self._pixels.copy()

    def _new_renderer(self) -> mujoco.Renderer:
        """Make a renderer without multisampling, shadows and reflections, which take most of the time in software."""
        model = self._env.model
        model.vis.quality.offsamples = 0
        model.light_castshadow[:] = 0
        model.mat_reflectance[:] = 0
        model.geom_group[np.isin(model.geom_bodyid, [model.body(name).id for name in _UNSEEN_BODIES])] = _HIDDEN_GROUP
        size = self.image_size * _SUPERSAMPLING
        model.vis.global_.offwidth, model.vis.global_.offheight = (max(size, 640), max(size, 480))
        try:
            return mujoco.Renderer(model, size, size)
        except (ImportError, AttributeError, RuntimeError, mujoco.FatalError) as error:
            raise no_backend("metaworld", error) from error

    def _info(self, success: bool) -> dict[str, Any]:
        privileged = self._observation.astype(np.float32)
        return {"state": privileged[:4].copy(), "privileged_state": privileged, "success": success}
