"""An expert for OGBench's evaluation tasks: it calls OGBench's scripted oracles one after the other."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from ogbench.manipspace.envs.manipspace_env import ManipSpaceEnv
from ogbench.manipspace.envs.scene_env import SceneEnv
from ogbench.manipspace.oracles.markov.button_markov import ButtonMarkovOracle
from ogbench.manipspace.oracles.markov.cube_markov import CubeMarkovOracle
from ogbench.manipspace.oracles.markov.drawer_markov import DrawerMarkovOracle
from ogbench.manipspace.oracles.markov.window_markov import WindowMarkovOracle

Info = dict[str, Any]

_MIN_NORM = 0.2
"""Least distance in m that oracles take their speed from; with OGBench's 0.4 more cubes fall beside the drawer."""
_DRAWER_OPEN = -0.16  # m
_BUTTONS = {"drawer": 0, "window": 1}
_NEAR = 0.02  # m; a success needs 0.04


@dataclass(frozen=True)
class _Stage:
    """One oracle at work."""

    oracle: Any
    target: Callable[[Info], Info]
    """What OGBench tells an oracle when it collects data, and not in its evaluation tasks."""
    is_achieved: Callable[[Info], bool]
    clearance: float
    """Height in m above which the hand may leave."""

    def is_over(self, info: Info) -> bool:
        return self.oracle.done or (self.is_achieved(info) and info["proprio/effector_pos"][2] > self.clearance)


class OGBenchExpert:
    """Chooses the next thing to do whenever an oracle is done, and returns the oracle's actions.

    The oracles are OGBench's "markov" ones, which look at every step and so recover from disturbances.

    Args:
        env: environment in one of its evaluation tasks, reset.
    """

    def __init__(self, env: ManipSpaceEnv) -> None:
        self._env = env
        self._stage: _Stage | None = None

    def __call__(self) -> np.ndarray:  # [5] float32
        info = self._env.compute_ob_info()
        if self._stage is None or self._stage.is_over(info):
            self._stage = self._next_stage(info)
        action = self._stage.oracle.select_action(None, info | self._stage.target(info))
        return np.clip(action, -1, 1).astype(np.float32)

    def _next_stage(self, info: Info) -> _Stage:
        goal = self._env.data.mocap_pos[self._env._cube_target_mocap_ids[0]].copy()
        if not isinstance(self._env, SceneEnv):
            return self._place(goal)
        if goal[1] < -0.3:  # in the closed drawer
            if not self._is_in_drawer(info):
                if abs(info["privileged/drawer_pos"][0] - _DRAWER_OPEN) > _NEAR:
                    return self._slide(info, "drawer", _DRAWER_OPEN)
                return self._place(self._env._drawer_center, self._is_in_drawer)
        elif np.linalg.norm(info["privileged/block_0_pos"] - goal) > _NEAR:
            return self._place(goal)
        for name, position in (("drawer", self._env._target_drawer_pos), ("window", self._env._target_window_pos)):
            if abs(info[f"privileged/{name}_pos"][0] - position) > _NEAR:
                return self._slide(info, name, position)
        for button, state in enumerate(self._env._target_button_states):
            if info[f"privileged/button_{button}_state"] != state:
                return self._press(button, state)
        return self._place(goal)

    def _is_in_drawer(self, info: Info) -> bool:
        """Whether the cube lies in the drawer where closing it is enough: its front then pushes the cube back."""
        cube, goal = info["privileged/block_0_pos"], self._env._drawer_center
        return bool(self._env._is_in_drawer(cube) and cube[2] < goal[2] + _NEAR and abs(cube[0] - goal[0]) < 0.03)

    def _place(self, goal: np.ndarray, is_enough: Callable[[Info], bool] = lambda _: False) -> _Stage:
        def target(info: Info) -> Info:
            position = goal
            if is_enough(info):  # the oracle lets go of a cube this near to its target
                away = goal - info["privileged/block_0_pos"]
                position = goal - away * max(0.0, 1 - 0.019 / float(np.linalg.norm(away)))
            return {
                "privileged/target_block": 0,
                "privileged/target_block_pos": position,
                "privileged/target_block_yaw": np.zeros(1),
            }

        def is_achieved(info: Info) -> bool:
            return is_enough(info) or bool(np.linalg.norm(info["privileged/block_0_pos"] - goal) <= _NEAR)

        return self._begin(CubeMarkovOracle, target, is_achieved, 0.16)

    def _slide(self, info: Info, name: str, position: float) -> _Stage:
        button = _BUTTONS[name]
        if info[f"privileged/button_{button}_state"] == 0:
            return self._press(button, 1)
        axis = self._env.data.joint(f"{name}_slide").xaxis
        way = position - info[f"privileged/{name}_pos"][0]
        target = {f"privileged/target_{name}_handle_pos": info[f"privileged/{name}_handle_pos"] + way * axis}

        def is_achieved(info: Info) -> bool:
            return bool(abs(info[f"privileged/{name}_pos"][0] - position) <= 0.01)

        oracle, clearance = (DrawerMarkovOracle, 0.18) if name == "drawer" else (WindowMarkovOracle, 0.28)
        return self._begin(oracle, lambda _: target, is_achieved, clearance)

    def _press(self, button: int, state: int) -> _Stage:
        top = self._env.data.site_xpos[self._env._button_site_ids[button]].copy()
        target = {
            "privileged/target_button": button,
            "privileged/target_button_state": state,
            "privileged/target_button_top_pos": top,
        }
        return self._begin(
            ButtonMarkovOracle, lambda _: target, lambda info: info[f"privileged/button_{button}_state"] == state, 0.16
        )

    def _begin(
        self, oracle_class: Any, target: Callable[[Info], Info], is_achieved: Callable[[Info], bool], clearance: float
    ) -> _Stage:
        oracle = oracle_class(env=self._env, min_norm=_MIN_NORM)
        # its reset draws from numpy's global generator where the arm goes afterwards
        oracle._step, oracle._final_pos, oracle._final_yaw = 0, np.array([0.4, 0.0, 0.35]), 0.0
        return _Stage(oracle, target, is_achieved, clearance)
