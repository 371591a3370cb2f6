"""What a Franka Research 3 may do: positions, speeds that shrink near the stops, accelerations.

All joint arrays have shape (7,); rad, rad/s, rad/s^2. The manufacturer has published several tables
that disagree; an arm may run either, so the bounds here are the intersection of all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from deploy.errors import ContractMismatchError, RobotError

Array = NDArray[np.float64]

JOINTS = 7


def _row(*values: float) -> Array:
    row = np.array(values, dtype=np.float64)
    row.flags.writeable = False
    return row


@dataclass(frozen=True, kw_only=True)
class SpeedEnvelope:
    """Position-dependent speed bound of one edition of the manufacturer's table.

    ``|dq| <= -offset + sqrt(2 * deceleration * room)``, where room is the distance to the stop that
    the joint moves towards (libfranka, ``joint_velocity_limits.h``).

    Attributes:
        lower: Positions the formula counts from, downwards; rad.
        upper: The same upwards.
        offset: Speed kept in reserve; rad/s.
        deceleration: Of the stop the formula assumes; rad/s^2.
    """

    lower: Array
    upper: Array
    offset: Array
    deceleration: Array

    def bounds(self, q: Array) -> tuple[Array, Array]:
        """Least and greatest speed allowed at `q`; rad/s. Zero outside the range."""
        return -self._speed(q - self.lower), self._speed(self.upper - q)

    def _speed(self, room: Array) -> Array:
        speed = np.sqrt(2 * self.deceleration * np.maximum(room, 0)) - self.offset
        return np.asarray(np.maximum(speed, 0.0))


_DECELERATION = _row(6.0, 2.585, 3.5, 4.0, 17.0, 5.5, 17.0)

LIBFRANKA_ENVELOPE = SpeedEnvelope(
    lower=_row(-2.7501, -1.7918, -2.9065, -3.0481, -2.8101, 0.54092, -3.0196),
    upper=_row(2.7501, 1.7918, 2.9065, -0.1458, 2.8101, 4.5205, 3.0196),
    offset=_row(0.30, 0.20, 0.20, 0.30, 0.35, 0.35, 0.35),
    deceleration=_DECELERATION,
)
"""libfranka 0.21, and the URDF that the arm itself sends."""

DOCUMENTED_ENVELOPE = SpeedEnvelope(
    lower=_row(-2.9007, -1.8361, -2.9007, -3.0770, -2.8763, 0.4398, -3.0508),
    upper=_row(2.9007, 1.8361, 2.9007, -0.1169, 2.8763, 4.6216, 3.0508),
    offset=_row(0.66, 0.25, 0.20, 0.35, 0.58, 0.49, 0.46),
    deceleration=_DECELERATION,
)
"""The manufacturer's documentation of 2026 (frankarobotics/docs, table of the FR3)."""

ENVELOPES = (LIBFRANKA_ENVELOPE, DOCUMENTED_ENVELOPE)

_DATASHEET_LOWER = _row(-2.7437, -1.7837, -2.9007, -3.0421, -2.8065, 0.5445, -3.0159)
_DATASHEET_UPPER = _row(2.7437, 1.7837, 2.9007, -0.1518, 2.8065, 4.5169, 3.0159)
_MARGIN = 0.05  # rad; franka-rs refuses targets nearer than this to the URDF's range

MAX_SPEED = _row(2.62, 2.62, 2.62, 2.62, 5.26, 4.18, 5.26)
MAX_ACCELERATION = _row(*[10.0] * JOINTS)
MAX_TORQUE = _row(87.0, 87.0, 87.0, 87.0, 12.0, 12.0, 12.0)
RESET_POSE = _row(0.0, -np.pi / 5, 0.0, -4 * np.pi / 5, 0.0, 3 * np.pi / 5, 0.0)
"""Where DROID begins every episode."""


@dataclass(frozen=True, kw_only=True)
class JointLimits:
    """Bounds that a stream of joint targets keeps.

    Attributes:
        lower: Least position; rad.
        upper: Greatest position; rad.
        speed: Greatest speed anywhere; rad/s.
        acceleration: Greatest change of the speed; rad/s^2.
    """

    lower: Array
    upper: Array
    speed: Array
    acceleration: Array

    def speed_bounds(self, q: Array) -> tuple[Array, Array]:
        """Least and greatest speed (rad/s) at `q`, by every edition of the table."""
        low, high = -self.speed, self.speed
        for envelope in ENVELOPES:
            least, greatest = envelope.bounds(q)
            low, high = np.maximum(low, least), np.minimum(high, greatest)
        return low, high

    def contain(self, q: Array) -> bool:
        """Whether every joint stands within its range."""
        return bool(np.all((q >= self.lower) & (q <= self.upper)))


FULL_LIMITS = JointLimits(
    lower=np.maximum(_DATASHEET_LOWER + _MARGIN, LIBFRANKA_ENVELOPE.lower + _MARGIN),
    upper=np.minimum(_DATASHEET_UPPER - _MARGIN, LIBFRANKA_ENVELOPE.upper - _MARGIN),
    speed=MAX_SPEED,
    acceleration=MAX_ACCELERATION,
)
"""The intersection of all tables, 0.05 rad inside the stops."""

CAUTIOUS_LIMITS = JointLimits(
    lower=_row(-2.3476, -1.5454, -2.4937, -2.7714, -2.5100, 0.7773, -2.7045),
    upper=_row(2.3476, 1.5454, 2.4937, -0.4226, 2.5100, 4.2841, 2.7045),
    speed=_row(2.0, 1.0, 1.5, 1.25, 3.0, 1.5, 3.0),
    acceleration=_row(*[5.0] * JOINTS),
)
"""The manufacturer's rectangle in which the speed need not depend on the position."""


ActionSpace = Literal[
    "joint_velocity", "joint_position", "cartesian_velocity", "cartesian_position"
]
MAX_JOINT_DELTA = 0.2
"""rad per control step at a joint velocity action of 1 (DROID: relative_max_joint_delta)."""
MAX_POSITION_DELTA, MAX_ROTATION_DELTA = 0.075, 0.15
"""m and rad per control step at a Cartesian velocity action of 1 (DROID)."""
MAX_GRIPPER_DELTA = 0.25
"""Gripper travel per control step at a gripper velocity action of 1 (DROID)."""


def joints(values: object, what: str) -> Array:
    """`values` as seven finite numbers.

    Raises:
        ContractMismatchError: They are not.
    """
    row = np.asarray(values, dtype=np.float64)
    if row.shape != (JOINTS,) or not np.all(np.isfinite(row)):
        raise ContractMismatchError(f"expected {JOINTS} finite numbers as {what}, got {values!r}")
    return row


def joint_target(values: object) -> Array:
    """`values` as joint positions that the arm may be sent to: 0.05 rad inside the URDF's range.

    Not every driver's package looks; franka-rs refuses the same ones.

    Raises:
        ContractMismatchError: They are not seven finite numbers.
        RobotError: A joint would leave its range; says which.
    """
    target = joints(values, "a joint target")
    lower, upper = LIBFRANKA_ENVELOPE.lower + _MARGIN, LIBFRANKA_ENVELOPE.upper - _MARGIN
    for joint in np.flatnonzero((target < lower - 1e-9) | (target > upper + 1e-9)):
        raise RobotError(
            f"joint {joint + 1} shall go to {target[joint]:.3f} rad, outside its range of "
            f"{lower[joint]:.3f} to {upper[joint]:.3f}: nothing was sent"
        )
    return target
