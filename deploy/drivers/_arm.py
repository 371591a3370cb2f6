"""What a driver is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from deploy.drivers.profiles import ControllerProfile
from deploy.limits import Array


@dataclass(frozen=True, kw_only=True)
class ArmState:
    """What the arm reported last.

    Attributes:
        q: (7,) joint positions; rad.
        dq: (7,) joint speeds; rad/s.
        torque: (7,) measured joint torques; Nm.
        commanded_torque: (7,) what the controller asked for, without gravity; Nm.
        pose: 4x4 pose of the flange in the base frame.
        time: The robot's clock; s.
        success_rate: Share of the last 100 control cycles whose command came in time; 0 when no
            motion runs.
        mode: The robot's word: "idle", "move", "reflex", "user_stopped" ...
        errors: The robot's names for what is wrong.
    """

    q: Array
    dq: Array
    torque: Array
    commanded_torque: Array
    pose: Array
    time: float
    success_rate: float
    mode: str
    errors: tuple[str, ...] = ()


class ArmDriver(Protocol):
    """A connection to one arm.

    Every method raises `RobotDisconnectedError` when the link is lost, `ReflexError` when the robot
    stopped by itself, and `UserStopError` when somebody pressed the button.
    """

    profile: ControllerProfile
    """How targets become torques."""

    def read(self) -> ArmState:
        """The newest state; waits for one cycle at most."""

    def move_to(self, q: Array) -> None:
        """Make (7,) joint positions the target of the running motion; starts one if none runs.

        Returns at once. Without further calls the arm settles at the target and stays.
        """

    def halt(self, *, clear_errors: bool = False) -> None:
        """End the motion: the robot holds itself where it is.

        Args:
            clear_errors: Also acknowledge a reflex. A person must have looked.
        """

    def close(self) -> None:
        """End the motion and hang up; harmless if that has happened."""
