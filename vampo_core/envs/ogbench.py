"""OGBench: table-top tasks of a UR5e arm (Park et al. 2024, arXiv 2410.20092), with an expert made of its oracles."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from vampo_core.envs.mujoco_backend import no_backend, rendering
from vampo_core.envs.ogbench_tasks import INSTRUCTIONS, split_task

with rendering("ogbench", "ogbench", "gymnasium"):
    import mujoco

import gymnasium
from ogbench.manipspace.envs.cube_env import CubeEnv
from ogbench.manipspace.envs.scene_env import SceneEnv

from vampo_core.envs.ogbench_expert import OGBenchExpert

# OGBench makes its action space again and again
warnings.filterwarnings("ignore", message=r".*Box (low|high)'s precision lowered", category=UserWarning)

_FAMILIES: dict[str, tuple[Any, str, int]] = {
    "cube-single": (CubeEnv, "single", 200),
    "scene": (SceneEnv, "scene", 750),
}
"""Environment -> its class, its variant, and OGBench's own number of steps."""

_CAMERA = {"lookat": (0.4, 0.0, 0.1), "distance": 1.0, "azimuth": 180.0, "elevation": -45.0}  # m, degrees
_SUPERSAMPLING = 2
_MARK_RGBA = (0.1, 0.8, 0.2, 1.0)
_MARK_SIZE = (0.03, 0.03, 0.001)  # m, half of each side
_ARM_RGBA = (0.8, 0.8, 0.85, 1.0)
_LINKS = ("base", "shoulder_link", "upper_arm_link", "forearm_link", "wrist_1_link", "wrist_2_link", "wrist_3_link")
_VISUAL_GROUP, _COLLISION_GROUP, _HIDDEN_GROUP = 2, 3, 5


class OGBench(gymnasium.Env):
    """An evaluation task of OGBench seen as pixels; an action is [dx, dy, dz, yaw, gripper] in [-1, 1], 20 a second.

    Args:
        task: environment and number of the task, such as ``"cube-single/1"``; see
            :data:`~vampo_core.envs.ogbench_tasks.INSTRUCTIONS` for all.
        image_size: height and width of a frame, 16 to 512 px.
        max_steps: number of actions after which an episode is truncated; by default OGBench's own, 200 or 750.

    ``info["state"]`` is the hand's position in m, cosine and sine of its yaw, how far the gripper is shut (0 to 1) and
    its contact force (0 to 1); ``info["privileged_state"]`` is OGBench's complete observation, then the goal: the
    cube's position in m and, in a scene, the two buttons, the drawer and the window. An episode ends with the first
    step that OGBench calls a success. OGBench shows its goals as second pictures; here the instruction says them, and
    a green mark shows where a cube on the table has to go. The view is wider than OGBench's own and shows the gripper.

    Raises:
        ValueError: an argument is out of range, or there is no such task.
        ImportError: there is no rendering backend; the message names the system packages.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012 (gymnasium's own form)
    render_mode = "rgb_array"
    fps = 20.0

    def __init__(self, task: str = "", *, image_size: int = 64, max_steps: int | None = None) -> None:
        if not 16 <= image_size <= 512:
            raise ValueError(f"image_size is {image_size}, expected 16 to 512 pixels")
        if max_steps is not None and max_steps < 1:
            raise ValueError(f"max_steps is {max_steps}, expected at least 1")
        family, self._number = split_task(task)
        environment, variant, horizon = _FAMILIES[family]
        self.task = f"{family}/{self._number}"
        self.instruction = INSTRUCTIONS[self.task]
        self.image_size, self.max_steps = image_size, max_steps or horizon
        self._env = environment(variant, control_timestep=1 / self.fps, visualize_info=False)
        self.action_space = gymnasium.spaces.Box(-1, 1, (5,), np.float32)
        self.observation_space = gymnasium.spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        self._renderer: mujoco.Renderer | None = None
        self._camera = mujoco.MjvCamera()
        for name, value in _CAMERA.items():
            setattr(self._camera, name, value)
        self._pixels: np.ndarray = np.zeros((image_size, image_size, 3), np.uint8)
        self._num_steps: int | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:  # [H, W, 3] uint8, info
        super().reset(seed=seed)
        self._env.reset(seed=seed, options={"task_id": self._number})
        self._forget()
        self._num_steps = 0
        return self._look(), self._info(success=False)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if self._num_steps is None:
            raise RuntimeError("step was called before reset")
        action = np.asarray(action, np.float32)
        if action.shape != (5,) or not np.isfinite(action).all():
            raise ValueError(
                f"action is {action!r}, expected five finite numbers (dx, dy, dz, yaw, gripper) in [-1, 1]"
            )
        _, reward, _, _, info = self._env.step(np.clip(action, -1, 1))
        success = bool(info["success"])
        self._num_steps += 1
        truncated = not success and self._num_steps >= self.max_steps
        return self._look(), float(reward), success, truncated, self._info(success)

    def render(self) -> np.ndarray:  # [H, W, 3] uint8
        return self._pixels.copy()

    def expert(self) -> Callable[[], np.ndarray]:
        return OGBenchExpert(self._env)

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
        self._env.close()

    def _forget(self) -> None:
        """Remove what OGBench's reset leaves in the simulator: it takes two steps there, which no seed determines."""
        data = self._env.data
        kept = {name: getattr(data, name).copy() for name in ("qpos", "qvel", "mocap_pos", "mocap_quat")}
        mujoco.mj_resetData(self._env.model, data)
        for name, value in kept.items():
            getattr(data, name)[:] = value
        mujoco.mj_forward(self._env.model, data)
        mujoco.mj_rnePostConstraint(self._env.model, data)  # contact forces

    def _look(self) -> np.ndarray:
        if self._renderer is None:
            self._renderer = self._new_renderer()
        if "mark" in self.instruction:
            self._env.model.geom_rgba[self._env._cube_target_geom_ids_list[0]] = (
                _MARK_RGBA  # OGBench makes it invisible
            )
        self._renderer.update_scene(self._env.data, camera=self._camera)
        size = self.image_size
        pixels = self._renderer.render().reshape(size, _SUPERSAMPLING, size, _SUPERSAMPLING, 3)
        self._pixels = pixels.mean((1, 3)).round().astype(np.uint8)  # so that motion below a pixel shows
        return self._pixels.copy()

    def _new_renderer(self) -> mujoco.Renderer:
        """Make a renderer without what takes most of the time in software.

        That is multisampling, shadows, reflections, and three quarters of all triangles: the arm is drawn as its
        collision shapes, and the disc behind the gripper is not drawn.
        """
        model = self._env.model
        model.vis.quality.offsamples = 0
        model.light_castshadow[:] = 0
        model.mat_reflectance[:] = 0
        is_arm = np.isin(model.geom_bodyid, [model.body(f"ur5e/{name}").id for name in _LINKS])
        is_shape = is_arm & (model.geom_group == _COLLISION_GROUP)
        model.geom_group[is_arm | (model.geom_bodyid == model.body("ur5e/robotiq/base_mount").id)] = _HIDDEN_GROUP
        model.geom_group[is_shape] = _VISUAL_GROUP
        model.geom_rgba[is_shape] = _ARM_RGBA
        for name in ("black", "pad_gray"):  # as in OGBench's own pixels: a black gripper is lost on the dark floor
            model.material(f"ur5e/robotiq/{name}").rgba = self._env._colors["purple"]
        mark = self._env._cube_target_geom_ids_list[0]
        model.geom_size[mark] = _MARK_SIZE
        model.geom_pos[mark] = (0, 0, _MARK_SIZE[2] - 0.02)  # on the floor below the cube's middle
        size = self.image_size * _SUPERSAMPLING
        model.vis.global_.offwidth, model.vis.global_.offheight = size, size
        try:
            return mujoco.Renderer(model, size, size)
        except (ImportError, AttributeError, RuntimeError, mujoco.FatalError) as error:
            raise no_backend("ogbench", error) from error

    def _info(self, success: bool) -> dict[str, Any]:
        env = self._env
        observed = env.compute_ob_info()
        yaw = observed["proprio/effector_yaw"]
        state = [
            observed["proprio/effector_pos"],
            np.cos(yaw),
            np.sin(yaw),
            observed["proprio/gripper_opening"],
            observed["proprio/gripper_contact"],
        ]
        goal = [env.data.mocap_pos[env._cube_target_mocap_ids[0]]]
        if isinstance(env, SceneEnv):
            goal += [env._target_button_states, [env._target_drawer_pos, env._target_window_pos]]
        privileged = np.concatenate([env.compute_observation(), *goal])
        return {
            "state": np.concatenate(state).astype(np.float32),
            "privileged_state": privileged.astype(np.float32),
            "success": success,
        }
