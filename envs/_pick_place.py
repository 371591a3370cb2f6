"""Picking an object up and placing it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from envs._destination import also_in_the_way, resting_place
from envs._fit import Fit, fit
from envs._geometry import Points
from envs._goals import Goal
from envs._grasp import (
    PALM_ABOVE,
    PALM_HALF_LENGTH,
    PALM_HALF_WIDTH,
    TIP_BELOW,
    Grasp,
    plan_grasp,
)
from envs._motion import CLOSE, OPEN, Motion, about_vertical, pointing_down, ramp, wrap
from envs._overhang import way_out
from envs._scene import Scene, highest_between
from envs._skill import GripWatch, Phase, ReleaseWatch
from envs._spots import shared_spot
from envs._taste import NO_TASTE, Taste

Vector = NDArray[np.float64]

_CLOSE_TOLERANCE = (0.007, 0.08)  # vertical (m), yaw (rad); horizontal is the grasp's slack
_PLACE_TOLERANCE = (0.015, 0.010)  # horizontal, vertical (m)
_TOUCH_TOLERANCE = (0.02, 0.03)  # the same for an object that touches its support already
_LOST_DISTANCE = 0.04  # m; the object has left the hand
_MOVED_DISTANCE, _MOVED_TILT = 0.008, 0.08  # m and rad after which the grasp is planned again
_RELEASED_OPENING = 0.012  # m that the fingers must part
_RETREAT = 0.08  # m
_HOVER = 0.03  # m above the grasp, the least height before the gripper is over it
_FINGER_MARGIN = TIP_BELOW + 0.018  # m above what the open fingers must pass over
_BESIDE = 0.08  # m around the grasp in which everything must be passed over
_STRAIGHT_DOWN = (0.001, 0.06)  # m inside the grasp's slack, and radians of yaw
_MARGIN = 0.035  # m above obstacles on the way
_RELEASE_HEIGHT = 0.006  # m above the support
_OUT, _SKIM = 0.012, 0.012  # m: from the way out, above where it stood, for what is under something


class PickPlace:
    """Picks up a goal's object and places it; what slips away is picked up again.

    Args:
        scene: the scene.
        motion: moves the hand.
        goal: `in` or `on`.
        taste: which of several good grasps it prefers.

    Attributes:
        phase: of the last action.
        precision: horizontal distance to where the gripper closes or opens, metres.

    Raises:
        envs._grasp.GraspError: raised by `act` too, when the object cannot be grasped from above.
    """

    phase: Phase

    def __init__(self, scene: Scene, motion: Motion, goal: Goal, taste: Taste = NO_TASTE) -> None:
        self._scene, self._motion, self._goal, self._taste = scene, motion, goal, taste
        self._reach = motion.stretched_out()
        self.precision = 0.0
        self._grasp: Grasp | None = None
        self._start()

    @property
    def done(self) -> bool:
        """Whether the hand has left what it placed."""
        height = self._scene.eef_position()[2]
        return self.phase is Phase.RETREAT and bool(height > self._height - 0.02)

    def act(self) -> Vector:
        """The action for the present state, (7,)."""
        self._advance()
        return {
            Phase.APPROACH: self._approach,
            Phase.GRASP: self._close,
            Phase.CARRY: self._carry,
            Phase.RELEASE: self._open,
            Phase.RETREAT: self._retreat,
        }[self.phase]()

    # Phases -------------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Moves to another phase when the state says so."""
        if self.phase is Phase.APPROACH:
            self._follow_object()
            if self._at_grasp():
                self.phase, self._grip = Phase.GRASP, GripWatch(self._scene)
        elif self.phase is Phase.GRASP:
            if self._grip.is_held():
                self._begin_carry()
            elif self._grip.is_empty:
                self._start()
        elif self.phase is Phase.CARRY:
            if self._is_lost():
                self._start()
            elif self._at_place():
                self.phase = Phase.RELEASE
                self._release = ReleaseWatch(self._scene, _RELEASED_OPENING)
        elif self.phase is Phase.RELEASE and self._release.is_free:
            self.phase, self._height = Phase.RETREAT, self._scene.eef_position()[2] + _RETREAT

    def _start(self) -> None:
        """Plans the grasp."""
        self.phase = Phase.APPROACH
        self._fit = Fit(turn=0.0, shift=np.zeros(2))
        self._obstacles = self._scene.points_without(self._goal.item)
        self._plan()

    def _plan(self) -> None:
        item = self._goal.item
        self._planned_at = self._pose_of_item()
        points, origin = self._scene.points(item), self._scene.position(item)
        self._grasp = plan_grasp(
            points,
            also_in_the_way(self._scene, self._goal, points, origin, self._obstacles),
            self._yaw(),
            base=self._scene.base_position()[:2],
            carry=(self._scene.position(self._goal.target) - origin)[:2],
            taste=self._taste,
        )
        start, end = self._scene.eef_position(), self._grasp.position
        beside = highest_between(self._obstacles, end, end, _BESIDE)
        on_the_way = highest_between(self._obstacles, start, end, 0.05)
        top = float(points[:, 2].max())
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
        self.phase = Phase.CARRY
        self._grip_offset = scene.position(goal.item) - scene.eef_position()
        self._held_yaw = self._yaw()
        self._stood_at = scene.position(goal.item)[2]
        points, origin = scene.points(goal.item), scene.position(goal.item)
        self._exit = origin[:2] + way_out(points, self._obstacles)
        self._lifts = bool((self._exit == origin[:2]).all())
        self._spot = shared_spot(scene, goal)
        self._fit = self._how_it_fits(points, origin)
        self._place = self._place_position(points, origin)
        bottom = float(points[:, 2].min()) - scene.eef_position()[2]
        radius = float(np.linalg.norm(points[:, :2] - origin[:2], axis=1).max())
        highest = highest_between(self._obstacles, origin, self._place, radius + 0.01)
        clear = highest + _MARGIN - bottom + self._grip_offset[2]
        self._carry_height = max(clear, origin[2] + 0.05, self._place[2] + 0.03)

    def _place_position(self, points: Points, origin: Vector) -> Vector:
        """Where the origin of the held object shall be when the gripper opens, (3,)."""
        turned = points
        if self._fit.turn:
            turned = (points - origin) @ about_vertical(self._fit.turn).T + origin
        shift = self._fit.shift + self._spot
        place = resting_place(self._scene, self._goal, turned, origin, self._obstacles, shift)
        lowest_hand = self._lowest_hand(place[:2] - self._grip_offset_after()[:2])
        height = max(place[2] + _RELEASE_HEIGHT, lowest_hand + self._grip_offset[2])
        return np.array([place[0], place[1], height])

    def _how_it_fits(self, points: Points, origin: Vector) -> Fit:
        """Whether the object must be turned on its way to go in."""
        goal = self._goal
        if goal.predicate != "in" or not self._scene.is_region(goal.target):
            return Fit(turn=0.0, shift=np.zeros(2))
        return fit((points - origin)[:, :2], self._scene.opening_of(goal.target))

    def _grip_offset_after(self) -> Vector:
        """Object's origin from the grip site when it has been turned to fit, (3,)."""
        return np.array(about_vertical(self._fit.turn) @ self._grip_offset)

    def _lowest_hand(self, xy: Vector) -> float:
        """Lowest height of the grip site at which palm and fingers stay clear of obstacles."""
        yaw = self._yaw() + self._fit.turn
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
        error = self._planned.position - self._scene.eef_position()
        vertical, turn = _CLOSE_TOLERANCE
        return bool(
            np.linalg.norm(error[:2]) < self._planned.slack
            and abs(error[2]) < vertical
            and abs(self._planned.yaw - self._yaw()) < turn
        )

    def _is_lost(self) -> bool:
        offset = self._scene.position(self._goal.item) - self._scene.eef_position()
        expected = about_vertical(self._yaw() - self._held_yaw) @ self._grip_offset
        return bool(np.linalg.norm(offset - expected) > _LOST_DISTANCE)

    def _at_place(self) -> bool:
        """Where it shall be let go, or standing on something just above that.

        On its way into a drawer it may touch handles and walls: no support.
        """
        error = self._place - self._scene.position(self._goal.item)
        horizontal, vertical = _PLACE_TOLERANCE
        touched = self._scene.touches_something(self._goal.item)
        if touched and self._scene.drawer(self._goal.target) is None:
            horizontal, vertical = _TOUCH_TOLERANCE
        return bool(np.linalg.norm(error[:2]) < horizontal and abs(error[2]) < vertical)

    # Motions ------------------------------------------------------------------------------------

    def _approach(self) -> Vector:
        """Over the object and, once over it, down: the height follows the horizontal error."""
        position = self._scene.eef_position()
        grasp = self._planned
        distance = float(np.linalg.norm(grasp.position[:2] - position[:2]))
        inside, turned = _STRAIGHT_DOWN
        turn = abs(grasp.yaw - self._yaw()) - turned
        off = max(distance - (grasp.slack - inside), turn * 0.1)  # 0.1 rad is as bad as 1 cm
        height = (
            grasp.position[2]
            + (self._hover - grasp.position[2]) * ramp(off / 0.02)
            + (self._cruise - self._hover) * ramp((distance - 0.04) / (_BESIDE - 0.04))
        )
        self.precision = distance
        return self._reach.towards(np.array([*grasp.position[:2], height]), self._turned(), OPEN)

    def _close(self) -> Vector:
        return self._reach.towards(self._planned.position, self._turned(), CLOSE)

    def _carry(self) -> Vector:
        """Up, over the target, and down, with the object's origin as the point to control."""
        held = self._scene.position(self._goal.item)
        if not self._lifts:
            return self._leave(held)
        distance = off = float(np.linalg.norm(self._place[:2] - held[:2]))
        if self._fit.turn:
            off = max(distance, 0.1 * abs(self._turn_missing()))
        height = self._place[2] + (self._carry_height - self._place[2]) * ramp((off - 0.01) / 0.03)
        self.precision = distance
        target = np.array([*self._place[:2], height]) - held + self._scene.eef_position()
        moved = float(np.linalg.norm(self._scene.eef_position() - self._planned.position))
        return self._towards(target, CLOSE, speed=0.3 + 0.7 * ramp(moved / 0.03))

    def _leave(self, held: Vector) -> Vector:
        """Out from under what is above the object, before it is lifted."""
        way = self._exit - held[:2]
        self.precision = float(np.linalg.norm(way))
        self._lifts = self.precision < _OUT
        target = self._scene.eef_position() + np.array([*way, _SKIM - held[2] + self._stood_at])
        rotation = pointing_down(self._planned.yaw)
        return self._motion.straight(target, rotation, CLOSE, speed=0.5)

    def _open(self) -> Vector:
        return self._towards(self._scene.eef_position(), OPEN)

    def _retreat(self) -> Vector:
        self.precision = 0.03
        position = self._scene.eef_position()
        return self._towards(np.array([*position[:2], self._height]), OPEN)

    def _towards(self, target: Vector, gripper: float, speed: float = 1.0) -> Vector:
        return self._motion.towards(target, self._turned(), gripper, speed)

    def _turned(self) -> Vector:
        return pointing_down(self._planned.yaw + self._fit.turn)

    def _turn_missing(self) -> float:
        """Radians between the hand's yaw and the one in which the object fits."""
        return wrap(self._planned.yaw + self._fit.turn - self._yaw())

    @property
    def _planned(self) -> Grasp:
        assert self._grasp is not None
        return self._grasp

    def _yaw(self) -> float:
        x, y, _ = self._scene.eef_rotation()[:, 0]
        yaw = float(np.arctan2(y, x))
        grasp = self._grasp
        return yaw if grasp is None else grasp.yaw + wrap(yaw - grasp.yaw)
