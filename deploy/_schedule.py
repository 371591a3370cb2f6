"""Ticks at a fixed rate on a clock that never jumps; late ones are counted, missed ones skipped."""

from __future__ import annotations

import math
import time
from typing import Protocol

_LATE_SHARE = 0.25  # of a period: a tick that starts later than this counts as late


class Clock(Protocol):
    """Seconds since some moment, never going back."""

    def now(self) -> float:
        """Seconds."""

    def sleep_until(self, moment: float) -> None:
        """Return at `moment` or a little later; at once if it has passed."""


class MonotonicClock:
    """The machine's."""

    def now(self) -> float:
        """Seconds since some moment."""
        return time.monotonic()

    def sleep_until(self, moment: float) -> None:
        """Sleep; the operating system may wake us late."""
        while (left := moment - time.monotonic()) > 0:
            time.sleep(left)


class Schedule:
    """Tick k is due at start + k * period, whatever happened to the ticks before it.

    So a late tick does not delay the later ones, and a rate is held over any length of time. A tick
    whose moment has wholly passed is skipped: two commands at once would be a jump.

    Args:
        period_s: Between two ticks.
        clock: See `Clock`.
    """

    def __init__(self, period_s: float, clock: Clock) -> None:
        self.period_s = period_s
        self.times: list[float] = []
        self.late = 0
        self.skipped = 0
        self._clock = clock
        self._start: float | None = None
        self._next = 0

    def wait(self) -> float:
        """Sleep until the next tick is due.

        Returns:
            The present time. The first call returns at once and starts the schedule.
        """
        if self._start is None:
            self._start = self._clock.now()
        self._skip_missed(self._start)
        due = self._start + self._next * self.period_s
        self._clock.sleep_until(due)
        now = self._clock.now()
        self.late += now - due > _LATE_SHARE * self.period_s
        self._next += 1
        self.times.append(now)
        return now

    def _skip_missed(self, start: float) -> None:
        """Go to the first tick that is not a whole period late."""
        passed = math.floor((self._clock.now() - start) / self.period_s + 1e-9)
        if passed > self._next:
            self.skipped += passed - self._next
            self._next = passed
