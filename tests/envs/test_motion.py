"""Proportional control of a hand that stands somewhere."""

from types import SimpleNamespace

import numpy as np
import pytest

from envs._motion import CLOSE, Motion, frame, pointing_down, rotation_vector, wrap


def motion_at(position, rotation=None, **options):
    turned = pointing_down(0.0) if rotation is None else rotation
    here = np.array(position, dtype=float)
    scene = SimpleNamespace(
        eef_position=lambda: here,
        eef_rotation=lambda: turned,
        base_position=lambda: np.zeros(3),
    )
    return Motion(scene, **options)


@pytest.mark.parametrize("angle", [1e-12, 0.3, 2.5])
def test_rotation_vector_inverts_the_exponential_map(angle):
    axis = np.array([0.6, -0.48, 0.64])
    cross = np.cross(np.eye(3), axis)
    rotation = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    np.testing.assert_allclose(rotation_vector(rotation), angle * axis, atol=1e-9)


def test_frames_are_rotations():
    tilted = frame(np.array([0.0, 1.0, 0.0]), np.array([np.sqrt(0.5), 0.0, -np.sqrt(0.5)]))
    np.testing.assert_allclose(tilted.T @ tilted, np.eye(3), atol=1e-12)
    assert np.linalg.det(tilted) == pytest.approx(1.0)


def test_a_hand_below_its_target_rises_before_it_goes_sideways():
    action = motion_at([0, 0, 0]).towards(np.array([0.1, 0, 0.2]), pointing_down(0.0), CLOSE)
    assert abs(action[0]) < 1e-9
    assert action[2] == pytest.approx(1.0)
    straight = motion_at([0, 0, 0]).straight(np.array([0.1, 0, 0.2]), pointing_down(0.0), CLOSE)
    assert straight[0] / straight[2] == pytest.approx(0.5)


def test_actions_stay_within_their_limits_and_vanish_at_the_target():
    action = motion_at([0, 0, 0]).straight(np.full(3, 5.0), pointing_down(2.0), CLOSE, speed=0.5)
    assert np.linalg.norm(action[:3]) == pytest.approx(0.5)
    assert np.linalg.norm(action[3:6]) <= 0.4 + 1e-9
    still = motion_at([1, 2, 3]).straight(np.array([1.0, 2, 3]), pointing_down(0.0), CLOSE)
    np.testing.assert_allclose(still[:6], 0, atol=1e-9)


def test_a_stretched_arm_is_pushed_harder():
    def push(reach, stretched):
        motion = motion_at([reach, 0, 0], stretched=stretched)
        return motion.straight(np.array([reach + 0.01, 0, 0]), pointing_down(0.0), CLOSE)[0]

    assert push(0.5, 0.2) == push(0.5, 0.0) == pytest.approx(push(0.8, 0.0))
    assert push(0.8, 0.2) > push(0.65, 0.2) > push(0.5, 0.2)


def test_wrap():
    assert wrap(np.pi + 0.1) == pytest.approx(0.1 - np.pi)
    assert wrap(-0.1) == pytest.approx(-0.1)
