"""Turning a knob with a vertical axis: grip its fin from above and turn the hand about the axis."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from envs._goals import Goal
from envs._grasp import plan_grasp
from envs._motion import CLOSE, OPEN, Motion, pointing_down, ramp, wrap
from envs._scene import Scene, highest_between
from envs._skill import GripWatch, Phase, ReleaseWatch

Vector = NDArray[np.float64]

_ON_AT = 0.75  # rad; LIBERO calls 0.5 on
_LEAD, _SLIP = 0.5, 0.2  # rad that the hand leads the knob by, that the fin has turned in the hand
_NEAR = 0.1  # rad from the end at which the knob is let go
_HOVER, _MARGIN = 0.06, 0.04  # m above the grip, above what is passed over
_RETREAT = 0.10  # m
_CLOSE_TOLERANCE = (0.008, 0.10)  # m, rad
_RELEASED_OPENING = 0.02  # m that the fingers must part


class TurnKnob:
    """Turns a knob on or off.

    Args:
        scene: the scene.
        motion: moves the hand.
        goal: `turnon` or `turnoff`.

    Attributes:
        phase: of the last action.
        precision: horizontal distance to the knob, a small one once it is gripped, metres.
    """

    def __init__(self, scene: Scene, motion: Motion, goal: Goal) -> None:
        self._scene, self._motion, self._goal = scene, motion, goal
        self._joint = joint = scene.joint(goal.item)
        low, high = joint.limits
        self._wanted = min(_ON_AT, high) if goal.predicate == "turnon" else low
        self._obstacles = scene.points_without(goal.item)
        self.phase = Phase.APPROACH
        self.precision = _HOVER
        self._plan()

    @property
    def done(self) -> bool:
        """Whether the hand is above the knob again."""
        above = self._scene.eef_position()[2] - self._grasp.position[2]
        return self.phase is Phase.RETREAT and bool(above > _RETREAT - 0.02)

    def act(self) -> Vector:
        """The action for the present state, (7,)."""
        self._advance()
        if self.phase is Phase.APPROACH:
            return self._approach()
        if self.phase is Phase.GRASP:
            return self._motion.towards(self._grasp.position, self._frame(0.0), CLOSE)
        if self.phase is Phase.MOVE:
            return self._turn()
        here = self._scene.eef_position()
        rise = _RETREAT if self.phase is Phase.RETREAT else 0.0
        target = np.array([*here[:2], self._grasp.position[2] + rise])
        return self._motion.towards(target, self._scene.eef_rotation(), OPEN)

    def _advance(self) -> None:
        if self.phase is Phase.APPROACH and self._is_at_grip():
            self.phase, self._grip = Phase.GRASP, GripWatch(self._scene)
        elif self.phase is Phase.GRASP:
            if self._grip.is_held():
                self.phase = Phase.MOVE
            elif self._grip.is_empty:
                self.phase = Phase.APPROACH
                self._plan()
        elif self.phase is Phase.MOVE:
            at_end = abs(self._wanted - self._joint.value) < _NEAR
            if self._scene.satisfied(self._goal) and at_end:
                self.phase = Phase.RELEASE
                self._release = ReleaseWatch(self._scene, _RELEASED_OPENING)
        elif self.phase is Phase.RELEASE and self._release.is_free:
            self.phase = Phase.RETREAT

    def _plan(self) -> None:
        points = self._joint.points()
        self._grasp = plan_grasp(points, self._obstacles, self._yaw())
        self._value = self._joint.value

    def _approach(self) -> Vector:
        position, grip = self._scene.eef_position(), self._grasp.position
        distance = float(np.linalg.norm(grip[:2] - position[:2]))
        self.precision = distance
        off = max(distance, abs(wrap(self._grasp.yaw - self._yaw())) * 0.1) - 0.006
        passed = highest_between(self._obstacles, position, grip, 0.06) + _MARGIN
        height = grip[2] + _HOVER * ramp(off / 0.02)
        height += max(0.0, passed - grip[2] - _HOVER) * ramp((distance - 0.04) / 0.04)
        return self._motion.towards(np.array([*grip[:2], height]), self._frame(0.0), OPEN)

    def _turn(self) -> Vector:
        """About the axis of the knob, a little ahead of it."""
        self.precision = 0.01
        missing = self._wanted - self._joint.value
        ahead = float(np.sign(missing)) * min(abs(missing) + _SLIP, _LEAD)
        by = self._joint.value - self._value + ahead
        target = self._joint.moved(self._grasp.position, by)
        return self._motion.towards(target, self._frame(by), CLOSE)

    def _frame(self, by: float) -> Vector:
        """The hand's frame when the knob has turned by an angle since the grip was planned."""
        return pointing_down(self._grasp.yaw + by * float(np.sign(self._joint.axis[2])))

    def _is_at_grip(self) -> bool:
        error = self._grasp.position - self._scene.eef_position()
        distance, turn = _CLOSE_TOLERANCE
        off = abs(wrap(self._grasp.yaw - self._yaw()))
        return bool(np.linalg.norm(error) < distance and off < turn)

    def _yaw(self) -> float:
        x, y, _ = self._scene.eef_rotation()[:, 0]
        return float(np.arctan2(y, x))
