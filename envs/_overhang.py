"""The way out from under something, for what is to be lifted."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from envs._geometry import Points

Vector = NDArray[np.float64]

_ABOVE = 0.01  # m above an object from which on something is above it, not beside it
_MARGIN = 0.02  # m to be kept from what is above
_FARTHEST, _STEP = 0.20, 0.01  # m
_DIRECTIONS = 24


def way_out(item: Points, obstacles: Points) -> Vector:
    """The shortest horizontal move after which nothing is above an object, (2,) metres.

    Zero if nothing is above it, or if nothing helps.

    Args:
        item: its surface, (N, 3) metres.
        obstacles: surface of everything else, (M, 3).
    """
    low, high = item[:, :2].min(axis=0), item[:, :2].max(axis=0)
    top = float(item[:, 2].max())
    above = obstacles[obstacles[:, 2] > top + _ABOVE][:, :2]
    if not _covers(above, low, high):
        return np.zeros(2)
    angles = np.linspace(0, 2 * np.pi, _DIRECTIONS, endpoint=False)
    directions = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    beside = obstacles[obstacles[:, 2] > float(item[:, 2].min()) + _ABOVE][:, :2]
    for distance in np.arange(_STEP, _FARTHEST, _STEP):
        for move in directions * distance:
            if not _covers(beside, low + move - _MARGIN, high + move + _MARGIN):
                return np.array(move)
    return np.zeros(2)


def _covers(points: Points, low: Vector, high: Vector) -> bool:
    return bool(((points > low) & (points < high)).all(axis=1).any())
