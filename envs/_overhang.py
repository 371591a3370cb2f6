"""What hangs over an object: the way out for what is lifted, the way in for what is let down."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from envs._geometry import Points

Vector = NDArray[np.float64]

_ABOVE = 0.01  # m above an object from which on something is above it, not beside it
_MARGIN = 0.02  # m to be kept from what is above
_FARTHEST, _STEP = 0.20, 0.01  # m
_DIRECTIONS = 24
_SNUG = 0.004  # m from what hangs over a drawer to what is let down into it


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


def way_in(item: Points, obstacles: Points, outward: Vector, edge: float) -> Vector:
    """The move after which an object can be let down into an open drawer, (2,) metres.

    Only as far as it takes to pass what hangs over the drawer's back, and not onto its front. Where
    there is too little room between the two it goes to the middle of what there is.

    Args:
        item: its surface where it would be let down without the move, (N, 3) metres.
        obstacles: surface of what is higher than the drawer's walls, (M, 3).
        outward: horizontal unit vector in which the drawer opens, (2,).
        edge: where the drawer's front is, metres along `outward`.
    """
    across = np.array([-outward[1], outward[0]])
    side, along = item[:, :2] @ across, item[:, :2] @ outward
    beside = obstacles[:, :2] @ across
    over = obstacles[(beside > side.min()) & (beside < side.max())][:, :2] @ outward
    back = float(over[over < edge].max(initial=-np.inf))
    least, most = back + _SNUG - float(along.min()), edge - float(along.max())
    if least <= 0:
        return np.zeros(2)
    return np.array(outward * (least if least <= most else (least - _SNUG + most) / 2))


def _covers(points: Points, low: Vector, high: Vector) -> bool:
    return bool(((points > low) & (points < high)).all(axis=1).any())
