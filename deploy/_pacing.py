"""When to ask for the next chunk, and whether to go on while it is fetched."""

from __future__ import annotations

import statistics
from collections import deque
from typing import Literal, get_args

from deploy._blending import Chunk, delay_fits, delay_in_steps

Mode = Literal["auto", "async", "sync"]
MODES: tuple[str, ...] = get_args(Mode)
_REMEMBERED = 5  # latencies; their median decides the mode, so that one spike does not
_SPARE_STEPS = 2  # below the limit before fetching is asynchronous again: no flapping


class Pacing:
    """Decides from measured latencies.

    Asynchronous: the next chunk is asked for so early that it arrives when `execute_steps` of the
    present one are executed. That needs 2 delay <= horizon (`delay_fits`); beyond it, "auto" falls
    back to the synchronous way: play, stand and ask, play.

    Args:
        mode: "auto", or one way whatever the latency.
        execute_steps: When so many actions of a chunk have elapsed, the next one takes over.
        control_hz: Steps per second.
        eager: Ask for the next chunk at once, for blending by temporal ensemble.
    """

    def __init__(
        self, *, mode: Mode, execute_steps: int, control_hz: float, eager: bool = False
    ) -> None:
        self.synchronous = mode == "sync"
        self._mode = mode
        self._execute_steps = execute_steps
        self._control_hz = control_hz
        self._eager = eager
        self._latencies: deque[float] = deque(maxlen=_REMEMBERED)

    @property
    def delay(self) -> int:
        """Steps until an answer is expected: the longest of the last few."""
        return delay_in_steps(max(self._latencies, default=0.0), self._control_hz)

    def answered(self, latency_s: float, horizon: int) -> str | None:
        """Note a latency.

        Returns:
            What the operator should know where the way of fetching changes because of it.
        """
        self._latencies.append(latency_s)
        if self._mode != "auto" or len(self._latencies) < 2:
            return None
        median = statistics.median(self._latencies)
        delay = delay_in_steps(median, self._control_hz)
        if not self.synchronous and not delay_fits(delay, horizon):
            self.synchronous = True
            return (
                f"latency {median:.2f} s is {delay} steps, more than half of the policy's "
                f"{horizon}: the arm stands while it is asked (synchronous)"
            )
        if self.synchronous and delay_fits(delay + _SPARE_STEPS, horizon):
            self.synchronous = False
            return f"latency {median:.2f} s is {delay} steps: chunks are fetched ahead again"
        return None

    def should_ask(self, step: int, newest: Chunk | None) -> bool:
        """Whether a new chunk is due at a step."""
        if newest is None:
            return True
        played = step - newest.start
        if self.synchronous:
            return played >= min(self._execute_steps, len(newest.actions))
        return self._eager or played >= self._execute_steps - self.delay

    def stands(self, *, waiting: bool) -> bool:
        """Whether the arm must stand because an observation is being answered."""
        return self.synchronous and waiting
