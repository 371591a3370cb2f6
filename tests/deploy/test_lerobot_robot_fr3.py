"""The FR3 under lerobot's own discovery and factory."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from arms import IdealArm, IdealGripper, StillCamera

from deploy.errors import RobotDisconnectedError
from deploy.limits import RESET_POSE
from deploy.robot import Robot
from deploy.robot_env import RobotEnv
from deploy.safety import CAUTIOUS


@pytest.fixture
def robot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """As `--robot.type=fr3 --robot.discover_packages_path=...` makes it, on an ideal arm."""
    from lerobot.configs.parser import load_plugin
    from lerobot.robots import RobotConfig, make_robot_from_config

    load_plugin("deploy.lerobot_robot_fr3")
    choice = RobotConfig.get_choice_class("fr3")
    made = make_robot_from_config(choice(id="test", calibration_dir=tmp_path, picture_height=32))
    cameras = {n: StillCamera(time.time(), (18, 32)) for n in made.config.camera_names()}
    parts = Robot(
        arm=IdealArm(cycle_s=1 / 15), gripper=IdealGripper(), cameras=cameras, profile=CAUTIOUS
    )

    def on_ideal_arm(*arguments: object, **options: object) -> RobotEnv:
        return RobotEnv(*arguments, **{**options, "robot": parts})  # type: ignore[arg-type]

    monkeypatch.setattr("deploy.lerobot_robot_fr3.fr3.RobotEnv", on_ideal_arm)
    return made


def test_observations_and_actions_have_the_announced_features(robot) -> None:  # type: ignore[no-untyped-def]
    assert set(robot.cameras) == {"exterior_left", "exterior_right", "wrist"}
    robot.connect()
    assert set(robot.cameras) == set(robot.config.camera_names())
    seen = robot.get_observation()
    assert set(seen) == set(robot.observation_features)
    for name, kind in robot.observation_features.items():
        if kind is float:
            assert isinstance(seen[name], float)
        else:
            assert seen[name].shape == kind
            assert seen[name].dtype == np.uint8
    assert seen["wrist"][16, 160].tolist() == [200, 0, 0]  # RGB, between the black bars
    assert seen["joint_4.pos"] == pytest.approx(RESET_POSE[3])
    robot.disconnect()


def test_an_action_returns_what_was_really_sent(robot) -> None:  # type: ignore[no-untyped-def]
    robot.connect()
    wish = dict(zip(robot.action_features, [*(RESET_POSE + 1.0), 1.0], strict=True))
    sent = robot.send_action(wish)
    moved = np.array(list(sent.values()))[:7] - RESET_POSE
    assert np.all(moved > 0)
    assert np.abs(moved).max() <= CAUTIOUS.max_step + 1e-9
    assert sent["gripper.pos"] == 1.0


def test_a_robot_that_is_not_connected_says_so(robot) -> None:  # type: ignore[no-untyped-def]
    assert not robot.is_connected
    with pytest.raises(RobotDisconnectedError, match=r"connect\(\)"):
        robot.get_observation()
