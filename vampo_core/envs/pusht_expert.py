"""Scripted PushT expert: search over straight pushes in a copy of the physics, walk around the block, push, repeat."""

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from gym_pusht.envs import PushTEnv

from vampo_core.envs.pusht_physics import (
    AGENT_RADIUS,
    CENTRE,
    OUTLINE,
    Point,
    PushTPhysics,
    State,
    edge_distance,
    outline_edges,
    to_world,
)

BOUNDS = (12.0, 500.0)  # px; range that the agent stays in
REACH = AGENT_RADIUS + 4.0  # px from a contact point to the agent's centre before the push
ORBIT_RADIUS = 102.0  # px around the block's center of gravity; out there the agent touches nothing
CONTACT_SPACING = 12.0  # px
TILTS = (-0.5, 0.0, 0.5)  # rad, push directions relative to the inward normal
TRAVEL_SPEED = 24.0  # px per control step
COARSE_SPEED, FINE_SPEED = 12.0, 4.0  # px per control step while pushing
FINE_DISTANCE = 40.0  # px to the goal below which the fine speed is worth its search
MAX_PUSH_STEPS = 16
OVERHEAD_STEPS = 16.0  # cost of a push besides travel; a larger one gives fewer and longer pushes
GIVE_UP_DISTANCE = 15.0  # px that a push may lose before its simulation stops
ARRIVED_DISTANCE = 4.0  # px
MAX_SETTLE_STEPS = 8


class Push(NamedTuple):
    """The agent's target leaves ``start`` in ``direction`` at ``speed`` for ``num_steps`` control steps."""

    start: Point
    direction: Point
    speed: float
    num_steps: int

    def target(self, step: int) -> Point:
        return (
            self.start[0] + self.direction[0] * self.speed * step,
            self.start[1] + self.direction[1] * self.speed * step,
        )


class PushTExpert:
    """Expert that chooses the push with the largest gain per control step, walk included; it knows the full state."""

    def __init__(self, env: PushTEnv) -> None:
        self._env = env
        self._physics = PushTPhysics(env)
        self._contacts = _contacts()
        self._actions = self._act()

    def __call__(self) -> np.ndarray:  # [2] float32
        """Return the action for the current state: the agent's next target position, in px."""
        return np.clip(np.array(next(self._actions), np.float32), 0, 512)

    def _act(self) -> Iterator[Point]:
        while True:
            push = self._search(State.of(self._env))
            if push is None:
                yield State.of(self._env).agent
                continue
            yield from self._walk(push.start)
            push, _ = self._best_length(push, State.of(self._env), cost=math.inf)
            for step in range(1, push.num_steps + 1):
                yield push.target(step)

    def _search(self, state: State) -> Push | None:
        """Find the best push; None if the block has been pushed through the wall, out of the agent's reach."""
        distance = self._physics.goal_distance(state.block, state.angle)
        speeds = (COARSE_SPEED, FINE_SPEED) if distance < FINE_DISTANCE else (COARSE_SPEED,)
        found: list[tuple[float, Push]] = []
        for contact, normal in self._contacts:
            outward = to_world(normal, (0, 0), state.angle)
            x, y = to_world(contact, state.block, state.angle)
            start = (x + REACH * outward[0], y + REACH * outward[1])
            if not all(BOUNDS[0] <= v <= BOUNDS[1] for v in start):
                continue
            cost = OVERHEAD_STEPS + sum(math.dist(a, b) for a, b in pairwise(_path(state, start))) / TRAVEL_SPEED
            begin = state._replace(agent=start, velocity=(0.0, 0.0))
            for tilt in TILTS:
                direction = to_world((-outward[0], -outward[1]), (0, 0), tilt)
                for speed in speeds:
                    push, gain = self._best_length(Push(start, direction, speed, MAX_PUSH_STEPS), begin, cost)
                    found.append((gain, push))
        return max(found)[1] if found else None

    def _best_length(self, push: Push, state: State, cost: float) -> tuple[Push, float]:
        """Find the length with the largest gain per step if ``cost`` steps are added; the shortest of equals.

        An infinite cost asks for the largest gain itself, for any number of steps.
        """
        self._physics.load(state)
        before = self._physics.goal_distance(state.block, state.angle)
        best_gain, best_steps = -math.inf, 1
        for step in range(1, MAX_PUSH_STEPS + 1):
            gain = before - self._physics.step(push.target(step))
            if gain < -GIVE_UP_DISTANCE:
                break
            if math.isfinite(cost):
                gain /= cost + step
            if gain > best_gain:
                best_gain, best_steps = gain, step
        return push._replace(num_steps=best_steps), best_gain

    def _walk(self, goal: Point) -> Iterator[Point]:
        for a, b in pairwise(_path(State.of(self._env), goal)):
            num_steps = max(1, math.ceil(math.dist(a, b) / TRAVEL_SPEED))
            for step in range(1, num_steps + 1):
                yield a[0] + (b[0] - a[0]) * step / num_steps, a[1] + (b[1] - a[1]) * step / num_steps
        for _ in range(MAX_SETTLE_STEPS):
            if math.dist(self._env.agent.position, goal) < ARRIVED_DISTANCE:
                return
            yield goal


def _contacts() -> list[tuple[Point, Point]]:
    """Points along the outline that the agent can reach, and their outward normals, in the block's frame."""
    edges = outline_edges(OUTLINE)
    contacts = []
    for a, b in edges:
        length = math.dist(a, b)
        along = ((b[0] - a[0]) / length, (b[1] - a[1]) / length)
        normal = (along[1], -along[0])
        num_points = max(2, round(length / CONTACT_SPACING))
        for i in range(num_points):
            offset = (i + 0.5) * length / num_points
            contact = (a[0] + along[0] * offset, a[1] + along[1] * offset)
            start = (contact[0] + REACH * normal[0], contact[1] + REACH * normal[1])
            if edge_distance(start, edges) > AGENT_RADIUS + 1:  # else too deep in a corner of the T
                contacts.append((contact, normal))
    return contacts


def _path(state: State, goal: Point) -> list[Point]:
    """Corners of a path from the agent to ``goal`` around the block: straight, or along an orbit around it."""
    edges = outline_edges(tuple(to_world(corner, state.block, state.angle) for corner in OUTLINE))
    if _is_clear(state.agent, goal, edges):
        return [state.agent, goal]
    centre = to_world(CENTRE, state.block, state.angle)
    begin = math.atan2(state.agent[1] - centre[1], state.agent[0] - centre[0])
    turn = (math.atan2(goal[1] - centre[1], goal[0] - centre[0]) - begin) % math.tau
    arcs = [_arc(centre, begin, turn), _arc(centre, begin, turn - math.tau)]
    arc = min(arcs, key=lambda points: (sum(map(_is_outside, points)), len(points)))
    path = [state.agent]
    for x, y in arc:
        path.append((min(max(x, BOUNDS[0]), BOUNDS[1]), min(max(y, BOUNDS[0]), BOUNDS[1])))
        if _is_clear(path[-1], goal, edges):
            break
    return [*path, goal]


def _arc(centre: Point, begin: float, turn: float) -> list[Point]:
    num_legs = max(1, math.ceil(abs(turn) / 0.3))
    angles = (begin + turn * i / num_legs for i in range(num_legs + 1))
    return [(centre[0] + ORBIT_RADIUS * math.cos(a), centre[1] + ORBIT_RADIUS * math.sin(a)) for a in angles]


def _is_outside(point: Point) -> bool:
    return not all(BOUNDS[0] <= v <= BOUNDS[1] for v in point)


def _is_clear(a: Point, b: Point, edges: list[tuple[Point, Point]]) -> bool:
    num_steps = max(2, math.ceil(math.dist(a, b) / 8))
    dx, dy = (b[0] - a[0]) / num_steps, (b[1] - a[1]) / num_steps
    points = ((a[0] + dx * i, a[1] + dy * i) for i in range(num_steps + 1))
    return all(edge_distance(point, edges) >= AGENT_RADIUS + 2 for point in points)
