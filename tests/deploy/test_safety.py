"""The filter keeps the manufacturer's bounds whatever goes in, and leaves tame actions alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from deploy.kinematics import control_points
from deploy.limits import MAX_JOINT_DELTA, RESET_POSE, Array
from deploy.safety import (
    CAUTIOUS,
    FULL,
    INTERVENTIONS,
    PROFILES,
    Filtered,
    FilterState,
    SafetyProfile,
    Workspace,
    filter_action,
)

DT = 1 / 15
# libfranka 0.21, rate_limiting.h: 2 x deceleration, offset, stop upwards, stop downwards, cap.
OFFICIAL = np.array(
    [
        [12.0, 0.30, 2.7501, -2.7501, 2.62],
        [5.17, 0.20, 1.7918, -1.7918, 2.62],
        [7.00, 0.20, 2.9065, -2.9065, 2.62],
        [8.00, 0.30, -0.1458, -3.0481, 2.62],
        [34.0, 0.35, 2.8101, -2.8101, 5.26],
        [11.0, 0.35, 4.5205, 0.54092, 4.18],
        [34.0, 0.35, 3.0196, -3.0196, 5.26],
    ]
).T
EPS = 1e-9


def official_speed(q: Array, *, up: bool) -> Array:
    """The bound as libfranka writes it, in the direction of the motion."""
    twice, offset, upper, lower, cap = OFFICIAL
    room = upper - q if up else q - lower
    bound = np.maximum(0.0, np.sqrt(np.maximum(0.0, twice * room)) - offset)
    return np.asarray(np.minimum(cap, bound))


def assert_within_bounds(before: FilterState, after: FilterState, profile: SafetyProfile) -> None:
    speed = (after.target - before.target) / DT
    assert np.all(np.abs(speed - after.speed) < 1e-6)
    assert np.all(np.abs(speed - before.speed) <= profile.limits.acceleration * DT + 1e-6)
    assert np.all(profile.limits.acceleration <= 10.0)
    assert np.all(after.target <= OFFICIAL[2] + EPS)
    assert np.all(after.target >= OFFICIAL[3] - EPS)
    assert np.all(after.target <= profile.limits.upper + EPS)
    assert np.all(after.target >= profile.limits.lower - EPS)
    for q in (before.target, after.target):  # the bound shrinks on the way: both ends must hold
        assert np.all(speed <= official_speed(q, up=True) + 1e-6)
        assert np.all(-speed <= official_speed(q, up=False) + 1e-6)


numbers = st.one_of(
    st.floats(-1.5, 1.5),
    st.sampled_from([0.0, 1.0, -1.0, 4.9, -4.9, 1e30, float("nan"), float("inf"), -float("inf")]),
)
actions = st.one_of(
    st.none(),
    st.lists(numbers, min_size=8, max_size=8),
    st.sampled_from([1.0, -1.0, 4.0]).map(lambda v: [v] * 8),
    st.lists(numbers, max_size=12),
)
deviations = st.lists(st.floats(-3.0, 3.0), min_size=7, max_size=7)
starts = st.lists(st.floats(0.0, 1.0), min_size=7, max_size=7)


@settings(max_examples=50, deadline=None)
@given(
    st.sampled_from([FULL, CAUTIOUS]),
    starts,
    st.lists(st.tuples(actions, deviations, st.booleans()), min_size=1, max_size=30),
)
def test_no_sequence_of_inputs_exceeds_position_speed_or_acceleration(
    profile: SafetyProfile, start: list[float], inputs: list[tuple[object, list[float], bool]]
) -> None:
    limits = profile.limits
    q = limits.lower + np.array(start) * (limits.upper - limits.lower)
    state = FilterState.at_rest(q)
    for action, deviation, as_position in inputs:
        done = filter_action(
            action,  # type: ignore[arg-type]
            state=state,
            measured=state.target + np.array(deviation) * (not as_position),
            measured_gripper=0.3,
            profile=profile,
            space="joint_position" if as_position else "joint_velocity",
        )
        assert set(done.interventions) <= set(INTERVENTIONS)
        assert_within_bounds(state, done.state, profile)
        state = done.state


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([FULL, CAUTIOUS]))
@example(22, FULL)  # once 0.04 mm behind the wall, because braking was harder than foreseen
@example(461, FULL)
def test_full_speed_for_seconds_exceeds_nothing_and_stays_in_the_workspace(
    seed: int, profile: SafetyProfile
) -> None:
    """Held full-speed actions drive into stops, walls and the table: the hard cases."""
    rng = np.random.default_rng(seed)
    state = FilterState.at_rest(RESET_POSE)
    for _ in range(4):
        action = rng.choice([-1.0, 0.0, 1.0], size=8) * rng.uniform(0.3, 4.5)
        for _ in range(12):
            done = drive(action, state, profile)
            assert_within_bounds(state, done.state, profile)
            assert profile.workspace.worst(done.state.target) <= 1e-6
            state = done.state


def drive(action: object, state: FilterState, profile: SafetyProfile = FULL) -> Filtered:
    """One step of an arm that stands exactly where it was told to."""
    return filter_action(
        action,  # type: ignore[arg-type]
        state=state,
        measured=state.target,
        measured_gripper=0.0,
        profile=profile,
    )


@pytest.mark.parametrize("joint", range(7))
@pytest.mark.parametrize("sign", [1, -1])
def test_a_joint_driven_into_its_stop_comes_to_rest_before_it(joint: int, sign: int) -> None:
    free = dataclasses.replace(
        FULL, workspace=Workspace(lower=(-9,) * 3, upper=(9,) * 3, table_height=None)
    )
    action = np.zeros(8)
    action[joint] = sign
    state = FilterState.at_rest(RESET_POSE)
    speeds = []
    for _ in range(90):
        done = drive(action, state, free)
        assert_within_bounds(state, done.state, free)
        state = done.state
        speeds.append(abs(state.speed[joint]))
    assert speeds[-1] < 0.02
    stop = free.limits.upper[joint] if sign > 0 else free.limits.lower[joint]
    assert abs(state.target[joint] - stop) < 0.08
    assert max(speeds) > 1.3  # and was not merely slow


def test_a_tame_action_is_executed_as_droid_means_it() -> None:
    action = np.array([0.1, -0.05, 0.02, 0.1, -0.1, 0.05, 0.08, 0.0])
    done = drive(action, FilterState.at_rest(RESET_POSE))
    np.testing.assert_allclose(done.state.target, RESET_POSE + MAX_JOINT_DELTA * action[:7])
    assert not done.interventions
    np.testing.assert_allclose(done.action, action)


def test_velocity_targets_are_counted_from_the_measured_joints() -> None:
    measured = RESET_POSE + 0.01
    done = filter_action(
        np.zeros(8),
        state=FilterState.at_rest(RESET_POSE),
        measured=measured,
        measured_gripper=0.0,
        profile=FULL,
    )
    np.testing.assert_allclose(done.state.target, measured)


def test_a_vector_beyond_one_is_scaled_as_a_whole() -> None:
    action = np.array([0.0, 0.0, 2.0, 0.0, 1.0, 0.0, 0.0, 0.0])
    state = FilterState.at_rest(RESET_POSE)
    done = drive(action, state)
    assert done.interventions["scaled"] == 2.0
    halves = drive(action / 2, state)
    np.testing.assert_array_equal(done.state.target, halves.state.target)


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        ([0.0] * 7, "shape"),
        ("open", "shape"),
        ([[0.0] * 8], "shape"),
        ([0.0] * 7 + [float("nan")], "not_finite"),
        ([float("inf")] + [0.0] * 7, "not_finite"),
        ([50.0] + [0.0] * 7, "out_of_range"),
    ],
)
def test_an_unusable_action_brakes_and_says_why(action: object, reason: str) -> None:
    state = FilterState.at_rest(RESET_POSE, gripper=1.0)
    for _ in range(4):
        state = drive([0.5] * 7 + [1.0], state).state
    moving = np.abs(state.speed).max()
    done = drive(action, state)
    assert done.rejected == reason
    assert done.gripper is None
    assert np.abs(done.state.speed).max() < moving
    for _ in range(10):
        done = drive(action, done.state)
    assert np.abs(done.state.speed).max() < 1e-9


def test_a_position_far_outside_the_range_is_refused() -> None:
    state = FilterState.at_rest(RESET_POSE)
    wish = np.append(RESET_POSE, 0.0)
    wish[5] = 6.0
    done = filter_action(
        wish,
        state=state,
        measured=RESET_POSE,
        measured_gripper=0.0,
        profile=FULL,
        space="joint_position",
    )
    assert done.rejected == "out_of_range"
    np.testing.assert_array_equal(done.state.target, RESET_POSE)


def test_a_distant_position_is_approached_in_capped_steps() -> None:
    wish = np.append(RESET_POSE + 0.8 * np.eye(7)[0], 0.0)
    state = FilterState.at_rest(RESET_POSE)
    names: set[str] = set()
    for _ in range(40):
        done = filter_action(
            wish,
            state=state,
            measured=state.target,
            measured_gripper=0.0,
            profile=CAUTIOUS,
            space="joint_position",
        )
        assert np.abs(done.state.target - state.target).max() <= CAUTIOUS.max_step + EPS
        names |= set(done.interventions)
        state = done.state
    np.testing.assert_allclose(state.target, wish[:7], atol=1e-6)
    assert "step_cap" in names


def test_a_blocked_arm_is_not_pulled_ever_harder() -> None:
    """The target stays within the leash of joints that do not follow."""
    state = FilterState.at_rest(RESET_POSE)
    wish = np.append(RESET_POSE + np.eye(7)[0], 0.0)
    for _ in range(30):
        done = filter_action(
            wish,
            state=state,
            measured=RESET_POSE,
            measured_gripper=0.0,
            profile=FULL,
            space="joint_position",
        )
        state = done.state
    assert abs(state.target[0] - RESET_POSE[0]) <= FULL.leash + EPS
    assert "leash" in done.interventions


def test_the_fingertips_stop_above_the_table_and_still_move_along_it() -> None:
    state = FilterState.at_rest(RESET_POSE)
    down = np.array([0, 0.6, 0, 0, 0, 0, 0, 0.0])  # shoulder forwards and down
    seen: set[str] = set()
    for _ in range(60):
        done = drive(down, state)
        seen |= set(done.interventions)
        state = done.state
        assert control_points(state.target)[:, 2].min() >= FULL.workspace.clearance - 1e-6
    assert "table" in seen
    sideways = drive(np.array([0.5, 0.1, 0, 0, 0, 0, 0, 0.0]), state)
    assert sideways.state.speed[0] > 0.3


def test_an_arm_that_starts_below_the_table_can_be_driven_out() -> None:
    raised = dataclasses.replace(FULL, workspace=Workspace(table_height=0.45))
    state = FilterState.at_rest(RESET_POSE)
    start = float(raised.workspace.worst(RESET_POSE))
    assert start > 0
    for _ in range(30):
        state = drive([0, -0.5, 0, 0, 0, 0, 0, 0], state, raised).state
        assert float(raised.workspace.worst(state.target)) <= start + 1e-6
    assert float(raised.workspace.worst(state.target)) < start - 0.05


def test_gripper_commands_are_sent_on_change_with_hysteresis() -> None:
    wishes = [0.0, 0.2, 0.52, 0.56, 0.54, 0.46, 0.44, 0.0, 1.0]
    state, sent = FilterState.at_rest(RESET_POSE), []
    for wish in wishes:
        done = drive([0.0] * 7 + [wish], state)
        sent.append(done.gripper)
        state = done.state
    assert sent == [0.0, None, None, 1.0, None, None, 0.0, None, 1.0]


def test_a_continuous_gripper_passes_steps_on() -> None:
    profile = dataclasses.replace(FULL, gripper="continuous")
    state, sent = FilterState.at_rest(RESET_POSE), []
    for wish in (0.0, 0.01, 0.3, 1.4):
        done = drive([0.0] * 7 + [wish], state, profile)
        sent.append(done.gripper)
        state = done.state
    assert sent == [0.0, None, 0.3, 1.0]


def test_a_gripper_speed_moves_from_the_measured_opening() -> None:
    done = filter_action(
        [0.0] * 7 + [1.0],
        state=FilterState.at_rest(RESET_POSE, gripper=0.0),
        measured=RESET_POSE,
        measured_gripper=0.4,
        profile=dataclasses.replace(FULL, gripper="continuous"),
        gripper_space="velocity",
    )
    assert done.gripper == pytest.approx(0.65)


def test_the_filter_changes_none_of_its_inputs() -> None:
    action, measured = np.full(8, 3.0), RESET_POSE + 0.3
    state = FilterState.at_rest(RESET_POSE)
    copies = action.copy(), measured.copy(), state.target.copy()
    first = filter_action(
        action, state=state, measured=measured, measured_gripper=0.1, profile=FULL
    )
    again = filter_action(
        action, state=state, measured=measured, measured_gripper=0.1, profile=FULL
    )
    for before, now in zip(copies, (action, measured, state.target), strict=True):
        np.testing.assert_array_equal(before, now)
    np.testing.assert_array_equal(first.state.target, again.state.target)


def test_profiles_are_ordered_by_caution() -> None:
    cautious, full = PROFILES["cautious"].limits, PROFILES["full"].limits
    assert np.all(cautious.lower >= full.lower)
    assert np.all(cautious.upper <= full.upper)
    assert np.all(cautious.speed <= full.speed)
