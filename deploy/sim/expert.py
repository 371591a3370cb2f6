"""Scripted demonstrator of the three tasks: sees where objects are, acts as a policy would.

Its actions are DROID's: shares of the unit joint step, recomputed from the measured joints at every
control step. They are to be imitated from pictures: where the fingers go depends smoothly on what
can be seen, one grasp is chosen where several are as good, and there is no waiting without visible
progress.
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass

import numpy as np

from deploy.kinematics import GRASP_POINT, flange_pose, joints_towards
from deploy.limits import FULL_LIMITS, MAX_JOINT_DELTA, RESET_POSE, Array
from deploy.sim.link import SceneState
from deploy.sim.tasks import Task, position_of, rotation_of

_ABOVE = 0.12  # m over an object before and after the grasp
_RELEASE = {"bowl": 0.065, "plate": 0.035}  # m over the target when letting go
_REACH = 0.06  # m that one step may look ahead; further away means faster
_TURN = 0.3  # rad likewise
_NEAR, _EXACT = 0.02, 0.006  # m that count as there: on the way, and to grasp
_GRIP_S = 0.5  # robot time that the fingers get
_STEEP, _OVER = 4.0, 0.012  # m of height per m beside a place, and m beside it that count as over
_TURNED = 0.12  # rad off the grasp's direction at which the fingers may close
_TURN_REACH = 0.05  # m beside a place that a radian off the grasp's direction counts as
_CALM = 0.1  # m from a place within which disturbances fade
_REALISED = 0.45  # share of a velocity action that the arm realises under the default controller
_THERE = 0.015  # m from an exact place, foreseen to be reached, within which that is believed
_LIFTED = 0.05  # m below where it is lifted to at which an object may go sideways
_IN_HAND = 0.04  # m from the fingertips within which an object is still held
_OPEN, _CLOSED = 0.0, 1.0
_POINTS_DOWN = np.diag([1.0, -1.0, -1.0])
_HAND_TURN = np.pi / 4  # the fingers stand at this angle on the flange


@dataclass(frozen=True, kw_only=True)
class _Leg:
    """Go to a place and, there, do something with the fingers for a while."""

    name: str
    over: str  # the object or target above which the place is
    height: float  # of the grasp point above that
    gripper: float
    wait: float = 0.0  # s of robot time to stay
    near: float = _NEAR
    funnel: bool = False  # stay high until over the place


class PickPlaceExpert:
    """Solves one task once.

    Args:
        task: What to do.

    Attributes:
        done: Whether it has finished, well or not.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._legs = _legs(task)
        self._leg = 0
        self._since: float | None = None
        self._foreseen: list[tuple[int, float | None, bool]] = []
        self._foreseen_at = 0.0
        self._place: Array | None = None
        self._yaw: float | None = None
        self.done = False

    @property
    def phase(self) -> str:
        """What it is doing, in a word."""
        return "finished" if self.done else self._legs[self._leg].name

    @property
    def under_way(self) -> bool:
        """Whether it has done more than set out."""
        return self._leg > 0

    def act(self, scene: SceneState) -> Array:
        """The (8,) joint velocity action for this moment.

        Args:
            scene: The simulation's state.
        """
        leg = self._legs[min(self._leg, len(self._legs) - 1)]
        q = scene.qpos[:7]
        goal = self._goal(leg, scene)
        arrived = _distance(goal, q) < leg.near and (not leg.funnel or _off_turn(goal, q) < _TURNED)
        if arrived and not self.done:
            self._advance(leg, scene.time)
        # While it waits for the fingers it already commands them; on the way it does not yet.
        waits = leg.wait > 0 and self._since is None and not arrived
        if leg.funnel:
            goal[2, 3] += _funnel(goal, q)
        return np.append(_towards(goal, q), 1.0 - leg.gripper if waits else leg.gripper)

    def tolerance(self, scene: SceneState) -> float:
        """How much disturbance the present situation bears, from 0 to 1.

        Nothing while the fingers work; less and less on the last decimetre to where they will.

        Args:
            scene: The simulation's state.
        """
        leg = self._legs[min(self._leg, len(self._legs) - 1)]
        if self.done or leg.wait > 0:
            return 0.0
        distance = _distance(self._goal(leg, scene), scene.qpos[:7])
        return min(1.0, distance / _CALM) if leg.funnel else 1.0

    def plan(self, scene: SceneState, steps: int, *, period: float = 1 / 15) -> Array:
        """The (steps, 8) actions from this moment on, as far as they can be foreseen.

        The arm is expected to realise a fixed share of each action; call again with what became of
        it. Progress that was foreseen counts as far as the arm has made it; an object that the hand
        has lost is fetched again.

        Args:
            scene: The simulation's state.
            steps: How many.
            period: Time between two actions; s.
        """
        self._catch_up(scene, period)
        ahead, q = copy.copy(self), scene.qpos[:7].copy()
        self._foreseen, self._foreseen_at = [], scene.time
        chunk = np.empty((steps, 8))
        for step in range(steps):
            qpos = np.concatenate([q, scene.qpos[7:]])
            time = scene.time + step * period
            chunk[step] = ahead.act(dataclasses.replace(scene, qpos=qpos, time=time))
            q = q + _REALISED * MAX_JOINT_DELTA * chunk[step, :7]
            self._foreseen.append((ahead._leg, ahead._since, ahead.done))
        return chunk

    def _advance(self, leg: _Leg, now: float) -> None:
        """Count the time at a place; go to the next leg when it is enough."""
        if self._since is None:
            self._since = now
        if now - self._since >= leg.wait:
            self._leg, self._since = self._leg + 1, None
            self.done = self._leg == len(self._legs)

    def _catch_up(self, scene: SceneState, period: float) -> None:
        """Take over the progress that the plan before has foreseen for now, as far as it is made.

        Places are reached by looking; how long the fingers have had is known by the clock alone.
        """
        if self._lost(scene) and self._task.lies_there(scene):
            self._leg, self._since = _RELEASE_LEG, None  # it was let go of a little early
        elif self._lost(scene):
            self._leg, self._since, self._yaw, self._foreseen = 0, None, None, []
        step = round((scene.time - self._foreseen_at) / period) - 1
        if self.done or step < 0 or not self._foreseen:
            return
        leg, since, done = self._foreseen[min(step, len(self._foreseen) - 1)]
        while self._leg < leg and self._made(scene):
            self._leg, self._since = self._leg + 1, None
        if self._leg == leg:
            self._since, self.done = since, done

    def _made(self, scene: SceneState) -> bool:
        """Whether the present leg, which should be behind, is.

        Nobody goes back to a place that is only passed: the next leg can begin anywhere.
        """
        leg, q = self._legs[self._leg], scene.qpos[:7]
        if leg.funnel:
            return _distance(self._goal(leg, scene), q) < _THERE
        if self._leg == _LIFT_LEG:
            return bool(flange_pose(q)[2, 3] > self._goal(leg, scene)[2, 3] - _LIFTED)
        return True

    def _lost(self, scene: SceneState) -> bool:
        """Whether the hand goes to the target without the object."""
        if not _GRASP_LEG < self._leg < _RELEASE_LEG:
            return False
        fingertips = flange_pose(scene.qpos[:7]) @ np.array([0.0, 0.0, GRASP_POINT, 1.0])
        thing = position_of(self._task.thing, scene)
        return float(np.linalg.norm(fingertips[:3] - thing)) > _IN_HAND

    def _goal(self, leg: _Leg, scene: SceneState) -> Array:
        """The flange pose of a leg."""
        place, yaw = self._grasp(scene)
        if leg.over == self._task.target:
            place = position_of(self._task.target, scene)
        goal = np.eye(4)
        turn = np.array([[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]])
        goal[:2, :2] = turn
        goal[:3, :3] = goal[:3, :3] @ _POINTS_DOWN
        goal[:3, 3] = place
        goal[2, 3] += leg.height + GRASP_POINT
        return goal

    def _grasp(self, scene: SceneState) -> tuple[Array, float]:
        """Where the object is, and the flange's turn that puts the fingers across it.

        The turn is chosen once. The place is kept from the moment of the grasp on: what is in the
        hand moves with it.
        """
        thing = self._task.thing
        if self._yaw is None:
            self._yaw = _yaw(thing, scene)
        if self._place is None or self._leg < _GRASP_LEG:
            self._place = position_of(thing, scene).copy()
        return self._place, self._yaw


_GRASP_LEG, _LIFT_LEG, _RELEASE_LEG = 2, 3, 6  # indices in what follows


def _legs(task: Task) -> list[_Leg]:
    thing, target = task.thing, task.target
    release = _RELEASE[target]
    return [
        _Leg(name="above the object", over=thing, height=_ABOVE, gripper=_OPEN),
        _Leg(name="down", over=thing, height=0.0, gripper=_OPEN, near=_EXACT, funnel=True),
        _Leg(name="grasp", over=thing, height=0.0, gripper=_CLOSED, wait=_GRIP_S),
        _Leg(name="lift", over=thing, height=_ABOVE, gripper=_CLOSED),
        _Leg(name="above the target", over=target, height=_ABOVE, gripper=_CLOSED),
        _Leg(name="lower", over=target, height=release, gripper=_CLOSED, near=0.01, funnel=True),
        _Leg(name="release", over=target, height=release, gripper=_OPEN, wait=_GRIP_S),
        _Leg(name="leave", over=target, height=_ABOVE, gripper=_OPEN),
    ]


def _distance(goal: Array, q: Array) -> float:
    return float(np.linalg.norm(goal[:3, 3] - flange_pose(q)[:3, 3]))


def _off_turn(goal: Array, q: Array) -> float:
    """Angle about the vertical between where the flange is turned and where it shall be; rad."""
    between = goal[:2, :2].T @ flange_pose(q)[:2, :2]
    return abs(float(np.arctan2(between[1, 0], between[0, 0])))


def _funnel(goal: Array, q: Array) -> float:
    """Height to keep above a place while not yet over it, so that fingers come down around it."""
    beside = float(np.linalg.norm(goal[:2, 3] - flange_pose(q)[:2, 3]))
    off = max(beside, _TURN_REACH * _off_turn(goal, q)) - _OVER
    return min(_ABOVE, max(0.0, _STEEP * off))


def _yaw(thing: str, scene: SceneState) -> float:
    """Turn of the flange about the vertical that closes the fingers across an object.

    The fingers close along the flange's diagonal. A cube offers two directions, a cucumber one. Of
    the cube's the one is taken that an object square to the table would need, so that the turn is
    a smooth function of how the cube lies: the one nearest to the start posture's would jump where
    the cube lies square, and whoever imitates it would grasp it by its edges.
    """
    rotation = rotation_of(thing, scene)
    if thing == "cucumber":
        along = np.arctan2(rotation[1, 2], rotation[0, 2])
        return _folded(along + np.pi / 2 + _HAND_TURN, np.pi)
    return _HAND_TURN + _folded(np.arctan2(rotation[1, 0], rotation[0, 0]), np.pi / 2)


def _folded(angle: float, period: float) -> float:
    return float((angle + period / 2) % period - period / 2)


def _towards(goal: Array, q: Array) -> Array:
    """Joint velocity action towards a flange pose, straight in space and slower when near."""
    pose = flange_pose(q)
    step = goal[:3, 3] - pose[:3, 3]
    distance = float(np.linalg.norm(step))
    target = goal.copy()
    target[:3, 3] = pose[:3, 3] + step * min(1.0, _REACH / max(distance, 1e-9))
    bounds = (FULL_LIMITS.lower, FULL_LIMITS.upper)
    wanted = joints_towards(target, q, iterations=4, posture=RESET_POSE, bounds=bounds)
    action = np.clip(wanted - q, -_TURN, _TURN) / MAX_JOINT_DELTA
    return action / max(1.0, float(np.abs(action).max()))
