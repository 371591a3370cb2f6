"""The control law, and what a driver that cannot be had says."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from deploy.drivers import CONTROLLER_PROFILES, droid_torque, open_arm
from deploy.drivers._connection import not_connected
from deploy.drivers.profiles import DROID
from deploy.errors import RobotDisconnectedError, RobotError
from deploy.kinematics import jacobian
from deploy.limits import FULL_LIMITS, RESET_POSE, joint_target


def arguments() -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    q = RESET_POSE + rng.normal(0, 0.1, 7)
    gains = DROID.joint_stiffness, DROID.joint_damping, DROID.cartesian_stiffness
    return [
        q + rng.normal(0, 0.05, 7),
        q,
        rng.normal(0, 0.3, 7),
        jacobian(q),
        rng.normal(0, 0.1, 7),
        *(np.array(g) for g in (*gains, DROID.cartesian_damping)),
    ]


def test_droids_law_is_the_hybrid_impedance_in_matrix_form() -> None:
    target, q, dq, matrix, coriolis, kq, kqd, kx, kxd = arguments()
    stiffness = matrix.T @ np.diag(kx) @ matrix + np.diag(kq)
    damping = matrix.T @ np.diag(kxd) @ matrix + np.diag(kqd)
    expected = stiffness @ (target - q) - damping @ dq + coriolis
    np.testing.assert_allclose(droid_torque(*arguments()), expected, atol=1e-12)


def test_droids_law_compiles_as_it_stands() -> None:
    numba = pytest.importorskip("numba")
    compiled = numba.njit(droid_torque, error_model="numpy")
    np.testing.assert_allclose(compiled(*arguments()), droid_torque(*arguments()), atol=1e-10)


def test_the_droid_profile_has_the_published_gains() -> None:
    profile = CONTROLLER_PROFILES["droid"]
    assert profile.joint_stiffness == (40, 30, 50, 25, 35, 25, 10)
    assert profile.joint_damping == (4, 6, 5, 5, 3, 2, 1)
    assert profile.cartesian_stiffness == (400, 400, 400, 15, 15, 15)
    assert profile.cartesian_damping == (37, 37, 37, 2, 2, 2)


@pytest.mark.parametrize(("driver", "module"), [("aiofranka", "aiofranka"), ("franky", "franky")])
def test_a_driver_that_is_not_installed_names_its_package(driver: str, module: str) -> None:
    if importlib.util.find_spec(module) is not None:
        pytest.skip(f"{module} is installed")
    with pytest.raises(RobotError, match="needs the package"):
        open_arm("127.0.0.1", driver, realtime="ignore")  # type: ignore[arg-type]


def test_a_profile_that_a_driver_cannot_run_is_refused() -> None:
    pytest.importorskip("franka")
    from deploy.drivers.franka_rs import FrankaRsDriver

    with pytest.raises(RobotError, match="droid"):
        FrankaRsDriver("127.0.0.1", profile=DROID)


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ("incompatible version (server version: 9, library version: 10)", "update in the robot's"),
        ("Running kernel does not have realtime capabilities.", "PREEMPT_RT"),
        ("Connection refused", "FCI activated in Desk"),
    ],
)
def test_an_arm_that_cannot_be_reached_comes_with_advice(said: str, advice: str) -> None:
    error = not_connected("172.16.0.2", RuntimeError(said))
    assert said in str(error)
    assert advice in str(error)
    assert isinstance(error, RobotDisconnectedError) == ("refused" in said)


def test_a_target_out_of_range_is_refused_whichever_driver_would_send_it() -> None:
    for inside in (RESET_POSE, FULL_LIMITS.lower, FULL_LIMITS.upper):
        np.testing.assert_array_equal(joint_target(inside), inside)
    with pytest.raises(RobotError, match=r"joint 4 .* 0\.000 rad.*nothing was sent"):
        joint_target(np.zeros(7))
