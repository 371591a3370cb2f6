"""What an executor drives, and who may look on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from deploy.states import State

Array = NDArray[np.float64]

SUCCESS_RATE = "success_rate"
"""Key of an action's info: share of the last 100 control cycles that were on time."""
INTERVENTIONS = "interventions"
"""Key of an action's info: names of what the safety filter changed."""


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """What the cameras saw.

    Attributes:
        views: Key of the policy's request -> (H, W, 3) uint8 RGB.
        age_s: Age of the oldest of them.
    """

    views: Mapping[str, NDArray[np.uint8]]
    age_s: float


@dataclass(frozen=True, kw_only=True)
class Frame:
    """What the robot knows of itself at a moment, and how to get the pictures of that moment.

    Attributes:
        observation: Keys and units of the policy's request, without pictures and prompt.
        pictures: May take a while, so it is called in another thread than the control loop's, and
            must not touch the arm; raises `CameraError`. None if there are no cameras.
    """

    observation: Mapping[str, Any]
    pictures: Callable[[], Pictures] | None = None


class Robot(Protocol):
    """What an executor drives. Its errors are the `RobotError`s of `deploy.errors`."""

    def observe(self) -> Frame:
        """Return the state of this moment; at once."""

    def act(self, action: Array | None) -> Mapping[str, Any]:
        """Execute one action (dim,), or stand where None; returns the action's info."""

    def reset(self) -> None:
        """Move to the start by a planned motion; clears a reflex that was confirmed."""

    def stop(self) -> None:
        """Come to rest and hold."""


@dataclass(frozen=True, kw_only=True)
class Tick:
    """One control tick.

    Attributes:
        time_s: Since the episode began.
        step: Actions executed before this tick.
        state: RUNNING or HOLD.
        action: (dim,) what was handed to the robot; None: it stood.
        info: What the robot answered.
        frame: What was observed in this tick; None if nothing was asked.
        latency_s: Of the last chunk; None before the first.
    """

    time_s: float
    step: int
    state: State
    action: Array | None
    info: Mapping[str, Any]
    frame: Frame | None
    latency_s: float | None


class Watcher(Protocol):
    """Somebody who is told what happens, in the control loop: must return at once."""

    def on_tick(self, tick: Tick) -> None:
        """After every control tick."""

    def on_note(self, time_s: float, text: str) -> None:
        """Something the operator should know."""

    def on_pictures(self, time_s: float, pictures: Pictures) -> None:
        """What goes to the policy; called in the thread that fetches, not in the control loop."""
