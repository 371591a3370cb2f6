"""What the drivers built on libfranka's own objects have in common."""

from __future__ import annotations

from typing import Any

import numpy as np

from deploy.drivers._arm import ArmState
from deploy.limits import Array


def flange_pose(tool_pose: Array, flange_to_tool: Array) -> Array:
    """The robot reports the pose of the tool that is set up in Desk; DROID's is the flange's."""
    return np.asarray(tool_pose @ np.linalg.inv(flange_to_tool))


def arm_state(state: Any, *, mode: str, tool_pose: Array, flange_to_tool: Array) -> ArmState:
    """libfranka's `RobotState`, as its Python bindings show it, in our terms.

    Args:
        state: The binding's object.
        mode: Its robot_mode in lower case, without prefix.
        tool_pose: 4x4, its O_T_EE.
        flange_to_tool: 4x4, its F_T_EE.
    """
    mode = {"userstopped": "user_stopped"}.get(mode, mode)
    faulty = mode in ("reflex", "user_stopped")
    return ArmState(
        q=np.array(state.q),
        dq=np.array(state.dq),
        torque=np.array(state.tau_J),
        commanded_torque=np.array(state.tau_J_d),
        pose=flange_pose(tool_pose, flange_to_tool),
        time=float(state.time.to_sec()),
        success_rate=float(state.control_command_success_rate),
        mode=mode,
        errors=(str(state.current_errors) or str(state.last_motion_errors),) if faulty else (),
    )


class LibfrankaHandMotions:
    """The two motions of `deploy.grippers.HandConnection`; a subclass reads the widths.

    Args:
        hand: With libfranka's `move(width, speed)` and
            `grasp(width, speed, force, epsilon_inner, epsilon_outer)`.
    """

    def __init__(self, hand: Any) -> None:
        self._hand = hand

    def widths(self) -> tuple[float, float]:
        """See `HandConnection.widths`."""
        raise NotImplementedError

    def move(self, width: float, speed: float) -> None:
        """See `HandConnection.move`."""
        self._hand.move(width, speed)

    def grasp(self, speed: float, force: float) -> None:
        """See `HandConnection.grasp`."""
        anything = self.widths()[1]
        self._hand.grasp(0.0, speed, force, anything, anything)
