"""franky's joint impedance tracker, with the Cartesian gains that make it DROID's law."""

from __future__ import annotations

import contextlib
from typing import Any, NoReturn

import numpy as np

from deploy.drivers import ArmState, ControllerProfile, Realtime, needed
from deploy.drivers._connection import not_connected
from deploy.drivers._libfranka import LibfrankaHandMotions, arm_state
from deploy.drivers.profiles import DROID
from deploy.errors import ReflexError, RobotDisconnectedError, RobotError, UserStopError
from deploy.limits import Array, joint_target

_PACKAGE = "franky-control>=2"


class FrankyDriver:
    """See `deploy.drivers.ArmDriver`.

    Args:
        host: Address of the control box.
        realtime: "enforce" or "ignore".
        profile: Law and gains.
    """

    def __init__(
        self, host: str, *, realtime: Realtime = "enforce", profile: ControllerProfile = DROID
    ) -> None:
        self._franky = franky = needed("franky", _PACKAGE)
        self.profile, self._host = profile, host
        self._tracker: Any = None
        chosen = franky.RealtimeConfig.Enforce
        if realtime == "ignore":
            chosen = franky.RealtimeConfig.Ignore
        try:
            self._robot: Any = franky.Robot(host, realtime_config=chosen)
            torque, force = profile.collision_torque, profile.collision_force
            self._robot.set_collision_behavior(torque, force)
        except Exception as error:  # franky's errors have no common class
            raise not_connected(host, error) from error

    def read(self) -> ArmState:
        """See `ArmDriver.read`."""
        if self._tracker is not None and not self._tracker.is_running:
            self._end_motion()
        with self._explained():
            return _state(self._robot.state)

    def move_to(self, q: Array) -> None:
        """See `ArmDriver.move_to`."""
        target = joint_target(q)
        if self._tracker is not None and not self._tracker.is_running:
            self._end_motion()
        with self._explained():
            if self._tracker is None:
                self._tracker = self._franky.JointImpedanceTracker(
                    self._robot,
                    stiffness=np.array(self.profile.joint_stiffness),
                    damping=np.array(self.profile.joint_damping),
                    cartesian_stiffness=np.array(self.profile.cartesian_stiffness),
                    cartesian_damping=np.array(self.profile.cartesian_damping),
                )
            self._tracker.set_target(target)

    def halt(self, *, clear_errors: bool = False) -> None:
        """See `ArmDriver.halt`."""
        try:
            self._end_motion()
        except ReflexError:
            if not clear_errors:
                raise
        if clear_errors:
            with self._explained():
                self._robot.recover_from_errors()

    def close(self) -> None:
        """See `ArmDriver.close`."""
        with contextlib.suppress(RobotError):
            self._end_motion()
        self._robot = None

    def open_hand(self) -> FrankyHand:
        """Connect to the Franka Hand of this arm."""
        with self._explained():
            return FrankyHand(self._franky.Gripper(self._host))

    def _end_motion(self) -> None:
        tracker, self._tracker = self._tracker, None
        if tracker is not None:
            with self._explained():
                tracker.stop()

    @contextlib.contextmanager
    def _explained(self) -> Any:
        try:
            yield
        except RobotError:
            raise
        except Exception as error:  # franky's errors have no common class
            self._explain(error)

    def _explain(self, error: Exception) -> NoReturn:
        text = str(error)
        if "user_stop" in text.lower() or "user stop" in text.lower():
            raise UserStopError(f"the robot at {self._host} was stopped by hand: {text}") from error
        if isinstance(error, self._franky.ControlException):
            names = tuple(w.strip('[]",. ') for w in text.split() if "_" in w)
            raise ReflexError(
                f"the robot at {self._host} stopped by itself: {text}. Look at it, remove the "
                "cause, then confirm.",
                names,
            ) from error
        raise RobotDisconnectedError(f"lost the robot at {self._host}: {text}") from error


def _state(state: Any) -> ArmState:
    return arm_state(
        state,
        mode=str(state.robot_mode).rpartition(".")[2].lower(),
        tool_pose=np.array(state.O_T_EE.matrix),
        flange_to_tool=np.array(state.F_T_EE.matrix),
    )


class FrankyHand(LibfrankaHandMotions):
    """See `deploy.grippers.HandConnection`."""

    def widths(self) -> tuple[float, float]:
        """See `HandConnection.widths`."""
        state = self._hand.state
        return float(state.width), float(state.max_width)
