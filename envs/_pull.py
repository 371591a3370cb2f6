"""Pulling a drawer open by its handle: the hand comes from the front, one finger below the bar."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from envs._articulation import handle
from envs._goals import Goal
from envs._motion import CLOSE, OPEN, Motion, frame, ramp
from envs._retreat import Retreat
from envs._scene import Scene
from envs._skill import GripWatch, Phase, ReleaseWatch

Vector = NDArray[np.float64]

_TILT = np.deg2rad(80.0)  # from pointing down: palm clear of the handle above and of the table
_STANDOFF = 0.09  # m in front of the handle where the hand lines up
_LINED_UP = (0.008, 0.12)  # m beside the line to the handle and rad of turn
_CLOSE_TOLERANCE = 0.010  # m
_LEAD = 0.03  # m that the hand leads the drawer by
_BEYOND = 0.012  # m that the drawer is pulled further than LIBERO calls open
_SLIPPED = 0.02  # m between hand and handle
_RELEASED_OPENING = 0.02  # m that the fingers must part
_UP = np.array([0.0, 0.0, 1.0])


class PullOpen:
    """Opens a drawer.

    Args:
        scene: the scene.
        motion: moves the hand.
        goal: `open`, of a drawer's region.

    Attributes:
        phase: of the last action.
        precision: distance to the handle while it is approached, else a small one, metres.
    """

    def __init__(self, scene: Scene, motion: Motion, goal: Goal) -> None:
        self._scene, self._motion, self._goal = scene, motion, goal
        self._joint = scene.joint(goal.item)
        low, high = self._joint.limits
        self._open_at = low if abs(low) > abs(high) else high
        self._outward = np.sign(self._open_at) * self._joint.axis
        self._retreat = Retreat(scene, motion)
        self._pointing = -self._outward * np.sin(_TILT) - _UP * np.cos(_TILT)
        closing = _UP * np.sin(_TILT) - self._outward * np.cos(_TILT)
        turns = [frame(side * closing, self._pointing) for side in (1.0, -1.0)]
        self._rotation = min(turns, key=lambda r: float(np.linalg.norm(motion.rotation_error(r))))
        self.phase = Phase.APPROACH
        self.precision = _STANDOFF

    @property
    def done(self) -> bool:
        """Whether the hand is back and upright."""
        return self.phase is Phase.RETREAT and self._retreat.done

    def act(self) -> Vector:
        """The action for the present state, (7,)."""
        bar, _ = handle(self._joint.points(), self._outward)
        self._advance(bar)
        if self.phase is Phase.APPROACH:
            return self._approach(bar)
        if self.phase is Phase.GRASP:
            return self._motion.straight(bar, self._rotation, CLOSE)
        if self.phase is Phase.MOVE:
            return self._pull(bar)
        if self.phase is Phase.RELEASE:
            return self._motion.straight(self._scene.eef_position(), self._rotation, OPEN)
        return self._retreat.act(OPEN)

    def _advance(self, bar: Vector) -> None:
        hand = self._scene.eef_position()
        if self.phase is Phase.APPROACH and np.linalg.norm(bar - hand) < _CLOSE_TOLERANCE:
            self.phase, self._grip = Phase.GRASP, GripWatch(self._scene)
        elif self.phase is Phase.GRASP:
            if self._grip.is_held():
                self.phase, self._offset = Phase.MOVE, hand - bar
                self._value = self._joint.value
            elif self._grip.is_empty:
                self.phase = Phase.APPROACH
        elif self.phase is Phase.MOVE:
            if self._scene.satisfied(self._goal) and self._remaining() < _BEYOND:
                self.phase = Phase.RELEASE
                self._release = ReleaseWatch(self._scene, _RELEASED_OPENING)
            elif np.linalg.norm(hand - bar - self._offset) > _SLIPPED:
                self.phase = Phase.APPROACH
        elif self.phase is Phase.RELEASE and self._release.is_free:
            self.phase = Phase.RETREAT
            self._retreat.begin(-self._pointing)

    def _remaining(self) -> float:
        """Metres to the end of the drawer's way."""
        return abs(self._open_at - self._joint.value)

    def _approach(self, bar: Vector) -> Vector:
        """In front of the handle and, once lined up, onto it."""
        offset = bar - self._scene.eef_position()
        beside = float(np.linalg.norm(offset - self._pointing * (offset @ self._pointing)))
        turn = float(np.linalg.norm(self._motion.rotation_error(self._rotation)))
        self.precision = float(np.linalg.norm(offset))
        near, aligned = _LINED_UP
        off = ramp((beside - near) / 0.05) + ramp((turn - aligned) / 0.3)
        target = bar - self._pointing * _STANDOFF * min(1.0, off)
        return self._motion.towards(target, self._rotation, OPEN)

    def _pull(self, bar: Vector) -> Vector:
        self.precision = 0.01
        lead = min(_LEAD, self._remaining() + 0.01)
        target = bar + self._offset + lead * self._outward
        speed = 0.3 + 0.4 * ramp(abs(self._joint.value - self._value) / 0.02)
        return self._motion.straight(target, self._rotation, CLOSE, speed=speed)
