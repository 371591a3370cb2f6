"""Why an arm cannot be reached, and what to do about it; the same for every driver."""

from __future__ import annotations

from deploy.errors import RobotDisconnectedError, RobotError

_VERSION_HELP = (
    "Robots of system version 5.9 and later speak protocol 10, which franka-rs and libfranka 0.18 "
    "and later speak; 5.7.2 and later speak 9, which needs an update in the robot's Desk."
)


def not_connected(host: str, error: Exception) -> RobotError:
    """Return the error to raise where a driver could not connect.

    Args:
        host: Address of the control box.
        error: The driver's own, of any class.
    """
    text = str(error)
    if "realtime" in text.lower():
        return RobotError(
            f"{text} A real arm needs a PREEMPT_RT kernel and the right to use it; for a simulated "
            "one say realtime='ignore'."
        )
    if "version" in text.lower():
        return RobotError(f"{host}: {text} {_VERSION_HELP}")
    return RobotDisconnectedError(
        f"no robot answers at {host} ({text}): is it switched on, unlocked, with FCI activated in "
        "Desk, and is this computer in its network?"
    )
