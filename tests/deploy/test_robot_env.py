"""DROID's surface: keys, units and formulas, and that no action goes round the safety filter."""

from __future__ import annotations

import time

import numpy as np
import pytest
from arms import IdealArm, IdealGripper, StillCamera

from deploy import _droid
from deploy.errors import (
    CameraError,
    ContractMismatchError,
    ReflexError,
    RobotError,
    UserStopError,
)
from deploy.kinematics import flange_pose, pose_vector
from deploy.limits import RESET_POSE, ActionSpace
from deploy.robot import Robot, RobotConfig, open_robot
from deploy.robot_env import RobotEnv
from deploy.safety import FULL, SafetyProfile


def environment(
    arm: IdealArm | None = None,
    space: ActionSpace = "joint_velocity",
    gripper: str | None = "position",
    profile: SafetyProfile = FULL,
    cameras: dict[str, StillCamera] | None = None,
) -> RobotEnv:
    robot = Robot(
        arm=arm or IdealArm(cycle_s=1 / 15),
        gripper=IdealGripper(),
        cameras=cameras or {},
        profile=profile,
    )
    return RobotEnv(space, gripper, do_reset=False, robot=robot)


def test_an_observation_has_droids_keys_units_and_pictures() -> None:
    now = time.time()
    env = environment(cameras={"123": StillCamera(now - 0.5), "wrist": StillCamera(now)})
    seen = env.get_observation()
    words = seen["robot_state"]
    np.testing.assert_allclose(words["joint_positions"], RESET_POSE)
    np.testing.assert_allclose(words["cartesian_position"], pose_vector(flange_pose(RESET_POSE)))
    assert words["gripper_position"] == 0.0
    assert words["prev_command_successful"] is True
    assert set(seen["image"]) == {"123_left", "wrist_left"}
    picture = seen["image"]["123_left"]
    assert picture.shape == (4, 6, 4)
    assert picture[0, 0].tolist() == [0, 0, 200, 255]  # BGRA
    assert seen["camera_type"] == {"123": 1, "wrist": 0}
    cameras = seen["timestamp"]["cameras"]
    assert cameras["123_frame_received"] == round((now - 0.5) * 1000)
    assert {"read_start", "read_end"} <= set(seen["timestamp"]["robot_state"])


def test_a_frozen_camera_shows_as_a_growing_age() -> None:
    env = environment(cameras={"left": StillCamera(time.time() - 3.0)})
    first = env.get_observation()["camera_age_s"]["left"]
    assert first >= 3.0
    assert env.get_observation()["camera_age_s"]["left"] > first


def test_a_camera_that_fails_is_named() -> None:
    class Broken(StillCamera):
        def latest(self):  # type: ignore[no-untyped-def]
            raise CameraError("camera 'left' failed: unplugged")

    with pytest.raises(CameraError, match="unplugged"):
        environment(cameras={"left": Broken(0.0)}).get_observation()


def test_openpis_droid_loop_runs_as_it_is() -> None:
    """What openpi's example does around a policy, with its own slicing of the dictionary."""
    env = environment(cameras={"ext": StillCamera(time.time()), "wrist": StillCamera(time.time())})
    env.reset()
    for _ in range(10):
        observation = env.get_observation()
        images = observation["image"]
        left = next(v for k, v in images.items() if "ext" in k and "left" in k)[..., :3][..., ::-1]
        assert left.shape[-1] == 3
        q = np.array(observation["robot_state"]["joint_positions"])
        gripper = np.array([observation["robot_state"]["gripper_position"]])
        assert q.shape == (7,)
        assert gripper.shape == (1,)
        action = np.clip(np.append(np.full(7, 0.1), 1.0), -1, 1)
        env.step(action)
    assert env.robot.gripper.commands == [0.0, 1.0]  # on change, not on every step


def test_the_action_dictionary_follows_droids_formulas() -> None:
    env = environment()
    velocity = np.array([0.1, -0.2, 0.05, 0.0, 0.3, -0.1, 0.2])
    info = env.step(np.append(velocity, 0.7))
    np.testing.assert_allclose(info["joint_velocity"], velocity)
    np.testing.assert_allclose(info["joint_position"], RESET_POSE + 0.2 * velocity)
    assert info["gripper_position"] == 0.7
    assert info["gripper_delta"] == pytest.approx(0.7 / 0.25)
    assert info["robot_state"]["joint_positions"] == pytest.approx(RESET_POSE.tolist())
    assert info["rejected"] is None


def test_a_position_action_is_told_as_the_velocity_it_amounts_to() -> None:
    env = environment(space="joint_position")
    goal = RESET_POSE + 0.05
    info = env.step(np.append(goal, 0.0))
    np.testing.assert_allclose(info["joint_velocity"], np.full(7, 0.25))
    np.testing.assert_allclose(info["joint_position"], goal)


def test_a_gripper_velocity_starts_at_the_measured_opening() -> None:
    env = environment(gripper="velocity")
    env.robot.gripper.at = 0.5  # type: ignore[attr-defined]
    info = env.step(np.append(np.zeros(7), -1.0))
    assert info["gripper_velocity"] == -1.0
    assert info["gripper_position"] == 0.25


@pytest.mark.parametrize("axis", range(6))
def test_a_cartesian_velocity_moves_the_flange_by_droids_unit_step(axis: int) -> None:
    arm = IdealArm(cycle_s=1 / 15)
    env = environment(arm, space="cartesian_velocity")
    before = flange_pose(arm.q)
    action = np.zeros(7)
    action[axis] = 0.3
    for _ in range(5):
        info = env.step(action)
    nominal = 0.3 * (0.075 if axis < 3 else 0.15)
    assert info["cartesian_velocity"][axis] == pytest.approx(0.3)
    for _ in range(3):
        arm.read()
    moved = _droid.pose_velocity(before, flange_pose(arm.q)) * ([0.075] * 3 + [0.15] * 3)
    assert moved[axis] == pytest.approx(5 * nominal, rel=0.25)
    moved[axis] = 0.0
    assert np.abs(moved).max() < 0.03


def test_a_cartesian_position_is_reached_in_steps() -> None:
    arm = IdealArm(cycle_s=1 / 15)
    env = environment(arm, space="cartesian_position")
    goal = flange_pose(RESET_POSE)
    goal[:3, 3] += [0.05, 0.08, -0.06]
    for _ in range(40):
        env.step(np.append(pose_vector(goal), 0.0))
    np.testing.assert_allclose(flange_pose(arm.q)[:3, 3], goal[:3, 3], atol=2e-3)


def test_velocity_targets_follow_the_measured_arm_not_the_former_target() -> None:
    """An arm that does not move gets the same target again: nothing winds up."""
    arm = IdealArm(cycle_s=1 / 15)
    arm.stuck = True
    env = environment(arm)
    for _ in range(20):
        env.step(np.append(np.full(7, 0.1), 0.0))
    np.testing.assert_allclose(arm.targets[-1], RESET_POSE + 0.02, atol=1e-9)


def test_every_action_passes_the_filter_and_is_counted() -> None:
    arm = IdealArm(cycle_s=1 / 15)
    env = environment(arm)
    info = env.step([float("nan")] * 8)
    assert info["rejected"] == "not_finite"
    assert np.all(np.isfinite(arm.targets[-1]))
    env.step([50.0] * 8)
    for _ in range(30):
        env.step([1.0] * 7 + [0.0])
    assert env.interventions["not_finite"] == 1
    assert env.interventions["out_of_range"] == 1
    assert env.interventions["acceleration"] > 0
    steps = np.diff(np.array(arm.targets), axis=0) * 15
    assert np.all(np.abs(steps) <= FULL.limits.speed + 1e-6)


def test_holding_brakes_and_then_stands() -> None:
    arm = IdealArm(cycle_s=1 / 15)
    env = environment(arm)
    for _ in range(6):
        env.step([0.5] * 7 + [0.0])
    for _ in range(8):
        env.hold()
    np.testing.assert_allclose(arm.targets[-1], arm.targets[-2], atol=1e-9)


def test_after_a_pause_the_next_action_starts_from_rest() -> None:
    arm = IdealArm(cycle_s=1 / 15)
    env = environment(arm)
    for _ in range(6):
        env.step([0.5] * 7 + [0.0])
    for _ in range(5):
        arm.read()  # the executor slept
    last = arm.targets[-1]
    env.step([0.5] * 7 + [0.0])
    change = np.abs(arm.targets[-1] - last).max() * 15
    assert change <= 10.0 / 15 + 1e-9


def test_reset_opens_the_gripper_and_plans_its_way_to_the_start() -> None:
    arm = IdealArm(RESET_POSE + 0.2, cycle_s=0.02)
    env = environment(arm)
    env.robot.gripper.at = 1.0  # type: ignore[attr-defined]
    env.reset()
    np.testing.assert_allclose(arm.q, RESET_POSE, atol=0.01)
    assert env.robot.gripper.at == 0.0  # type: ignore[attr-defined]
    speeds = np.diff(np.array(arm.targets), axis=0) / arm.cycle_s
    assert np.abs(speeds).max() < 0.3 * 2.62 + 0.1


def test_randomised_resets_differ_and_are_repeatable() -> None:
    ends = []
    for seed in (1, 1, 2):
        arm = IdealArm(cycle_s=0.05)
        robot = Robot(arm=arm, gripper=IdealGripper(), cameras={}, profile=FULL)
        env = RobotEnv("joint_velocity", do_reset=False, robot=robot, seed=seed)
        env.reset(randomize=True)
        ends.append(arm.q)
    np.testing.assert_array_equal(ends[0], ends[1])
    assert np.abs(ends[0] - ends[2]).max() > 0.02
    assert np.abs(ends[0] - RESET_POSE).max() > 0.02


def test_a_way_through_the_table_is_refused() -> None:
    env = environment()
    low = RESET_POSE + np.array([0, 1.6, 0, 0.3, 0, 0, 0])
    with pytest.raises(RobotError, match="workspace"):
        env.move_to_joints(low)
    assert not env.robot.arm.targets  # type: ignore[attr-defined]


def test_a_blocked_arm_is_reported_not_awaited_for_ever() -> None:
    arm = IdealArm(cycle_s=0.05)
    arm.stuck = True
    env = environment(arm)
    with pytest.raises(RobotError, match="short of where"):
        env.move_to_joints(RESET_POSE + 0.3)


@pytest.mark.parametrize(
    ("mode", "error"), [("reflex", ReflexError), ("user_stopped", UserStopError)]
)
def test_faults_are_named_and_need_an_acknowledgement(mode: str, error: type[RobotError]) -> None:
    arm = IdealArm()
    env = environment(arm)
    arm.mode, arm.errors = mode, ("joint_velocity_violation",)
    with pytest.raises(error):
        env.step(np.zeros(8))
    assert not arm.targets
    env.recover()
    assert arm.halts == [True]
    env.step(np.zeros(8))


def test_a_reflex_carries_the_robots_names() -> None:
    arm = IdealArm()
    arm.mode, arm.errors = "reflex", ("joint_velocity_violation",)
    with pytest.raises(ReflexError, match="joint_velocity_violation") as caught:
        environment(arm).get_observation()
    assert caught.value.names == ("joint_velocity_violation",)


@pytest.mark.parametrize("space", ["cartesian_velocity", "cartesian_position"])
def test_cartesian_actions_that_are_not_finite_are_rejected(space: ActionSpace) -> None:
    env = environment(space=space)
    assert env.step([float("nan")] * 7)["rejected"] == "not_finite"


def test_wrong_lengths_and_unknown_spaces_are_errors() -> None:
    env = environment()
    with pytest.raises(ContractMismatchError, match="8 numbers"):
        env.step(np.zeros(7))
    with pytest.raises(ContractMismatchError, match="joint_speed"):
        environment(space="joint_speed")  # type: ignore[arg-type]
    with pytest.raises(ContractMismatchError, match="gripper_action_space"):
        environment(gripper="torque")
    assert environment(space="cartesian_velocity").DoF == 7
    assert environment().DoF == 8


def test_blocking_positions_are_planned_motions() -> None:
    arm = IdealArm(cycle_s=0.02)
    env = environment(arm, space="joint_position")
    goal = RESET_POSE + 0.15
    env.update_robot(np.append(goal, 1.0), "joint_position", "position", blocking=True)
    np.testing.assert_allclose(arm.q, goal, atol=0.01)
    assert len(arm.targets) > 20


def test_configurations_that_cannot_be_opened_say_why() -> None:
    with pytest.raises(RobotError, match="safety profile"):
        RobotConfig(safety="brave").profile()
    with pytest.raises(RobotError, match="KIND:DEVICE"):
        open_robot(RobotConfig(robot="172.16.0.2", cameras={"left": "webcam"}))
    with pytest.raises(RobotError, match="unknown driver"):
        open_robot(RobotConfig(robot="172.16.0.2", driver="polymetis"))  # type: ignore[arg-type]


def test_the_tool_decides_how_low_the_hand_may_go() -> None:
    assert RobotConfig(gripper="robotiq").profile().workspace.tool.length > 0.15
    assert RobotConfig(gripper="robotiq").profile().gripper == "continuous"
    assert RobotConfig(gripper="franka_hand").profile().gripper == "binary"
