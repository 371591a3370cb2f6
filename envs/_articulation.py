"""Drawers, doors and knobs as a demonstrator sees them: how they move, where to take hold."""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from envs._geometry import Points, body_points

Vector = NDArray[np.float64]

_HANDLE_DEPTH = 0.017  # m; what sticks out furthest is the handle's bar


class Joint:
    """A slide or hinge joint with the body that it moves, in metres, radians and the world frame.

    Args:
        model: `mujoco.MjModel`.
        data: `mujoco.MjData`.
        name: of the joint.
    """

    def __init__(self, model: Any, data: Any, name: str) -> None:
        self._model, self._data = model, data
        self._joint = int(model.joint(name).id)
        self._body = int(model.jnt_bodyid[self._joint])

    @property
    def slides(self) -> bool:
        """Whether it is a slide; else it is a hinge."""
        return bool(self._model.jnt_type[self._joint] == mujoco.mjtJoint.mjJNT_SLIDE)

    @property
    def value(self) -> float:
        """Present position."""
        return float(self._data.qpos[self._model.jnt_qposadr[self._joint]])

    @property
    def limits(self) -> tuple[float, float]:
        """Smallest and largest position."""
        low, high = self._model.jnt_range[self._joint]
        return float(low), float(high)

    @property
    def axis(self) -> Vector:
        """Direction of a slide or axis of a hinge, for growing positions, (3,)."""
        return np.array(self._data.xaxis[self._joint])

    @property
    def anchor(self) -> Vector:
        """A point of the axis, (3,)."""
        return np.array(self._data.xanchor[self._joint])

    def points(self) -> Points:
        """Surface of what moves, (N, 3)."""
        return body_points(self._model, self._data, self._body)

    def moved(self, point: Vector, by: float) -> Vector:
        """Where a point of the moving body goes if the position grows by `by`, (3,)."""
        if self.slides:
            return np.array(point + by * self.axis)
        arm = point - self.anchor
        along = self.axis * (arm @ self.axis)
        across = arm - along
        turned = np.cos(by) * across + np.sin(by) * np.cross(self.axis, across)
        return np.array(self.anchor + along + turned)


def handle(points: Points, outward: Vector) -> tuple[Vector, Vector]:
    """Middle and half sizes of the part of a body that sticks out furthest.

    Args:
        points: surface of the body, (N, 3).
        outward: horizontal unit vector, (3,).

    Returns:
        The middle (3,) in the frame of `points`, and half the extents (3,) along `outward`, along
        the horizontal direction across it, and along the vertical.
    """
    axes = np.stack([outward, np.cross([0.0, 0.0, 1.0], outward), [0.0, 0.0, 1.0]])
    local = points @ axes.T
    bar = local[local[:, 0] > local[:, 0].max() - _HANDLE_DEPTH]
    low, high = bar.min(axis=0), bar.max(axis=0)
    return axes.T @ ((low + high) / 2), (high - low) / 2
