"""Geometry of the FR3: where its parts are, how they move, and which joints reach a pose.

Frames follow the manufacturer's Denavit-Hartenberg table in Craig's convention. Poses are 4x4
matrices in the base frame, metres. "Flange" is where a tool is screwed on; DROID's Cartesian
positions are the flange's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deploy.limits import JOINTS, Array

# a (m), d (m), alpha (rad) of joints 1..7 (frankarobotics/docs, "Denavit-Hartenberg parameters").
DH_TABLE = (
    (0.0, 0.333, 0.0),
    (0.0, 0.0, -np.pi / 2),
    (0.0, 0.316, np.pi / 2),
    (0.0825, 0.0, np.pi / 2),
    (-0.0825, 0.384, -np.pi / 2),
    (0.0, 0.0, np.pi / 2),
    (0.088, 0.0, np.pi / 2),
)
FLANGE_OFFSET = 0.107


def _fixed_part(a: float, d: float, alpha: float) -> Array:
    """Rx(alpha) Tx(a) Tz(d): the part of a link's transform that no joint changes."""
    c, s = np.cos(alpha), np.sin(alpha)
    return np.array([[1, 0, 0, a], [0, c, -s, -s * d], [0, s, c, c * d], [0, 0, 0, 1.0]])


_FIXED = np.stack([_fixed_part(*row) for row in DH_TABLE])
_FLANGE = _fixed_part(0.0, FLANGE_OFFSET, 0.0)


def _turn(angle: Array) -> Array:
    """Rotations about z, (..., 4, 4)."""
    turn = np.zeros((*angle.shape, 4, 4))
    turn[..., 0, 0] = turn[..., 1, 1] = np.cos(angle)
    turn[..., 1, 0] = np.sin(angle)
    turn[..., 0, 1] = -turn[..., 1, 0]
    turn[..., 2, 2] = turn[..., 3, 3] = 1.0
    return turn


def link_poses(q: Array) -> Array:
    """Poses of the frames of joints 1..7 and of the flange.

    Args:
        q: (..., 7) joint positions, rad.

    Returns:
        (..., 8, 4, 4), in the base frame.
    """
    q = np.asarray(q, dtype=np.float64)
    steps = _FIXED @ _turn(q)  # (..., 7, 4, 4)
    poses = np.empty((*q.shape[:-1], JOINTS + 1, 4, 4))
    pose = np.broadcast_to(np.eye(4), (*q.shape[:-1], 4, 4))
    for joint in range(JOINTS):
        pose = pose @ steps[..., joint, :, :]
        poses[..., joint, :, :] = pose
    poses[..., JOINTS, :, :] = pose @ _FLANGE
    return poses


def flange_pose(q: Array) -> Array:
    """Pose of the flange, (..., 4, 4).

    >>> flange_pose(np.zeros(7))[:3, 3].round(3).tolist()
    [0.088, 0.0, 0.926]
    """
    return np.asarray(link_poses(q)[..., JOINTS, :, :])


@dataclass(frozen=True, kw_only=True)
class Tool:
    """What is screwed to the flange, as far as it can hit something.

    Attributes:
        length: From the flange to the fingertips along the flange's z; m.
        half_width: From the middle to the outside of an open finger; m.
    """

    length: float
    half_width: float


FRANKA_HAND = Tool(length=0.1122, half_width=0.05)
ROBOTIQ_2F85 = Tool(length=0.1628, half_width=0.075)
GRASP_POINT = 0.1034
"""From the flange to the middle of the Franka Hand's finger pads along z; m."""


def control_points(q: Array, tool: Tool = FRANKA_HAND) -> Array:
    """The points that must stay inside the workspace: wrist, flange, fingertips and finger sides.

    Both planes of the fingers are covered, however the hand is turned on the flange.

    Args:
        q: (..., 7) joint positions, rad.
        tool: What the arm carries.

    Returns:
        (..., 7, 3) in m: frame of joint 6, flange, fingertips, and four points around the latter.
    """
    poses = link_poses(q)
    flange = poses[..., JOINTS, :, :]
    w, z = tool.half_width, tool.length
    local = np.array([[0, 0, z], [w, 0, z], [-w, 0, z], [0, w, z], [0, -w, z]])
    tips = flange[..., None, :3, 3] + np.einsum("...ij,pj->...pi", flange[..., :3, :3], local)
    wrist = poses[..., 5, None, :3, 3]
    return np.concatenate([wrist, flange[..., None, :3, 3], tips], axis=-2)


def jacobian(q: Array) -> Array:
    """Geometric Jacobian of the flange in the base frame, (6, 7): m/s rows above rad/s rows."""
    poses = link_poses(q)
    axes, origins = poses[:JOINTS, :3, 2], poses[:JOINTS, :3, 3]
    arms = poses[JOINTS, :3, 3] - origins
    return np.concatenate([np.cross(axes, arms).T, axes.T])


def euler_from_matrix(rotation: Array) -> Array:
    """Angles (3,) about the fixed axes x, y, z, in this order (DROID's convention); rad."""
    pitch = -np.arcsin(np.clip(rotation[2, 0], -1.0, 1.0))
    if abs(rotation[2, 0]) > 1 - 1e-9:  # x and z turn about the same line: give all to x
        roll = np.arctan2(-rotation[2, 0] * rotation[0, 1], -rotation[2, 0] * rotation[0, 2])
        return np.array([roll, pitch, 0.0])
    roll = np.arctan2(rotation[2, 1], rotation[2, 2])
    return np.array([roll, pitch, np.arctan2(rotation[1, 0], rotation[0, 0])])


def matrix_from_euler(angles: Array) -> Array:
    """Rotation (3, 3) by `angles` about the fixed axes x, y, z, in this order."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return np.asarray(about_z @ about_y @ about_x)


def rotation_vector(rotation: Array) -> Array:
    """Axis times angle (3,) of a rotation matrix; rad, angle in [0, pi]."""
    skew = np.array(
        [
            rotation[2, 1] - rotation[1, 2],
            rotation[0, 2] - rotation[2, 0],
            rotation[1, 0] - rotation[0, 1],
        ]
    )
    sine, cosine = np.linalg.norm(skew) / 2, (np.trace(rotation) - 1) / 2
    angle = np.arctan2(sine, cosine)
    if sine > 1e-7:
        return np.asarray(skew / (2 * sine) * angle)
    if cosine > 0:
        return np.asarray(skew / 2)
    axis = np.sqrt(np.maximum(np.diag(rotation) + 1, 0) / 2)  # half a turn: only signs are open
    k = int(np.argmax(axis))
    axis = np.where(np.arange(3) == k, axis, np.sign(rotation[k]) * axis)
    return np.asarray(axis * angle)


def pose_vector(pose: Array) -> Array:
    """(6,) x, y, z in m and angles about the fixed axes x, y, z in rad: DROID's pose."""
    return np.concatenate([pose[:3, 3], euler_from_matrix(pose[:3, :3])])


def pose_matrix(vector: Array) -> Array:
    """The 4x4 pose of DROID's six numbers; undoes `pose_vector`."""
    pose = np.eye(4)
    pose[:3, 3] = vector[:3]
    pose[:3, :3] = matrix_from_euler(np.asarray(vector[3:6], dtype=np.float64))
    return pose


def pose_error(target: Array, pose: Array) -> Array:
    """What leads from `pose` to `target`: (6,) metres and rotation vector, base frame."""
    turn = rotation_vector(target[:3, :3] @ pose[:3, :3].T)
    return np.concatenate([target[:3, 3] - pose[:3, 3], turn])


def joints_towards(
    target: Array,
    q: Array,
    *,
    damping: float = 0.02,
    iterations: int = 20,
    posture: Array | None = None,
    bounds: tuple[Array, Array] | None = None,
) -> NDArray[np.float64]:
    """Joints that bring the flange to `target`, or as near as they get, starting at `q`.

    Damped least squares (Nakamura & Hanafusa 1986): near a singularity it falls short instead of
    asking for large joint motions.

    Args:
        target: 4x4 pose.
        q: (7,) where to start; rad.
        damping: Larger is tamer and less exact.
        iterations: Newton steps at most.
        posture: (7,) joints to prefer among those that reach the target; None prefers none.
        bounds: Least and greatest joint positions; the answer stays within.

    Returns:
        (7,) joint positions.
    """
    q = np.array(q, dtype=np.float64)
    for _ in range(iterations):
        error = pose_error(target, flange_pose(q))
        if np.abs(error).max() < 1e-5 and posture is None:
            break
        matrix = jacobian(q)
        inverse = matrix.T @ np.linalg.inv(matrix @ matrix.T + damping**2 * np.eye(6))
        step = inverse @ error
        if posture is not None:
            step += 0.1 * (np.eye(JOINTS) - inverse @ matrix) @ (posture - q)
        q += np.clip(step, -0.2, 0.2)
        if bounds is not None:
            q = np.clip(q, *bounds)
    return q
