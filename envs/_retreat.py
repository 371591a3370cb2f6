"""Leaving what was held or pushed: straight back, then up, until the hand points down again."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from envs._motion import Motion, pointing_down, ramp
from envs._scene import Scene

Vector = NDArray[np.float64]

_BACK, _UP = 0.08, 0.10  # m
_TURN_FROM = 0.03  # m of the way back after which the hand turns
_UPRIGHT = 0.2  # rad


class Retreat:
    """The last part of a skill whose hand does not point down.

    Args:
        scene: the scene.
        motion: moves the hand; its yaw at construction is the one returned to.
    """

    def __init__(self, scene: Scene, motion: Motion) -> None:
        self._scene, self._motion = scene, motion
        x, y, _ = scene.eef_rotation()[:, 0]
        self._upright = pointing_down(float(np.arctan2(y, x)))

    def begin(self, back: Vector) -> None:
        """Notes where it begins.

        Args:
            back: unit vector away from what was touched, (3,).
        """
        self._start, self._back = self._scene.eef_position(), back
        self._rotation = self._scene.eef_rotation()

    @property
    def done(self) -> bool:
        """Whether the hand is away and points down."""
        turn = float(np.linalg.norm(self._motion.rotation_error(self._upright)))
        return turn < _UPRIGHT and self._way() > _TURN_FROM

    def act(self, gripper: float) -> Vector:
        """The action for the present state, (7,)."""
        away = ramp((self._way() - _TURN_FROM) / (_BACK - _TURN_FROM))
        target = self._start + self._back * _BACK + np.array([0.0, 0.0, _UP * away])
        rotation = self._rotation if away == 0 else self._upright
        return self._motion.straight(target, rotation, gripper)

    def _way(self) -> float:
        return float((self._scene.eef_position() - self._start) @ self._back)
