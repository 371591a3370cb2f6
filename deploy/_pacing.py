"""When to ask for the next chunk, and whether to go on while it is fetched."""

from __future__ import annotations

import statistics
from collections import deque
from typing import Literal, get_args

from deploy._blending import Chunk, delay_fits

Mode = Literal["auto", "async", "sync"]
MODES: tuple[str, ...] = get_args(Mode)
_REMEMBERED = 5  # delays; their median decides the mode, so that one spike does not
_SPARE_STEPS = 2  # below the limit before fetching is asynchronous again: no flapping


class Pacing:
    """Decides from measured delays.

    Asynchronous: the next chunk is asked for so early that it arrives when `execute_steps` of the
    present one have elapsed. That needs 2 delay <= horizon (`delay_fits`); beyond it, "auto" falls
    back to the synchronous way: play, stand and ask, play. It plays half of each chunk then, or the
    arm would stand most of the time.

    Args:
        mode: "auto", or one way whatever the delay.
        execute_steps: When so many actions of a chunk have elapsed, the next one takes over.
        eager: Ask for the next chunk at once, for blending by temporal ensemble.
    """

    def __init__(self, *, mode: Mode, execute_steps: int, eager: bool = False) -> None:
        self.synchronous = mode == "sync"
        self._mode = mode
        self._execute_steps = execute_steps
        self._eager = eager
        self._delays: deque[int] = deque(maxlen=_REMEMBERED)

    @property
    def delay(self) -> int:
        """Steps expected to pass between asking and using: the most of the last few times."""
        return max(self._delays, default=0)

    def answered(self, delay: int, horizon: int) -> str | None:
        """Note how many ticks passed between asking and being able to use the answer.

        Returns:
            What the operator should know where the way of fetching changes because of it.
        """
        self._delays.append(delay)
        if self._mode != "auto" or len(self._delays) < 2:
            return None
        usual = int(statistics.median_high(self._delays))
        if not self.synchronous and not delay_fits(usual, horizon):
            self.synchronous = True
            return (
                f"an answer takes {usual} steps, more than half of the policy's {horizon}: the arm "
                "stands while it is asked (synchronous)"
            )
        if self.synchronous and delay_fits(usual + _SPARE_STEPS, horizon):
            self.synchronous = False
            return f"an answer takes {usual} steps: chunks are fetched ahead again"
        return None

    def should_ask(self, step: int, newest: Chunk | None) -> bool:
        """Whether a new chunk is due before a step."""
        if newest is None:
            return True
        played = step - newest.start
        if self.synchronous:
            horizon = len(newest.actions)
            least = (horizon + 1) // 2 if self._mode == "auto" else 0
            return played >= min(max(self._execute_steps, least), horizon)
        return self._eager or played >= self._execute_steps - self.delay

    def stands(self, *, waiting: bool) -> bool:
        """Whether the arm must stand because an observation is being answered."""
        return self.synchronous and waiting
