"""A lapse in the middle of a demonstration, so that it shows how to recover from one."""

from __future__ import annotations

from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from envs._skill import Phase

Vector = NDArray[np.float64]

_SHOVE_AFTER, _SHOVE_STEPS = (8, 40), 5  # steps of free motion before it, and how long it lasts
_DROP_AFTER, _DROP_STEPS = (3, 7), 12  # early, a few centimetres up; until the fingers have opened
_FREE = (Phase.APPROACH, Phase.CARRY)


class Kind(StrEnum):
    """What happens."""

    SHOVE = "shove"  # the hand is pushed aside
    DROP = "drop"  # the fingers open while they carry


class Lapse:
    """Replaces the executed actions for a few steps, once in an attempt.

    Args:
        rng: draws what happens, when, and in which direction.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self.kind = Kind.SHOVE if rng.random() < 0.5 else Kind.DROP
        shoved = self.kind is Kind.SHOVE
        self._phases = _FREE if shoved else (Phase.CARRY,)
        self._after = int(rng.integers(*(_SHOVE_AFTER if shoved else _DROP_AFTER)))
        self._left = _SHOVE_STEPS if shoved else _DROP_STEPS
        bearing, rise = rng.uniform(0, 2 * np.pi), rng.uniform(0.0, 0.5)  # never down
        self._push = np.array([np.cos(bearing), np.sin(bearing), rise, 0.0, 0.0, 0.0])

    def __call__(self, action: Vector, phase: Phase) -> Vector:
        """The action to execute, (7,), in place of `action`.

        Args:
            action: what would be executed, (7,).
            phase: what the demonstrator is doing.
        """
        if self._after > 0:
            self._after -= phase in self._phases
            return action
        if self._left == 0:
            return action
        self._left -= 1
        if self.kind is Kind.SHOVE:
            return np.array([*self._push, action[6]])
        return np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0])
