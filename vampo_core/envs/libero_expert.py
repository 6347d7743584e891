"""A scripted expert for LIBERO's suite ``libero_object``: it picks up an object and drops it into the basket."""

from collections.abc import Iterator
from typing import Any

import numpy as np

METERS_PER_ACTION = 0.05
"""Translation that the controller aims at for an action of 1."""

_GAIN = 1.5
_TOLERANCE = 0.012  # m
_MAX_STEPS_OF_A_MOVE = 80
_NUM_STEPS_TO_CLOSE, _NUM_STEPS_TO_OPEN = 12, 8
_FINGER_DEPTH = 0.02  # m that the fingers reach down beside an object; deeper, they catch on cartons
_CLEARANCE = 0.04  # m
_OPEN, _CLOSED = -1.0, 1.0


class PickAndPlace:
    """Each call returns the action for the current state; a failed grasp is repeated.

    All objects of the suite stand along the axes and are at most 65 mm wide from left to right, in the direction in
    which the gripper closes at the beginning, so the hand never turns.

    Args:
        env: LIBERO's environment at the beginning of an episode.
    """

    def __init__(self, env: Any) -> None:
        self._sim, self._hand = env.sim, env.robots[0].eef_site_id
        self._item, self._basket = env.obj_of_interest
        self._actions = self._act()

    def __call__(self) -> np.ndarray:  # [7]
        return next(self._actions)

    def _act(self) -> Iterator[np.ndarray]:
        while True:
            low, high = self._bounds(self._item)
            rim = self._bounds(self._basket)[1][2]
            x, y = (low + high)[:2] / 2
            grasp = max((low + high)[2] / 2, high[2] - _FINGER_DEPTH)
            carry = rim + _CLEARANCE + grasp - low[2]  # the object's lower end passes over the basket's rim
            yield from self._move([x, y, max(carry, high[2] + _CLEARANCE)], _OPEN)
            yield from self._move([x, y, grasp], _OPEN)
            yield from self._stay(_CLOSED, _NUM_STEPS_TO_CLOSE)
            yield from self._move([x, y, carry], _CLOSED)
            low, high = self._bounds(self._basket)
            yield from self._move([*(low + high)[:2] / 2, carry], _CLOSED)
            yield from self._stay(_OPEN, _NUM_STEPS_TO_OPEN)

    def _move(self, target: list[float], gripper: float) -> Iterator[np.ndarray]:
        for _ in range(_MAX_STEPS_OF_A_MOVE):
            offset = np.array(target) - self._sim.data.site_xpos[self._hand]
            if np.linalg.norm(offset) < _TOLERANCE:
                return
            yield _action(_GAIN * offset / METERS_PER_ACTION, gripper)

    def _stay(self, gripper: float, num_steps: int) -> Iterator[np.ndarray]:
        for _ in range(num_steps):
            yield _action(np.zeros(3), gripper)

    def _bounds(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Smallest and largest world coordinates, [3] each in m, of the boxes that an object collides with."""
        model, data = self._sim.model._model, self._sim.data._data
        geoms = np.flatnonzero((model.geom_bodyid == model.body(f"{name}_main").id) & (model.geom_group == 0))
        rotations = data.geom_xmat[geoms].reshape(-1, 3, 3)
        reach = np.abs(rotations) @ model.geom_size[geoms][:, :, None]
        centers, reach = data.geom_xpos[geoms], reach[:, :, 0]
        return (centers - reach).min(0), (centers + reach).max(0)


def _action(translation: np.ndarray, gripper: float) -> np.ndarray:
    """Put together an action [7] from a translation [3] in units of an action."""
    return np.array([*np.clip(translation, -1, 1), 0, 0, 0, gripper], np.float32)
