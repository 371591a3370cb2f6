"""The simulated robot's clock for whoever paces a loop by it."""

from __future__ import annotations

import time

from deploy.sim.link import SceneLink

_POLL_S = 0.002
_SILENT_S = 5.0


class RobotClock:
    """Time as the simulated robot counts it; see `deploy.executor.Clock`.

    On a machine with other work the robot's time stretches. A loop that is paced by it keeps its
    rate in the robot's eyes, and what it does does not depend on the machine.

    Args:
        link: To the simulation.
    """

    def __init__(self, link: SceneLink) -> None:
        self._link = link

    def now(self) -> float:
        """Seconds since the simulation began."""
        return self._link.state().time

    def sleep_until(self, moment: float) -> None:
        """Wait for a moment; gives up when the robot's clock stands still."""
        last, seen = -1.0, time.monotonic()
        while (now := self.now()) < moment:
            if now != last:
                last, seen = now, time.monotonic()
            elif time.monotonic() - seen > _SILENT_S:
                return  # whoever talks to the robot next learns what has happened to it
            time.sleep(_POLL_S)
