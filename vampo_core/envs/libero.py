"""LIBERO: 130 tasks of a Panda arm at tables and on the floor (Liu et al. 2023, arXiv 2306.03310)."""

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np

from vampo_core.envs.libero_expert import PickAndPlace
from vampo_core.envs.libero_import import (
    ControlEnv,
    Observable,
    RandomizationError,
    load_suite,
    mujoco,
    quat2axisangle,
    quiet,
    sensor,
)
from vampo_core.envs.libero_tasks import SUITES, split_task, task_index
from vampo_core.envs.mujoco_backend import no_backend

CAMERAS = ("agentview", "robot0_eye_in_hand", "frontview", "sideview", "birdview", "galleryview", "robot0_robotview")
"""Cameras of every scene."""
NUM_SETTLING_STEPS = 10
"""Steps at the beginning of an episode in which objects fall into place, as in published evaluations."""

_NO_MOTION = np.array([0, 0, 0, 0, 0, 0, -1.0])  # the gripper stays open
_OBSERVATION = "pixels_and_state"
_COLLISION_GROUP = 0
_SUPERSAMPLING = 2
_MAX_PLACEMENTS = 100


class Libero(gymnasium.Env):
    """A LIBERO task seen as pixels; an action is [dx, dy, dz, three rotations, gripper] in [-1, 1].

    Translations are in 5 cm, rotations (axis times angle) in 0.5 rad; the gripper opens at -1 and closes at 1. The seed
    of an episode chooses one of the task's initial states that LIBERO fixes for evaluations: the seed modulo their
    number, which is 50. An episode ends with success, as LIBERO's goal predicates judge it.

    Args:
        task: suite and task, as a number or by LIBERO's name: ``"libero_object/0"``.
        image_size: height and width of a frame, 16 to 512 px.
        camera: one of :data:`CAMERAS`.
        max_steps: number of actions after which an episode is truncated; None for the customary one of the suite.
        fast_rendering: whether to leave out shadows, reflections and multisampling, which take most of the time on a
            CPU. Frames are then rendered at twice the size and averaged; otherwise they are LIBERO's own, upright.
        mirrored: whether left and right are exchanged, as they are in the field's datasets (see :func:`lerobot_view`).

    ``info["state"]`` is float32 [8]: the end effector's position in m and its rotation as axis times angle, both in the
    world, and the positions of the two fingers in m, as in the field's datasets. ``info["privileged_state"]`` is
    MuJoCo's time, positions and velocities. The simulator is loaded by the first reset, which takes seconds.

    Raises:
        ValueError: an argument is out of range, or there is no such task.
        ImportError: there is no rendering backend; the message names the system packages.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012 (gymnasium's own form)
    render_mode = "rgb_array"
    fps = 20.0
    idle_weight = 4  # 700 to 1100 MB

    def __init__(
        self,
        task: str = "",
        *,
        image_size: int = 128,
        camera: str = "agentview",
        max_steps: int | None = None,
        fast_rendering: bool = True,
        mirrored: bool = False,
    ) -> None:
        self.suite, key = split_task(task)
        if not 16 <= image_size <= 512:
            raise ValueError(f"image_size is {image_size}, expected 16 to 512 pixels")
        if camera not in CAMERAS:
            raise ValueError(f"camera is {camera!r}, expected one of {', '.join(CAMERAS)}")
        self.max_steps = SUITES[self.suite].max_steps if max_steps is None else max_steps
        if self.max_steps < 1:
            raise ValueError(f"max_steps is {max_steps}, expected at least 1")
        suite = load_suite(self.suite)
        index = task_index(self.suite, key, suite.get_task_names())
        self.task, self.instruction = f"{self.suite}/{index}", suite.get_task(index).language
        self._bddl_file = suite.get_task_bddl_file_path(index)
        self.initial_states = suite.get_task_init_states(index)
        self.image_size, self.camera, self.fast_rendering, self.mirrored = image_size, camera, fast_rendering, mirrored
        self.action_space = gymnasium.spaces.Box(-1, 1, (7,), np.float32)
        self.observation_space = gymnasium.spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        self._env: Any = None
        self._renderer: mujoco.Renderer | None = None
        self._scene_option = mujoco.MjvOption()
        self._scene_option.geomgroup[_COLLISION_GROUP] = 0
        self._pixels: np.ndarray = np.zeros((image_size, image_size, 3), np.uint8)
        self._state: np.ndarray = np.zeros(8, np.float32)
        self._is_watching = False  # frames that nobody sees are not drawn
        self._num_steps: int | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:  # [H, W, 3] uint8, info
        super().reset(seed=seed)
        num_states = len(self.initial_states)
        index = int(self.np_random.integers(num_states)) if seed is None else seed % num_states
        self._is_watching = False
        random_state = np.random.get_state()  # noqa: NPY002 (LIBERO places furniture by numpy's global generator)
        try:
            if self._env is None:
                self._load()
            np.random.seed(index)  # noqa: NPY002
            self._place()
        finally:
            np.random.set_state(random_state)  # noqa: NPY002
        self._env.set_init_state(self.initial_states[index])
        for i in range(NUM_SETTLING_STEPS):
            self._is_watching = i == NUM_SETTLING_STEPS - 1
            self._env.step(_NO_MOTION)
        self._num_steps = 0
        return self._observation(success=False)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if self._num_steps is None:
            raise RuntimeError("step was called before reset")
        action = np.asarray(action, np.float64)
        if action.shape != (7,) or not np.isfinite(action).all():
            raise ValueError(
                f"action is {action!r}, expected seven finite numbers (translation, rotation, gripper) in [-1, 1]"
            )
        _, reward, success, _ = self._env.step(np.clip(action, -1, 1))
        self._num_steps += 1
        truncated = not success and self._num_steps >= self.max_steps
        pixels, info = self._observation(bool(success))
        return pixels, float(reward), bool(success), truncated, info

    def render(self) -> np.ndarray:  # [H, W, 3] uint8
        return self._pixels.copy()

    @property
    def has_expert(self) -> bool:
        """Whether there is an expert for this task."""
        return self.suite == "libero_object"

    def expert(self) -> Callable[[], np.ndarray]:
        """Make an expert for the episode that just began; only ``libero_object`` has one.

        Raises:
            ValueError: there is none for this task.
        """
        if not self.has_expert:
            raise ValueError(
                f"environment 'libero/{self.task}' has no expert, only those of libero_object do: LIBERO's "
                "demonstrations come as LeRobot datasets (data.format=lerobot)"
            )
        return PickAndPlace(self._env)

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
        if self._env is not None:
            self._env.close()
            self._env = None

    def _load(self) -> None:
        with quiet():
            env = ControlEnv(  # OffScreenRenderEnv without its renderer, which draws two cameras in every step
                bddl_file_name=self._bddl_file,
                has_offscreen_renderer=False,
                use_camera_obs=False,
                hard_reset=False,
                ignore_done=True,
            )
        for name in env.env.observation_names:
            env.env.modify_observable(name, "enabled", False)

        @sensor(modality="vampo")
        def observe(cache: dict[str, Any]) -> float:
            if self._is_watching:
                self._observe()
            return 0.0  # the observation does not pass through robosuite

        self._env = env
        env.env.add_observable(Observable(_OBSERVATION, observe, sampling_rate=self.fps))

    def _place(self) -> None:
        """Reset robot and furniture; the latter is not part of an initial state."""
        for _ in range(_MAX_PLACEMENTS):
            try:
                self._env.env.reset()  # that of ControlEnv hides all errors, and tries again for ever
                break
            except RandomizationError as error:
                failure = error
        else:
            raise failure
        gripper = self._env.robots[0].gripper
        gripper.current_action = np.zeros(gripper.dof)  # only a reset that loads the model again does this

    def _observe(self) -> None:
        """Draw the frame and read the robot's sensors."""
        sim, robot = self._env.sim, self._env.robots[0]
        if self._renderer is None:
            self._renderer = self._new_renderer()
        self._renderer.update_scene(sim.data._data, camera=self.camera, scene_option=self._scene_option)
        pixels = self._renderer.render()
        if self.fast_rendering:
            size = self.image_size
            pixels = pixels.reshape(size, _SUPERSAMPLING, size, _SUPERSAMPLING, 3).mean((1, 3)).round()
        self._pixels = (pixels[:, ::-1] if self.mirrored else pixels).astype(np.uint8)
        w, x, y, z = sim.data.get_body_xquat(robot.robot_model.eef_name)
        position = sim.data.site_xpos[robot.eef_site_id]
        fingers = sim.data.qpos[robot._ref_gripper_joint_pos_indexes]
        self._state = np.concatenate([position, quat2axisangle(np.array([x, y, z, w])), fingers]).astype(np.float32)

    def _new_renderer(self) -> mujoco.Renderer:
        model, size = self._env.sim.model._model, self.image_size
        if self.fast_rendering:
            size *= _SUPERSAMPLING
            model.vis.quality.offsamples = 0
            model.vis.quality.shadowsize = 0
            model.light_castshadow[:] = 0
            model.mat_reflectance[:] = 0
        model.vis.global_.offwidth, model.vis.global_.offheight = (max(size, 640), max(size, 480))
        try:
            return mujoco.Renderer(model, size, size)
        except (ImportError, AttributeError, RuntimeError, mujoco.FatalError) as error:
            raise no_backend("libero", error) from error

    def _observation(self, success: bool) -> tuple[np.ndarray, dict[str, Any]]:
        privileged = self._env.get_sim_state().astype(np.float32)
        return self._pixels.copy(), {
            "state": self._state.copy(),
            "privileged_state": privileged,
            "success": success,
        }


def lerobot_view(task: str = "", **kwargs: Any) -> Libero:
    """A task with the frames of the field's LeRobot datasets, for policies that were trained on one.

    LIBERO's frames are upside down. These datasets turned them by 180 degrees instead of exchanging top and bottom, so
    that everything in them is mirrored.

    Args:
        task: suite and task, see :class:`Libero`.
        kwargs: its other arguments.
    """
    return Libero(task, **({"fast_rendering": False, "mirrored": True} | kwargs))
