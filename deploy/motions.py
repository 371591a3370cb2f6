"""Planned motions: minimum-jerk paths between two rests, followed on the robot's own clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from deploy._workspace import Workspace
from deploy.drivers import ArmDriver, ArmState
from deploy.errors import RobotDisconnectedError, RobotError
from deploy.limits import Array, JointLimits

_PEAK_SPEED = 1.875  # of a minimum-jerk path of length 1 in time 1: 15 / 8
_PEAK_ACCELERATION = 10 / np.sqrt(3)
_SHARE = 0.3  # of the profile's speed and acceleration; nobody waits for a reset
_STEP_S = 0.01
_SETTLE_S = 1.0
_NEAR, _STILL = 0.01, 0.01  # rad and rad/s; then there is no need to wait longer
_SILENT_S = 2.0  # of wall time in which the robot's clock stands still


@dataclass(frozen=True, kw_only=True)
class MinimumJerk:
    """A straight joint path from rest to rest (Flash & Hogan 1985).

    Attributes:
        start: (7,) rad.
        end: (7,) rad.
        duration: s.
    """

    start: Array
    end: Array
    duration: float

    def at(self, t: float) -> Array:
        """(7,) joints at time `t` in s; before and after, the ends."""
        s = min(max(t / self.duration, 0.0), 1.0) if self.duration else 1.0
        return self.start + (self.end - self.start) * (s**3 * (10 - 15 * s + 6 * s**2))


def plan(start: Array, end: Array, limits: JointLimits, *, share: float = _SHARE) -> MinimumJerk:
    """The quickest minimum-jerk path within a share of the limits.

    >>> from deploy.limits import FULL_LIMITS
    >>> path = plan(np.zeros(7), 0.5 * np.eye(7)[0], FULL_LIMITS, share=1.0)
    >>> round(path.duration, 3)
    0.537
    """
    way = np.abs(end - start)
    by_speed = _PEAK_SPEED * way / (share * limits.speed)
    by_acceleration = np.sqrt(_PEAK_ACCELERATION * way / (share * limits.acceleration))
    return MinimumJerk(
        start=start, end=end, duration=float(np.maximum(by_speed, by_acceleration).max())
    )


def check_path(path: MinimumJerk, limits: JointLimits, workspace: Workspace) -> None:
    """Refuse a path that leaves the joints' range or the workspace.

    A path that begins outside may lead in, but not further out.

    Raises:
        RobotError: It does; says where.
    """
    if not limits.contain(path.end):
        raise RobotError(
            f"the move would end outside the joints' range: {path.end.round(3).tolist()} is not "
            f"within {limits.lower.round(3).tolist()} and {limits.upper.round(3).tolist()}"
        )
    points = np.stack([path.at(t) for t in np.linspace(0, path.duration, 60)])
    excess = workspace.worst(points)
    allowed = max(float(excess[0]), 0.0) + 1e-6
    if (worst := float(excess.max())) > allowed:
        raise RobotError(
            f"the straight joint path to the goal leaves the workspace by {worst:.3f} m: bring the "
            "arm nearer by hand, or move by way of a point above the table"
        )


def follow(
    arm: ArmDriver,
    path: MinimumJerk,
    *,
    tolerance: float = 0.1,
    on_step: Callable[[], None] = lambda: None,
) -> None:
    """Drive along a path and wait until the arm rests at its end.

    Time is the robot's: when its clock runs slower than ours, so does the motion.

    Args:
        arm: The driver.
        path: Where to.
        tolerance: Greatest distance from the end that counts as arrived; rad. Friction leaves some.
        on_step: Called at every step; may raise to give up.

    Raises:
        RobotError: The arm did not arrive, or a fault of the driver.
    """
    state = arm.read()
    begin, last, seen = state.time, -1.0, time.monotonic()
    while state.time - begin < path.duration + _SETTLE_S:
        on_step()
        if state.time - begin > path.duration and _rests_at(path.end, state):
            break
        if state.time != last:
            last, seen = state.time, time.monotonic()
            arm.move_to(path.at(state.time - begin))
        elif time.monotonic() - seen > _SILENT_S:
            raise RobotDisconnectedError(f"the robot's clock has stood still for {_SILENT_S:g} s")
        time.sleep(_STEP_S)
        state = arm.read()
    if (error := float(np.abs(state.q - path.end).max())) > tolerance:
        raise RobotError(
            f"the arm stopped {error:.3f} rad short of where it was sent: is it blocked?"
        )


def _rests_at(goal: Array, state: ArmState) -> bool:
    near = float(np.abs(state.q - goal).max()) < _NEAR
    return near and float(np.abs(state.dq).max()) < _STILL
