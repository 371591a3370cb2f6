"""Sliding something flat and round over the table, pushed from behind by the two open fingers.

Two contacts, to the left and the right of the way, keep it between them; one would let it slip off.
The hand leans forward over what it pushes, so that it needs little room behind. It goes first along
the axis that leads past what else stands on the table, and faces a little aside from what its palm
would sweep along.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from envs._goals import Goal
from envs._grasp import MAX_OPENING, PALM_HALF_LENGTH, TIP_BELOW
from envs._motion import OPEN, Motion, about_vertical, frame, ramp
from envs._scene import Scene, highest_between, nearest_between
from envs._skill import Phase

Vector = NDArray[np.float64]

_TILT = np.deg2rad(30.0)
_FINGER = 0.009  # m, half the width of a finger
_BEHIND = 0.010  # m between fingers and object where they come down
_LIFT = 0.004  # m of the finger tips above the table
_HOVER, _MARGIN = 0.06, 0.04  # m
_LINED_UP = (0.010, 0.008, 0.12)  # m beside, m above, rad
_TURNED = 0.3  # rad; before, the open fingers reach over what stands beside the way
_ARRIVED = 0.012  # m
_LOST = 0.03  # m that the object may be away from the fingers
_LEAD, _SPEED = 0.03, 0.6
_ROOM = 0.05  # m to either side of the hand's middle that it takes in the direction of the push
_CLEAR = (0.01, 0.02)  # m that the fingers are drawn back before they rise, and when at full height
_TURNS = np.deg2rad([0.0, 20.0, -20.0])  # of the hand about the vertical; both fingers still push
_PALM_ABOVE = 0.015  # m above the grip site, from where on the tilted palm is in the way of things
_UP = np.array([0.0, 0.0, 1.0])


class SlideOnto:
    """Slides a flat, round object to where it shall be: along one axis, then along the other.

    Args:
        scene: the scene.
        motion: moves the hand.
        goal: `on`, with a region as its target.

    Attributes:
        phase: of the last action.
        precision: distance to where the fingers come down, or that the object has to go, metres.
    """

    def __init__(self, scene: Scene, motion: Motion, goal: Goal) -> None:
        self._scene, self._motion, self._goal = scene, motion, goal
        points = scene.points(goal.item)
        self._radius = radius = float(np.ptp(points[:, :2], axis=0).min()) / 2
        self._reach = float(np.sqrt(max(radius**2 - (MAX_OPENING / 2) ** 2, 0.0))) + _FINGER
        self._height = float(points[:, 2].min()) + TIP_BELOW + _LIFT
        self._obstacles = scene.points_without(goal.item)
        first_x: list[Vector] = list(np.eye(2))
        self._axes = min((first_x, first_x[::-1]), key=self._crowd)
        self.phase = Phase.APPROACH
        self.precision = _HOVER
        self._aim()

    @property
    def done(self) -> bool:
        """Whether the hand is above the object again, which is where it shall be."""
        arrived = np.abs(self._missing()).max() < _ARRIVED
        return self.phase is Phase.RETREAT and self._is_up() and bool(arrived)

    def act(self) -> Vector:
        """The action for the present state, (7,)."""
        hand = self._scene.eef_position()
        behind = self._scene.position(self._goal.item)[:2] - self._reach * self._facing
        self._advance(hand, behind)
        if self.phase is Phase.APPROACH:
            return self._approach(hand, behind - _BEHIND * self._facing)
        if self.phase is Phase.MOVE:
            left = float(self._missing() @ self._way)
            self.precision = min(0.01, max(left, 0.0))
            target = np.array([*(behind + min(_LEAD, left + 0.01) * self._way), self._height])
            return self._motion.straight(target, self._rotation, OPEN, speed=_SPEED)
        return self._rise(hand, behind)

    def _advance(self, hand: Vector, behind: Vector) -> None:
        off = float(np.linalg.norm(hand[:2] - behind))
        if self.phase is Phase.APPROACH:
            beside, above, turned = _LINED_UP
            turn = float(np.linalg.norm(self._motion.rotation_error(self._rotation)))
            near = abs(off - _BEHIND) < beside and hand[2] < self._height + above
            if near and turn < turned:
                self.phase = Phase.MOVE
        elif self.phase is Phase.MOVE:
            if self._missing() @ self._way < _ARRIVED or off > _LOST:
                self.phase = Phase.RETREAT
        elif self._is_up():
            self.phase = Phase.APPROACH
            self._aim()

    def _aim(self) -> None:
        """The axis along which it must still go."""
        missing = self._missing()
        axis = next((a for a in self._axes if abs(missing @ a) > _ARRIVED), self._axes[-1])
        self._way = axis * np.sign(missing @ axis)
        place = self._scene.position(self._goal.item)[:2]
        self._facing = self._leg(place, axis * (missing @ axis))[1]
        facing = np.array([*self._facing, 0.0])
        pointing = -_UP * np.cos(_TILT) - facing * np.sin(_TILT)
        across = np.cross(_UP, facing)
        frames = [frame(side * across, pointing) for side in (1.0, -1.0)]
        self._rotation = min(
            frames, key=lambda r: float(np.linalg.norm(self._motion.rotation_error(r)))
        )

    def _crowd(self, axes: Sequence[Vector]) -> float:
        """Metres by which what else there is reaches into the way of object and hand.

        Args:
            axes: in the order in which the object goes along them, (2,) each.
        """
        place, missing = self._scene.position(self._goal.item)[:2], self._missing()
        crowd = 0.0
        for axis in axes:
            leg = axis * (missing @ axis)
            crowd += max(0.0, self._radius - nearest_between(self._obstacles, place, place + leg))
            crowd += self._leg(place, leg)[0]
            place = place + leg
        return crowd

    def _leg(self, place: Vector, leg: Vector) -> tuple[float, Vector]:
        """How much is in the way of the hand that pushes along a leg, and where it best faces.

        A hand that faces a little to one side reaches less far to the other.
        """
        length = float(np.linalg.norm(leg))
        way = leg / max(length, 1e-9)
        palm_high = self._obstacles[:, 2] > self._height + _PALM_ABOVE
        choices = []
        for turn in _TURNS:
            facing = about_vertical(turn)[:2, :2] @ way
            offset = self._obstacles[:, :2] - place + self._reach * facing
            along, across = offset @ way, np.abs(offset @ np.array([-way[1], way[0]]))
            beside = PALM_HALF_LENGTH * float(np.cos(turn)) - across
            comes_down = np.minimum(_ROOM - np.abs(along + _BEHIND), beside).max(initial=0.0)
            passed = (along > 0) & (along < length + _ROOM) & palm_high
            swept = beside[passed].max(initial=0.0)
            choices.append((float(comes_down + swept), facing))
        return min(choices, key=lambda choice: choice[0])

    def _missing(self) -> Vector:
        scene, goal = self._scene, self._goal
        return np.array((scene.position(goal.target) - scene.position(goal.item))[:2])

    def _is_up(self) -> bool:
        return bool(self._scene.eef_position()[2] > self._height + _HOVER)

    def _rise(self, hand: Vector, behind: Vector) -> Vector:
        """Back and then up: the rim of a plate lies on the finger tips."""
        start, end = _CLEAR
        clear = ramp((float((behind - hand[:2]) @ self._facing) - start) / (end - start))
        back = hand[:2] - (1 - clear) * (_BEHIND + end) * self._facing
        target = np.array([*back, self._height + (_HOVER + 0.03) * clear])
        return self._motion.straight(target, self._rotation, OPEN)

    def _approach(self, hand: Vector, place: Vector) -> Vector:
        distance = float(np.linalg.norm(place - hand[:2]))
        turn = float(np.linalg.norm(self._motion.rotation_error(self._rotation)))
        self.precision = distance
        passed = highest_between(self._obstacles, hand, place, 0.06) + _MARGIN
        off = max(distance - 0.006, 0.1 * (turn - 0.08))
        height = self._height + _HOVER * ramp(off / 0.02)
        above = max(ramp((distance - 0.03) / 0.05), ramp((turn - _TURNED) / 0.3))
        height += max(0.0, passed - self._height - _HOVER) * above
        return self._motion.towards(np.array([*place, height]), self._rotation, OPEN)
