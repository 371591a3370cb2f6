"""Planned motions keep their share of the limits and end where they should."""

from __future__ import annotations

import numpy as np
import pytest
from arms import IdealArm
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.errors import RobotDisconnectedError, RobotError
from deploy.limits import FULL_LIMITS, RESET_POSE
from deploy.motions import check_path, follow, plan
from deploy.safety import FULL


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(-1.0, 1.0), min_size=7, max_size=7), st.floats(0.05, 1.0))
def test_a_path_is_at_rest_at_both_ends_and_within_its_share(
    way: list[float], share: float
) -> None:
    path = plan(np.zeros(7), np.array(way), FULL_LIMITS, share=share)
    np.testing.assert_array_equal(path.at(-1.0), np.zeros(7))
    np.testing.assert_allclose(path.at(path.duration + 1), way, atol=1e-12)
    if path.duration < 0.05:  # differences of so small steps are rounding
        return
    times = np.linspace(0, path.duration, 400)
    q = np.array([path.at(t) for t in times])
    step = times[1]
    speed = np.abs(np.diff(q, axis=0)) / step
    acceleration = np.abs(np.diff(q, 2, axis=0)) / step**2
    assert np.all(speed <= share * FULL_LIMITS.speed * 1.001 + 1e-9)
    assert np.all(acceleration <= share * FULL_LIMITS.acceleration * 1.02 + 1e-6)


def test_a_path_uses_the_limit_that_binds() -> None:
    far = plan(np.zeros(7), 2.0 * np.eye(7)[0], FULL_LIMITS, share=1.0)
    peak = max(np.diff([far.at(t)[0] for t in np.linspace(0, far.duration, 500)]))
    assert peak * 499 / far.duration == pytest.approx(2.62, rel=0.01)


def test_an_end_outside_the_range_is_refused() -> None:
    end = RESET_POSE + np.array([0, 0, 0, 3.0, 0, 0, 0])
    with pytest.raises(RobotError, match="outside the joints' range"):
        check_path(plan(RESET_POSE, end, FULL_LIMITS), FULL_LIMITS, FULL.workspace)


def test_following_is_on_the_robots_clock() -> None:
    """A robot whose clock runs slowly is moved slowly: the targets depend on its time alone."""
    targets = []
    for cycle_s in (0.02, 0.01):
        arm = IdealArm(cycle_s=cycle_s)
        follow(arm, plan(RESET_POSE, RESET_POSE + 0.05, FULL_LIMITS))
        targets.append(np.array(arm.targets))
        np.testing.assert_allclose(arm.q, RESET_POSE + 0.05, atol=0.01)
    assert len(targets[1]) > 1.5 * len(targets[0])


def test_a_clock_that_stands_still_is_a_lost_robot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.motions._SILENT_S", 0.1)
    arm = IdealArm(cycle_s=0.0)
    with pytest.raises(RobotDisconnectedError, match="stood still"):
        follow(arm, plan(RESET_POSE, RESET_POSE + 0.05, FULL_LIMITS))
