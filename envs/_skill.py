"""What the demonstrator's skills have in common."""

from __future__ import annotations

from enum import StrEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from envs._grasp import MAX_OPENING
from envs._scene import Scene

Vector = NDArray[np.float64]

EMPTY_OPENING = 0.003  # m; the fingers met
_STILL = 4e-4  # m by which the fingers still close in a step
_HELD_FORCE = 1.0  # N


class Phase(StrEnum):
    """What the demonstrator is doing."""

    APPROACH = "approach"
    GRASP = "grasp"
    CARRY = "carry"
    MOVE = "move"  # a drawer, a door, a knob
    RELEASE = "release"
    RETREAT = "retreat"


class Skill(Protocol):
    """Brings one goal about, action by action; every action depends on the state alone.

    Attributes:
        phase: of the last action.
        precision: distance in metres from where that phase ends: how much error it allows.
    """

    phase: Phase
    precision: float

    @property
    def done(self) -> bool:
        """Whether the skill has come to its end, whatever it achieved."""

    def act(self) -> Vector:
        """The action for the present state, (7,)."""


class GripWatch:
    """Tells when closing fingers hold something, or have met over nothing.

    Args:
        scene: where the fingers are.
    """

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._steps = 0
        self._before = np.inf

    def is_held(self) -> bool:
        """Whether the fingers stand still against something; call once per control step."""
        self._steps += 1
        opening = self._scene.opening()
        closing, self._before = self._before - opening, opening
        is_still = self._steps > 2 and closing < _STILL
        return bool(is_still and self._scene.grip_force() > _HELD_FORCE)

    @property
    def is_empty(self) -> bool:
        """Whether the fingers met."""
        return self._steps > 2 and self._scene.opening() < EMPTY_OPENING


class ReleaseWatch:
    """Tells when opening fingers have let go; made when they begin to open.

    Args:
        scene: where the fingers are.
        part: metres by which they must part.
    """

    def __init__(self, scene: Scene, part: float) -> None:
        self._scene = scene
        self._enough = min(scene.opening() + part, 0.9 * MAX_OPENING)

    @property
    def is_free(self) -> bool:
        """Whether they have."""
        return self._scene.opening() > self._enough
