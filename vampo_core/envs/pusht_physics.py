"""A copy of PushT's physics that can be set to any state and stepped ahead, and the geometry of its block."""

import math
from typing import NamedTuple

import pymunk
from gym_pusht.envs import PushTEnv

Point = tuple[float, float]

AGENT_RADIUS = 15.0
OUTLINE: tuple[Point, ...] = ((-60, 0), (60, 0), (60, 30), (15, 30), (15, 120), (-15, 120), (-15, 30), (-60, 30))
CENTRE: Point = (0.0, 45.0)  # of gravity; like OUTLINE in px of the block's own frame
GYRATION_RADIUS = 55.0  # px; weight of a turn of the block against a shift


class State(NamedTuple):
    """Everything that the next step depends on: with damping 0 the block keeps no velocity."""

    agent: Point
    velocity: Point
    block: Point
    angle: float  # rad

    @classmethod
    def of(cls, env: PushTEnv) -> "State":
        agent, block = env.agent, env.block
        return cls(tuple(agent.position), tuple(agent.velocity), tuple(block.position), float(block.angle))


class PushTPhysics:
    """The environment's bodies in a second pymunk space, without pixels, rewards or collision callbacks."""

    def __init__(self, env: PushTEnv) -> None:
        self._dt, self._k_p, self._k_v = env.dt, env.k_p, env.k_v
        self._num_substeps = round(1 / (env.dt * env.control_hz))
        self._space = pymunk.Space()
        self._space.gravity = 0, 0
        self._space.damping = env.space.damping
        corners = ((5, 506), (5, 5), (506, 5), (506, 506))
        self._space.add(*(env.add_segment(self._space, a, b, 2) for a, b in outline_edges(corners)))
        self._agent = env.add_circle(self._space, (0, 0), AGENT_RADIUS)
        self._block, _ = env.add_tee(self._space, (0, 0), 0)
        goal_x, goal_y, self._goal_angle = (float(v) for v in env.goal_pose)
        self._goal_centre = to_world(CENTRE, (goal_x, goal_y), self._goal_angle)

    def load(self, state: State) -> None:
        self._agent.position, self._agent.velocity = state.agent, state.velocity
        self._block.angle = state.angle  # first, because it turns about the center of gravity and moves the position
        self._block.position = state.block
        self._block.velocity, self._block.angular_velocity = (0, 0), 0.0
        self._space.reindex_shapes_for_body(self._block)

    def step(self, target: Point) -> float:
        """Take one control step of the environment's PD controller; return the block's distance to its goal, in px."""
        (x, y), (vx, vy) = self._agent.position, self._agent.velocity
        for _ in range(self._num_substeps):  # the agent is kinematic: the block cannot move it
            vx += (self._k_p * (target[0] - x) - self._k_v * vx) * self._dt
            vy += (self._k_p * (target[1] - y) - self._k_v * vy) * self._dt
            self._agent.velocity = vx, vy
            self._space.step(self._dt)
            x += vx * self._dt
            y += vy * self._dt
        return self.goal_distance(self._block.position, self._block.angle)

    def goal_distance(self, block: Point, angle: float) -> float:
        """Root-mean-square distance of the points of a block at this pose to their goal positions, in px."""
        x, y = to_world(CENTRE, block, angle)
        shift_squared = (x - self._goal_centre[0]) ** 2 + (y - self._goal_centre[1]) ** 2
        return math.sqrt(shift_squared + 2 * GYRATION_RADIUS**2 * (1 - math.cos(angle - self._goal_angle)))


def to_world(point: Point, origin: Point, angle: float) -> Point:
    c, s = math.cos(angle), math.sin(angle)
    return origin[0] + c * point[0] - s * point[1], origin[1] + s * point[0] + c * point[1]


def outline_edges(corners: tuple[Point, ...]) -> list[tuple[Point, Point]]:
    return list(zip(corners, corners[1:] + corners[:1], strict=True))


def edge_distance(point: Point, edges: list[tuple[Point, Point]]) -> float:
    """Distance of a point outside a polygon to its nearest edge."""
    return min(_segment_distance(point, a, b) for a, b in edges)


def _segment_distance(point: Point, a: Point, b: Point) -> float:
    dx, dy = b[0] - a[0], b[1] - a[1]
    along = ((point[0] - a[0]) * dx + (point[1] - a[1]) * dy) / (dx * dx + dy * dy)
    along = max(0.0, min(1.0, along))
    return math.dist(point, (a[0] + along * dx, a[1] + along * dy))
