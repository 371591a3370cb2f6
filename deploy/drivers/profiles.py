"""How a joint target becomes torques. Part of what an action means: data and checkpoints name it.

With velocity actions, "0.3 for a second" moves an arm as far as its controller lets it: between a
fifth and nine tenths of the nominal way, depending on law and gains.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from deploy.limits import Array


@dataclass(frozen=True, kw_only=True)
class ControllerProfile:
    """A control law and its gains.

    Attributes:
        name: As recorded in data sets and checkpoints.
        law: "hybrid" is `droid_torque`; "joint" has joint gains alone.
        joint_stiffness: Nm/rad.
        joint_damping: Nms/rad.
        cartesian_stiffness: N/m three times, Nm/rad three times; all zero for "joint".
        cartesian_damping: The same per second.
        collision_torque: Threshold of the robot's own contact reflex; Nm.
        collision_force: The same at the hand; N.
    """

    name: str
    law: str
    joint_stiffness: tuple[float, ...]
    joint_damping: tuple[float, ...]
    cartesian_stiffness: tuple[float, ...] = (0.0,) * 6
    cartesian_damping: tuple[float, ...] = (0.0,) * 6
    collision_torque: float = 40.0
    collision_force: float = 40.0


DROID = ControllerProfile(
    name="droid",
    law="hybrid",
    joint_stiffness=(40.0, 30.0, 50.0, 25.0, 35.0, 25.0, 10.0),
    joint_damping=(4.0, 6.0, 5.0, 5.0, 3.0, 2.0, 1.0),
    cartesian_stiffness=(400.0, 400.0, 400.0, 15.0, 15.0, 15.0),
    cartesian_damping=(37.0, 37.0, 37.0, 2.0, 2.0, 2.0),
)
"""The law and the gains under which DROID was recorded (its configuration for the FR3)."""

FRANKA_RS = ControllerProfile(
    name="franka-rs-joint",
    law="joint",
    joint_stiffness=(400.0, 400.0, 400.0, 400.0, 200.0, 150.0, 60.0),
    joint_damping=(40.0, 40.0, 40.0, 40.0, 20.0, 15.0, 6.0),
)
"""A joint impedance that follows targets more closely than DROID's; for position actions."""

CONTROLLER_PROFILES: Mapping[str, ControllerProfile] = MappingProxyType(
    {profile.name: profile for profile in (DROID, FRANKA_RS)}
)


def droid_torque(
    target: Array,
    q: Array,
    dq: Array,
    jacobian: Array,
    coriolis: Array,
    joint_stiffness: Array,
    joint_damping: Array,
    cartesian_stiffness: Array,
    cartesian_damping: Array,
) -> Array:
    """The hybrid impedance under which DROID was recorded, without gravity.

    ``tau = (J'KxJ + Kq)(target - q) - (J'KxdJ + Kqd) dq + coriolis`` (Polymetis,
    HybridJointImpedanceControl). The speed is damped against zero, not against the target's.

    Written so that numba compiles it as it stands.

    Args:
        target: (7,) joint target; rad.
        q: (7,) joint positions; rad.
        dq: (7,) joint speeds; rad/s.
        jacobian: (6, 7) of the flange, linear rows first.
        coriolis: (7,) Nm.
        joint_stiffness: (7,) Nm/rad.
        joint_damping: (7,) Nms/rad.
        cartesian_stiffness: (6,) N/m, Nm/rad.
        cartesian_damping: (6,) Ns/m, Nms/rad.

    Returns:
        (7,) Nm.
    """
    error = target - q
    pull = cartesian_stiffness * (jacobian @ error) - cartesian_damping * (jacobian @ dq)
    return jacobian.T @ pull + joint_stiffness * error - joint_damping * dq + coriolis
