"""Scenes without a simulator: as they are laid, and with an arm that moves through them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from simulated import FakeClock

from deploy.interfaces import Array, Frame
from deploy.kinematics import GRASP_POINT, flange_pose
from deploy.limits import RESET_POSE
from deploy.safety import FULL, FilterState, filter_action
from deploy.sim.link import SceneState
from deploy.sim.tasks import Task, position_of, random_placements

PERIOD = 1 / 15
_FINGER_SPEED = 0.1  # m/s that the width changes by
_WIDE, _HELD = 0.08, 0.045  # m between the fingers
_AROUND, _DEEP = 0.012, 0.022  # m from an object's middle at which the fingers hold it


def scene(seed: int, time: float = 0.0) -> SceneState:
    """A scene as `random_placements` lays it, the arm at its start, the hand open."""
    placed = random_placements(seed)
    qpos = np.zeros(23)
    qpos[:7], qpos[7:9] = RESET_POSE, 0.04
    for start, name in ((9, "cube"), (16, "cucumber")):
        x, y, z, turn = placed[name]
        c, s = np.cos(turn / 2), np.sin(turn / 2)
        qpos[start : start + 3] = x, y, z
        lying = np.sqrt(0.5)
        upright, flat = (c, 0, 0, s), (c * lying, c * lying, s * lying, s * lying)
        qpos[start + 3 : start + 7] = upright if name == "cube" else flat
    targets = np.array([placed["bowl"][:3], placed["plate"][:3]])
    return SceneState(time=time, qpos=qpos, mocap_pos=targets, speed=np.zeros(7))


class KinematicArm:
    """An arm that realises a share of each action evenly over the control period, and its hand.

    What the fingers close around goes with the hand; what they let go of falls.

    Args:
        clock: The time.
        task: Whose object can be held.
        seed: Of the scene.
        realised: Share of an action; the demonstrator believes in 0.45.
    """

    def __init__(self, clock: FakeClock, task: Task, seed: int, realised: float) -> None:
        self._clock, self._task, self._realised = clock, task, realised
        self._scene = scene(seed)
        self._start = 9 if task.thing == "cube" else 16
        self._filter: FilterState | None = None
        self._speed, self._moving = np.zeros(7), 0.0
        self._gripper = 0.0
        self._held: Array | None = None  # from the hand to the object
        self._since = clock.now()
        self.closed_off: list[float] = []  # m from the object's middle at each closing

    def state(self) -> SceneState:
        """The scene of this moment."""
        self._advance()
        return self._scene

    def observe(self) -> Frame:
        return Frame(observation={})

    def act(self, action: Array | None) -> Mapping[str, Any]:
        q = self.state().qpos[:7]
        done = filter_action(
            action,
            state=self._filter or FilterState.at_rest(q),
            measured=q,
            measured_gripper=0.0,
            profile=FULL,
        )
        self._filter = done.state
        moves = 0.0 if action is None else self._realised
        self._speed, self._moving = moves * (done.state.target - q) / PERIOD, PERIOD
        if done.gripper is not None:
            self._gripper = done.gripper
        return {"rejected": done.rejected}

    def reset(self) -> None: ...

    def stop(self) -> None: ...

    def _advance(self) -> None:
        passed = self._clock.now() - self._since
        self._since = self._clock.now()
        qpos = self._scene.qpos.copy()
        qpos[:7] += self._speed * min(passed, self._moving)
        self._moving = max(0.0, self._moving - passed)
        self._scene = dataclasses.replace(self._scene, qpos=qpos, time=self._clock.now())
        self._work_the_fingers(qpos, passed)

    def _work_the_fingers(self, qpos: Array, passed: float) -> None:
        thing = qpos[self._start : self._start + 3]
        hand = flange_pose(qpos[:7])[:3, 3] - [0, 0, GRASP_POINT]
        before = width = float(qpos[7:9].sum())
        width += _FINGER_SPEED * passed * (1 if self._gripper < 0.5 else -1)
        if self._held is not None and self._gripper < 0.5:
            self._held = None
            target = position_of(self._task.target, self._scene)
            on_it = np.linalg.norm(thing[:2] - target[:2]) < self._task.radius
            thing[2] = 0.0285 if on_it else 0.0225
        if self._held is None and before >= _HELD > width:
            self.closed_off.append(float(np.linalg.norm(hand - thing)))
            off = thing - hand
            if np.linalg.norm(off[:2]) < _AROUND and abs(off[2]) < _DEEP:
                self._held = off
        if self._held is not None:
            width = max(width, _HELD)
            thing[:] = hand + self._held
        qpos[7:9] = min(max(width, 0.0), _WIDE) / 2
