"""Scripted demonstrators that read simulator state.

A demonstrator exists to be imitated by a policy that sees images, language and proprioception, so
its action is, as far as possible, a smooth function of what such a policy can see: proportional
control towards a target that itself depends on the present position (a funnel), gripper switches at
places and openings that are visible, and no waiting without visible progress.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs._geometry import Points
from envs._grasp import (
    MAX_OPENING,
    PALM_ABOVE,
    PALM_HALF_LENGTH,
    PALM_HALF_WIDTH,
    TIP_BELOW,
    Grasp,
    plan_grasp,
)
from envs._scene import (
    Goal,
    Scene,
    UnsupportedTaskError,
    highest_between,
    pick_place_goals,
    resting_height,
)

__all__ = ["Goal", "Phase", "PickPlaceExpert", "UnsupportedTaskError", "pick_place_goals"]

Vector = NDArray[np.float64]

OPEN, CLOSE = -1.0, 1.0

# Proportional control in action units; action 1.0 asks the controller for 0.05 m or 0.5 rad.
TRANSLATION_GAIN = 14.0  # per metre
FRICTION_ACTION = 0.25  # the stretched arm hardly answers to smaller actions
FRICTION_DISTANCE = 0.012  # m of error at which most of it is added
ROTATION_GAIN = 1.4  # per radian: the same share of the error per step as in translation
ROTATION_LIMIT = 0.4  # a unit rotation drags the grip site sideways by nearly a centimetre a step

_CLOSE_TOLERANCE = (0.007, 0.007, 0.08)  # horizontal (m), vertical (m), yaw (rad)
_PLACE_TOLERANCE = (0.015, 0.010)  # horizontal, vertical (m)
_TOUCH_TOLERANCE = (0.02, 0.03)  # the same for an object that touches its support already
_EMPTY_OPENING = 0.003  # m; the fingers met
_LOST_DISTANCE = 0.04  # m; the object has left the hand
_MOVED_DISTANCE, _MOVED_TILT = 0.008, 0.08  # m and rad after which the grasp is planned again
_RELEASED_OPENING = 0.012  # m that the fingers must part
_RETREAT = 0.08  # m
_HOVER = 0.03  # m above the grasp, the least height before the gripper is over it
_FINGER_MARGIN = TIP_BELOW + 0.018  # m above what the open fingers must pass over
_BESIDE = 0.08  # m around the grasp in which everything must be passed over
_STRAIGHT_DOWN = 0.006  # m of horizontal error, or a tenth of that in radians of yaw
_MARGIN = 0.035  # m above obstacles on the way
_RELEASE_HEIGHT = 0.006  # m above the support


class Phase(StrEnum):
    """What the demonstrator is doing."""

    APPROACH = "approach"
    GRASP = "grasp"
    CARRY = "carry"
    RELEASE = "release"
    RETREAT = "retreat"


class PickPlaceExpert:
    """Picks up each goal's object and places it, for any task made of `in` and `on` goals.

    Call `act` once per control step and execute its result (or a disturbed version of it: every
    action depends on the state alone, so that the demonstrator recovers).

    Args:
        env: a `envs.libero.LiberoEnv` after `reset`.
        gain: proportional gain of translation, action units per metre of error.

    Raises:
        UnsupportedTaskError: the task needs more than picking and placing.
        envs._grasp.GraspError: raised by `act` when an object cannot be grasped from above.
    """

    def __init__(self, env: Any, *, gain: float = TRANSLATION_GAIN) -> None:
        self._scene = Scene(env.inner)
        self._goals = self._scene.goals()
        self._gain = gain
        self._goal = self._goals[0]
        self._precision = 0.0
        self._start(self._next_goal())

    @property
    def phase(self) -> Phase:
        """Phase of the last action."""
        return self._phase

    @property
    def noise_scale(self) -> float:
        """How much disturbance the last action's situation tolerates, 0 to 1.

        0 while the gripper closes or opens, rising with the distance from where that happens.
        """
        if self._phase in (Phase.GRASP, Phase.RELEASE):
            return 0.0
        return float(np.clip(self._precision / 0.06, 0.0, 1.0))

    def act(self) -> Vector:
        """The action for the present state: (7,), each in [-1, 1], gripper -1 open, +1 closed."""
        self._advance()
        return {
            Phase.APPROACH: self._approach,
            Phase.GRASP: self._close,
            Phase.CARRY: self._carry,
            Phase.RELEASE: self._open,
            Phase.RETREAT: self._retreat,
        }[self._phase]()

    # Phases -------------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Moves to another phase when the state says so."""
        if self._phase is Phase.APPROACH:
            self._follow_object()
            if self._at_grasp():
                self._phase, self._steps = Phase.GRASP, 0
        elif self._phase is Phase.GRASP:
            if self._is_held():
                self._begin_carry()
            elif self._steps > 2 and self._scene.opening() < _EMPTY_OPENING:
                self._start(self._goal)
        elif self._phase is Phase.CARRY:
            if self._is_lost():
                self._start(self._goal)
            elif self._at_place():
                self._phase, self._opening = Phase.RELEASE, self._scene.opening()
        elif self._phase is Phase.RELEASE:
            if self._scene.opening() > min(self._opening + _RELEASED_OPENING, 0.9 * MAX_OPENING):
                self._phase, self._height = Phase.RETREAT, self._scene.eef_position()[2] + _RETREAT
        elif self._scene.eef_position()[2] > self._height - 0.02:
            self._start(self._next_goal())

    def _start(self, goal: Goal) -> None:
        """Plans the grasp for a goal."""
        self._goal, self._phase, self._steps = goal, Phase.APPROACH, 0
        self._obstacles = self._scene.points_without(goal.item)
        self._plan()

    def _plan(self) -> None:
        item = self._goal.item
        self._planned_at = self._pose_of_item()
        self._grasp = plan_grasp(
            self._scene.points(item),
            self._obstacles,
            self._yaw(),
            base=self._scene.base_position()[:2],
            carry=(self._scene.position(self._goal.target) - self._scene.position(item))[:2],
        )
        start, end = self._scene.eef_position(), self._grasp.position
        beside = highest_between(self._obstacles, end, end, _BESIDE)
        on_the_way = highest_between(self._obstacles, start, end, 0.05)
        top = float(self._scene.points(item)[:, 2].max())
        self._hover = max(end[2] + _HOVER, top + _FINGER_MARGIN, beside + _FINGER_MARGIN)
        self._cruise = max(self._hover, on_the_way + _FINGER_MARGIN)

    def _follow_object(self) -> None:
        """The gripper pushed the object, or it rolled: plan again."""
        position, axis = self._pose_of_item()
        moved = np.linalg.norm(position - self._planned_at[0]) > _MOVED_DISTANCE
        if moved or np.linalg.norm(axis - self._planned_at[1]) > _MOVED_TILT:
            self._plan()

    def _pose_of_item(self) -> tuple[Vector, Vector]:
        item = self._goal.item
        return self._scene.position(item), self._scene.rotation(item)[:, 2]

    def _begin_carry(self) -> None:
        """Decides where the object goes and how high it must be carried."""
        scene, goal = self._scene, self._goal
        self._phase = Phase.CARRY
        self._grip_offset = scene.position(goal.item) - scene.eef_position()
        points, origin = scene.points(goal.item), scene.position(goal.item)
        self._place = self._place_position(points, origin)
        bottom = float(points[:, 2].min()) - scene.eef_position()[2]
        radius = float(np.linalg.norm(points[:, :2] - origin[:2], axis=1).max())
        highest = highest_between(self._obstacles, origin, self._place, radius + 0.01)
        clear = highest + _MARGIN - bottom + self._grip_offset[2]
        self._carry_height = max(clear, origin[2] + 0.05, self._place[2] + 0.03)

    def _place_position(self, points: Points, origin: Vector) -> Vector:
        """Where the origin of the held object shall be when the gripper opens, (3,)."""
        target = self._scene.position(self._goal.target)
        rise = resting_height(points, self._obstacles, target[:2] - origin[:2])
        height = target[2] if rise is None else origin[2] + rise
        lowest_hand = self._lowest_hand(target[:2] - self._grip_offset[:2])
        height = max(height + _RELEASE_HEIGHT, lowest_hand + self._grip_offset[2])
        return np.array([target[0], target[1], height])

    def _lowest_hand(self, xy: Vector) -> float:
        """Lowest height of the grip site at which palm and fingers stay clear of obstacles."""
        yaw = self._yaw()
        along = np.array([np.cos(yaw), np.sin(yaw)])
        offset = self._obstacles[:, :2] - xy
        a, b = np.abs(offset @ along), np.abs(offset @ np.array([-along[1], along[0]]))
        palm = (a < PALM_HALF_LENGTH + 0.01) & (b < PALM_HALF_WIDTH + 0.01)
        finger = (a < 0.04) & (b < 0.015)
        heights = self._obstacles[:, 2]
        return max(
            float(heights[palm].max(initial=-np.inf)) - PALM_ABOVE + 0.008,
            float(heights[finger].max(initial=-np.inf)) + TIP_BELOW + 0.004,
        )

    # Conditions ---------------------------------------------------------------------------------

    def _at_grasp(self) -> bool:
        error = self._grasp.position - self._scene.eef_position()
        horizontal, vertical, turn = _CLOSE_TOLERANCE
        return bool(
            np.linalg.norm(error[:2]) < horizontal
            and abs(error[2]) < vertical
            and abs(self._grasp.yaw - self._yaw()) < turn
        )

    def _is_held(self) -> bool:
        self._steps += 1
        closing = self._opening_before - self._scene.opening() if self._steps > 1 else np.inf
        self._opening_before = self._scene.opening()
        return bool(self._steps > 2 and closing < 4e-4 and self._scene.grip_force() > 1.0)

    def _is_lost(self) -> bool:
        offset = self._scene.position(self._goal.item) - self._scene.eef_position()
        return bool(np.linalg.norm(offset - self._grip_offset) > _LOST_DISTANCE)

    def _at_place(self) -> bool:
        """Where it shall be let go, or standing on something just above that."""
        error = self._place - self._scene.position(self._goal.item)
        horizontal, vertical = _PLACE_TOLERANCE
        if self._scene.touches_something(self._goal.item):
            horizontal, vertical = _TOUCH_TOLERANCE
        return bool(np.linalg.norm(error[:2]) < horizontal and abs(error[2]) < vertical)

    def _next_goal(self) -> Goal:
        """The first goal that does not hold yet, else the last one."""
        return next((g for g in self._goals if not self._scene.satisfied(g)), self._goals[-1])

    # Motions ------------------------------------------------------------------------------------

    def _approach(self) -> Vector:
        """Over the object and, once over it, down: the height follows the horizontal error."""
        position = self._scene.eef_position()
        grasp = self._grasp
        distance = float(np.linalg.norm(grasp.position[:2] - position[:2]))
        off = max(distance, abs(grasp.yaw - self._yaw()) * 0.1) - _STRAIGHT_DOWN
        height = (
            grasp.position[2]
            + (self._hover - grasp.position[2]) * _ramp(off / 0.02)
            + (self._cruise - self._hover) * _ramp((distance - 0.04) / (_BESIDE - 0.04))
        )
        self._precision = distance
        return self._towards(np.array([*grasp.position[:2], height]), OPEN)

    def _close(self) -> Vector:
        return self._towards(self._grasp.position, CLOSE)

    def _carry(self) -> Vector:
        """Up, over the target, and down, with the object's origin as the point to control."""
        held = self._scene.position(self._goal.item)
        distance = float(np.linalg.norm(self._place[:2] - held[:2]))
        height = self._place[2] + (self._carry_height - self._place[2]) * _ramp(
            (distance - 0.01) / 0.03
        )
        self._precision = distance
        target = np.array([*self._place[:2], height]) - held + self._scene.eef_position()
        moved = float(np.linalg.norm(self._scene.eef_position() - self._grasp.position))
        return self._towards(target, CLOSE, speed=0.3 + 0.7 * _ramp(moved / 0.03))

    def _open(self) -> Vector:
        return self._towards(self._scene.eef_position(), OPEN)

    def _retreat(self) -> Vector:
        self._precision = 0.03
        position = self._scene.eef_position()
        return self._towards(np.array([*position[:2], self._height]), OPEN)

    def _towards(self, target: Vector, gripper: float, speed: float = 1.0) -> Vector:
        """Proportional control; sideways motion waits for height where height is missing."""
        error = target - self._scene.eef_position()
        wait = _ramp((error[2] - 0.01) / 0.06)
        sideways = _limit(self._command(error[:2]), 1.0) * (1 - wait)
        translation = _limit(np.array([*sideways, *self._command(error[2:])]), speed)
        rotation = _limit(ROTATION_GAIN * self._rotation_error(), ROTATION_LIMIT)
        return np.concatenate([translation, rotation, [gripper]])

    def _command(self, error: Vector) -> Vector:
        """Proportional, plus what friction and a stretched arm swallow before it moves at all."""
        distance = float(np.linalg.norm(error))
        friction = FRICTION_ACTION * np.tanh(distance / FRICTION_DISTANCE)
        return error * (self._gain + friction / max(distance, 1e-9))

    def _rotation_error(self) -> Vector:
        """Rotation vector (world frame) to "pointing down, at the grasp's yaw"."""
        cos, sin = np.cos(self._grasp.yaw), np.sin(self._grasp.yaw)
        wanted = np.array([[cos, sin, 0.0], [sin, -cos, 0.0], [0.0, 0.0, -1.0]])
        return rotation_vector(wanted @ self._scene.eef_rotation().T)

    def _yaw(self) -> float:
        x, y, _ = self._scene.eef_rotation()[:, 0]
        yaw = float(np.arctan2(y, x))
        grasp: Grasp | None = getattr(self, "_grasp", None)
        return yaw if grasp is None else grasp.yaw + _wrap(yaw - grasp.yaw)


def rotation_vector(rotation: Vector) -> Vector:
    """Axis times angle (rad) of a rotation matrix (3, 3), for angles below half a turn.

    >>> rotation_vector(np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])).round(4)
    array([0.    , 0.    , 1.5708])
    """
    skew = np.array(
        [
            rotation[2, 1] - rotation[1, 2],
            rotation[0, 2] - rotation[2, 0],
            rotation[1, 0] - rotation[0, 1],
        ]
    )
    sine, cosine = float(np.linalg.norm(skew)) / 2, (float(np.trace(rotation)) - 1) / 2
    return skew / 2 if sine < 1e-9 else skew * (np.arctan2(sine, cosine) / (2 * sine))


def _ramp(x: float) -> float:
    """0 below 0, 1 above 1, smooth in between."""
    x = min(1.0, max(0.0, x))
    return x * x * (3 - 2 * x)


def _limit(vector: Vector, length: float) -> Vector:
    """Shortens a vector to a length; its direction stays."""
    return vector * min(1.0, length / max(float(np.linalg.norm(vector)), 1e-12))


def _wrap(angle: float) -> float:
    return float((angle + np.pi) % (2 * np.pi) - np.pi)
