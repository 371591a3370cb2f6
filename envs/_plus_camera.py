"""The moved third-person camera of LIBERO-Plus."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from envs._plus_names import CameraView

Pose = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Position (m) and quaternion (w, x, y, z) in the world frame."""

PIVOT = np.array([0.0, 0.0, 0.8])
_Y, _Z = np.array([0.0, 1.0, 0.0]), np.array([0.0, 0.0, 1.0])
_DECIMALS = 4  # the benchmark rounds after each step, so that its poses can be met exactly


def moved_camera(pose: Pose, view: CameraView) -> Pose:
    """Return the pose of the camera for a variant.

    The camera is lifted about the horizontal axis through the pivot, led around the vertical axis,
    moved away from the pivot, and turned where it stands, in this order.

    Args:
        pose: where the scene has it.
        view: how far to move it.
    """
    position, rotation = pose
    if view.elevation_deg:
        lift = _turn(_Y, -view.elevation_deg)
        position = np.round(_rotate(lift, position - PIVOT) + PIVOT, _DECIMALS)
        rotation = np.round(_compose(lift, rotation), _DECIMALS)
    around = _turn(_Z, view.orbit_deg)
    position = np.round(_rotate(around, position), _DECIMALS)
    rotation = np.round(_compose(around, rotation), _DECIMALS)
    if view.distance != 1.0:
        position = np.round(PIVOT + (position - PIVOT) * view.distance, _DECIMALS)
    for axis, degrees in ((_Z, view.yaw_deg), (_Y, -view.pitch_deg)):
        if degrees:
            rotation = np.round(_compose(_turn(axis, degrees), rotation), _DECIMALS)
    return position, rotation / np.linalg.norm(rotation)


def _turn(axis: NDArray[np.float64], degrees: float) -> NDArray[np.float64]:
    half = np.radians(degrees) / 2
    return np.concatenate([[np.cos(half)], np.sin(half) * axis])


def _compose(second: NDArray[np.float64], first: NDArray[np.float64]) -> NDArray[np.float64]:
    """Hamilton product of unit quaternions: `first`, then `second`."""
    second, first = second / np.linalg.norm(second), first / np.linalg.norm(first)
    w = second[0] * first[0] - second[1:] @ first[1:]
    xyz = second[0] * first[1:] + first[0] * second[1:] + np.cross(second[1:], first[1:])
    return np.concatenate([[w], xyz])


def _rotate(turn: NDArray[np.float64], point: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rotation of a point by a unit quaternion: p + 2 w (v x p) + 2 v x (v x p)."""
    w, v = turn[0], turn[1:]
    across = np.cross(v, point)
    rotated: NDArray[np.float64] = point + 2.0 * (w * across + np.cross(v, across))
    return rotated
