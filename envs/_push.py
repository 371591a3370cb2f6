"""Pushing a drawer or a door shut with the closed gripper, fingers pointing forward and down."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from envs._articulation import handle
from envs._goals import Goal
from envs._motion import CLOSE, Motion, frame, ramp
from envs._retreat import Retreat
from envs._scene import Scene, highest_between
from envs._skill import Phase

Vector = NDArray[np.float64]

_TILT = np.deg2rad(45.0)  # from pointing down: palm clear of the handles above
_STANDOFF = 0.035  # m in front of the contact where the hand comes down: the forearm needs room too
_FINGER = 0.012  # m from the grip site to where a closed, tilted finger touches
_LEAD = 0.035  # m that the hand aims ahead of the contact
_LINED_UP = 0.02  # m
_MARGIN = 0.06  # m above what is passed over
_UP = np.array([0.0, 0.0, 1.0])


class PushShut:
    """Shuts a drawer or a door, and presses on if that was the last thing to do.

    LIBERO calls a drawer shut when it is at its stop, to the millimetre. Were the hand drawn back
    from there at once, who imitates it would draw back a little earlier, and leave it ajar.

    Args:
        scene: the scene.
        motion: moves the hand.
        goal: `close`, of a drawer's region or of an object with a door.

    Attributes:
        phase: of the last action.
        precision: distance to where the push begins, a small one afterwards, metres.
    """

    def __init__(self, scene: Scene, motion: Motion, goal: Goal) -> None:
        self._scene, self._motion, self._goal = scene, motion, goal
        self._goals = scene.goals()
        self._joint = joint = scene.joint(goal.item)
        low, high = joint.limits
        self._sign = 1.0 if abs(low) > abs(high) else -1.0  # of the change that shuts
        self._retreat = Retreat(scene, motion)
        self._obstacles = scene.points_without("")
        self._place = self._contact()
        self._value = joint.value
        self._rotation = self._frame()
        self.phase = Phase.APPROACH
        self.precision = _STANDOFF

    @property
    def done(self) -> bool:
        """Whether the hand is back and upright."""
        return self.phase is Phase.RETREAT and self._retreat.done

    def act(self) -> Vector:
        """The action for the present state, (7,)."""
        contact, inward = self._now()
        hand = self._scene.eef_position()
        start = contact - inward * _STANDOFF
        if self.phase is Phase.APPROACH and self._is_lined_up(hand - start):
            self.phase = Phase.MOVE
        elif self.phase is Phase.MOVE and self._scene.satisfied(self._goal) and self._more_to_do():
            self.phase = Phase.RETREAT
            self._retreat.begin(-inward)
        if self.phase is Phase.APPROACH:
            return self._approach(start)
        if self.phase is Phase.MOVE:
            return self._push(contact, inward)
        return self._retreat.act(CLOSE)

    def _approach(self, start: Vector) -> Vector:
        """Over the place in front of it and down."""
        offset = start - self._scene.eef_position()
        distance = float(np.linalg.norm(offset[:2]))
        self.precision = distance
        passed = highest_between(self._obstacles, self._scene.eef_position(), start, 0.08)
        rise = max(0.0, passed + _MARGIN - start[2]) * ramp((distance - 0.02) / 0.06)
        return self._motion.towards(start + rise * _UP, self._rotation, CLOSE)

    def _push(self, contact: Vector, inward: Vector) -> Vector:
        self.precision = 0.01
        return self._motion.straight(contact + inward * _LEAD, self._rotation, CLOSE, speed=0.7)

    def _more_to_do(self) -> bool:
        return not all(self._scene.satisfied(goal) for goal in self._goals)

    def _is_lined_up(self, offset: Vector) -> bool:
        turn = float(np.linalg.norm(self._motion.rotation_error(self._rotation)))
        return bool(np.linalg.norm(offset) < _LINED_UP and turn < 0.2)

    def _now(self) -> tuple[Vector, Vector]:
        """Where the grip site touches, and the horizontal direction that shuts, (3,) each."""
        moved = self._joint.value - self._value
        place = self._joint.moved(self._place, moved)
        inward = self._inward(place)
        return place - inward * _FINGER, inward

    def _inward(self, place: Vector) -> Vector:
        way = self._sign * (self._joint.moved(place, 1e-4) - place)
        way[2] = 0.0
        return np.array(way / np.linalg.norm(way))

    def _contact(self) -> Vector:
        """The middle of a handle, or of the edge of a door that is farthest from its hinge."""
        points = self._joint.points()
        if self._joint.slides:
            outward = -self._sign * self._joint.axis
            middle, half = handle(points, outward)
            return np.array(middle + outward * half[0])
        arm = points - self._joint.anchor
        radius = np.linalg.norm(arm - np.outer(arm @ self._joint.axis, self._joint.axis), axis=1)
        edge = points[radius > 0.85 * radius.max()]
        return np.array((edge.min(axis=0) + edge.max(axis=0)) / 2)

    def _frame(self) -> Vector:
        _, inward = self._now()
        pointing = inward * np.sin(_TILT) - _UP * np.cos(_TILT)
        across = np.cross(_UP, inward)
        frames = [frame(side * across, pointing) for side in (1.0, -1.0)]
        return min(frames, key=lambda r: float(np.linalg.norm(self._motion.rotation_error(r))))
