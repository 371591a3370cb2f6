"""The states of an executor, and which follows which."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from deploy.errors import StateError


class State(Enum):
    """What the executor is doing."""

    DISCONNECTED = "disconnected"
    """No link to the robot."""
    IDLE = "idle"
    """Linked; the arm stands."""
    RESETTING = "resetting"
    """A planned move to the start."""
    READY = "ready"
    """At the start."""
    RUNNING = "running"
    """Actions of the policy are executed."""
    HOLD = "hold"
    """An episode runs, but there is no action that may be executed: the arm stands."""
    STOPPING = "stopping"
    """Coming to rest."""
    REFLEX = "reflex"
    """The robot stopped by itself. A person must look and confirm."""
    ESTOP = "estop"
    """A person stopped the robot. A person must release it and confirm."""


_AFTER = {
    State.DISCONNECTED: {State.IDLE},
    State.IDLE: {State.RESETTING, State.STOPPING},
    State.RESETTING: {State.READY, State.STOPPING},
    State.READY: {State.RUNNING, State.RESETTING, State.STOPPING},
    State.RUNNING: {State.HOLD, State.STOPPING},
    State.HOLD: {State.RUNNING, State.STOPPING},
    State.STOPPING: {State.IDLE},
    State.REFLEX: set(),  # only by `confirm`
    State.ESTOP: set(),
}
_FAULTS = {State.REFLEX, State.ESTOP}


class StateMachine:
    """Holds the present state.

    Args:
        max_recoveries: How often `confirm` leads out of a fault before the program must be started
            anew: a robot that reflexes again and again needs a person, not a loop.
        told: Called with the former and the new state after each change.
    """

    def __init__(
        self, *, max_recoveries: int = 1, told: Callable[[State, State], None] | None = None
    ) -> None:
        self.state = State.DISCONNECTED
        self._recoveries_left = max_recoveries
        self._told = told

    def to(self, new: State) -> None:
        """Go to another state; to the present one is nothing.

        Faults and a lost link may come from anywhere.

        Raises:
            StateError: `new` does not follow the present state.
        """
        if new is self.state:
            return
        anytime = new in _FAULTS or (new is State.DISCONNECTED and self.state not in _FAULTS)
        if not anytime and new not in _AFTER[self.state]:
            raise StateError(self._refusal(new))
        self._set(new)

    def confirm(self) -> None:
        """A person has looked at the robot and wants to go on: from a fault to IDLE.

        Raises:
            StateError: There is no fault, or it happened too often.
        """
        if self.state not in _FAULTS:
            raise StateError(f"There is nothing to confirm in state {self.state.value}.")
        if self._recoveries_left == 0:
            raise StateError(
                f"The robot is in state {self.state.value} again after it was recovered: find the "
                "cause, then start this program anew."
            )
        self._recoveries_left -= 1
        self._set(State.IDLE)

    def _set(self, new: State) -> None:
        old, self.state = self.state, new
        if self._told is not None:
            self._told(old, new)

    def _refusal(self, new: State) -> str:
        if self.state in _FAULTS:
            return (
                f"The robot is in state {self.state.value}: somebody must look at it and confirm, "
                f"before it can be {new.value}."
            )
        allowed = ", ".join(sorted(s.value for s in _AFTER[self.state]))
        return f"From {self.state.value} the executor can go to {allowed}, not to {new.value}."
