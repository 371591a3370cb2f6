"""Geometry against its own definitions, and against the manufacturer's URDF."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.kinematics import (
    euler_from_matrix,
    flange_pose,
    jacobian,
    joints_towards,
    matrix_from_euler,
    pose_error,
    pose_matrix,
    pose_vector,
    rotation_vector,
)
from deploy.limits import FULL_LIMITS, RESET_POSE, Array

# URDF of the FR3: rpy and xyz of joints 1..7 and of the flange (all axes are z).
URDF = [
    ((0, 0, 0), (0, 0, 0.333)),
    ((-np.pi / 2, 0, 0), (0, 0, 0)),
    ((np.pi / 2, 0, 0), (0, -0.316, 0)),
    ((np.pi / 2, 0, 0), (0.0825, 0, 0)),
    ((-np.pi / 2, 0, 0), (-0.0825, 0.384, 0)),
    ((np.pi / 2, 0, 0), (0, 0, 0)),
    ((np.pi / 2, 0, 0), (0.088, 0, 0)),
]

configurations = st.lists(st.floats(0, 1), min_size=7, max_size=7).map(
    lambda share: FULL_LIMITS.lower + np.array(share) * (FULL_LIMITS.upper - FULL_LIMITS.lower)
)
angles = st.floats(-1.5, 1.5)


def urdf_flange(q: Array) -> Array:
    pose = np.eye(4)
    for angle, (rpy, xyz) in zip(q, URDF, strict=True):
        joint, turn = np.eye(4), np.eye(4)
        joint[:3, :3], joint[:3, 3] = matrix_from_euler(np.array(rpy)), xyz
        turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        pose = pose @ joint @ turn
    pose[:3, 3] += 0.107 * pose[:3, 2]
    return pose


@given(configurations)
def test_flange_stands_where_the_urdf_puts_it(q: Array) -> None:
    np.testing.assert_allclose(flange_pose(q), urdf_flange(q), atol=1e-12)


@given(configurations)
def test_jacobian_is_the_derivative_of_the_pose(q: Array) -> None:
    step = 1e-6
    for joint in range(7):
        moved = q.copy()
        moved[joint] += step
        numeric = pose_error(flange_pose(moved), flange_pose(q)) / step
        np.testing.assert_allclose(jacobian(q)[:, joint], numeric, atol=1e-5)


@given(angles, angles, angles)
def test_euler_angles_survive_the_matrix(x: float, y: float, z: float) -> None:
    np.testing.assert_allclose(
        euler_from_matrix(matrix_from_euler(np.array([x, y, z]))), [x, y, z], atol=1e-7
    )


@pytest.mark.parametrize("pitch", [np.pi / 2, -np.pi / 2])
def test_euler_angles_at_the_pole_still_mean_the_same_rotation(pitch: float) -> None:
    rotation = matrix_from_euler(np.array([0.3, pitch, -0.8]))
    np.testing.assert_allclose(matrix_from_euler(euler_from_matrix(rotation)), rotation, atol=1e-7)


@pytest.mark.parametrize("angle", [0.0, 1e-9, 0.5, 3.0, np.pi - 1e-9, np.pi])
@pytest.mark.parametrize("axis", [(1, 0, 0), (0.6, 0, -0.8), (1 / 3, -2 / 3, 2 / 3)])
def test_rotation_vector_gives_back_axis_and_angle(
    angle: float, axis: tuple[float, float, float]
) -> None:
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    rotation = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    vector = rotation_vector(rotation)
    if angle < np.pi - 1e-6:
        np.testing.assert_allclose(vector, angle * np.array(axis), atol=1e-7)
    else:  # half a turn is the same about the opposite axis
        error = min(np.abs(vector - s * angle * np.array(axis)).max() for s in (1, -1))
        assert error < 1e-6


def test_joints_are_found_for_a_pose_nearby() -> None:
    shift = np.array([0.05, -0.08, -0.1, 0.2, -0.1, 0.3])
    target = pose_matrix(pose_vector(flange_pose(RESET_POSE)) + shift)
    q = joints_towards(target, RESET_POSE, iterations=40)
    np.testing.assert_allclose(flange_pose(q), target, atol=1e-4)


def test_an_unreachable_pose_is_approached_within_the_bounds() -> None:
    target = flange_pose(RESET_POSE)
    target[0, 3] = 3.0
    bounds = (FULL_LIMITS.lower, FULL_LIMITS.upper)
    q = joints_towards(target, RESET_POSE, iterations=60, bounds=bounds)
    assert FULL_LIMITS.contain(q)
    assert flange_pose(q)[0, 3] > 0.6
