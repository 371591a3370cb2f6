"""What can go wrong between a policy and an arm, as classes that name who is to blame."""

from __future__ import annotations


class DeployError(RuntimeError):
    """Anything of `deploy` that a person can mend; the message says how."""


class ProtocolError(DeployError):
    """Bytes or values on the wire that are not what the protocol says."""


class PolicyServerError(DeployError):
    """The policy server answered with an error; holds its text."""


class ServerBusyError(PolicyServerError):
    """The policy server has too many requests or clients; asking again later may help."""


class PolicyConnectionError(DeployError):
    """The policy server cannot be reached, or went away."""


class AccessDeniedError(PolicyConnectionError):
    """The policy server does not accept this API key."""


class DeadlineError(PolicyConnectionError):
    """The policy server did not answer in time; the connection has been given up."""


class ChunkError(DeployError):
    """A chunk of actions that must not reach a robot: not finite, too large, of a wrong shape."""


class ContractMismatchError(DeployError):
    """Policy and robot do not mean the same by an action or an observation."""


class StateError(DeployError):
    """Something was asked of the executor that its state does not allow."""


class RobotError(DeployError):
    """The robot cannot do, or does no longer do, what it was told."""


class RobotDisconnectedError(RobotError):
    """The link to the robot is lost."""


class ReflexError(RobotError):
    """The robot stopped by itself; `names` are the controller's names for why.

    Args:
        message: What happened and what to do.
        names: For example `("joint_velocity_violation",)`.
    """

    def __init__(self, message: str, names: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.names = names


class UserStopError(RobotError):
    """Somebody pressed the robot's stop button."""


class CameraError(RobotError):
    """A camera gives no picture, or an old one."""
