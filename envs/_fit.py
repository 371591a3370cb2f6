"""How to turn an object so that it goes into a narrow compartment."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]

_STEP = np.deg2rad(3.0)
_QUARTER = np.pi / 2
_SNUG = 0.004  # m of room to either side that is enough


@dataclass(frozen=True, kw_only=True)
class Opening:
    """A horizontal rectangle that something shall go through.

    Attributes:
        axes: its two directions as rows, (2, 2).
        half: half its size along them, (2,) metres.
    """

    axes: Vector
    half: Vector


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How to hold an object over an opening.

    Attributes:
        turn: radians about the vertical from its present yaw.
        shift: where its origin belongs from the middle of the opening, (2,) metres.
    """

    turn: float
    shift: Vector


def fit(footprint: Vector, opening: Opening) -> Fit:
    """The smallest turn with which an object goes through an opening.

    Args:
        footprint: its points from above relative to its origin, (N, 2) metres.
        opening: what it goes through.

    Returns:
        No turn and no shift if it fits as it is, its origin in the middle. Where nothing fits, the
        turn that fits best.
    """
    if _overflow(footprint, opening) <= 0:
        return Fit(turn=0.0, shift=np.zeros(2))
    turns = sorted(np.arange(-_QUARTER, _QUARTER, _STEP), key=abs)
    centred = [_centred(footprint @ _rotation(turn).T, opening) for turn in turns]
    excess = np.array([_overflow(points - middle, opening) for points, middle in centred])
    enough = np.flatnonzero(excess <= -_SNUG)
    best = int(enough[0]) if len(enough) else int(excess.argmin())
    return Fit(turn=float(turns[best]), shift=-centred[best][1])


def _centred(points: Vector, opening: Opening) -> tuple[Vector, Vector]:
    """The points, and the middle of their extent along the axes of the opening."""
    along = points @ opening.axes.T
    return points, (along.min(axis=0) + along.max(axis=0)) / 2 @ opening.axes


def _overflow(points: Vector, opening: Opening) -> float:
    """Metres by which points stick out, negative where there is room."""
    return float((np.abs(points @ opening.axes.T).max(axis=0) - opening.half).max())


def _rotation(angle: float) -> Vector:
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[cos, -sin], [sin, cos]])
