"""An FR3 with lerobot's interface: joint positions in, joint positions out."""

from __future__ import annotations

from typing import Any

import numpy as np
from lerobot.robots import Robot as LeRobot

from deploy.errors import RobotDisconnectedError
from deploy.images import resize_with_pad
from deploy.lerobot_robot_fr3.config_fr3 import FR3Config
from deploy.limits import JOINTS
from deploy.robot_env import RobotEnv

NAMES = (*(f"joint_{i}.pos" for i in range(1, JOINTS + 1)), "gripper.pos")
"""rad, and 0 open .. 1 closed."""


class FR3(LeRobot):  # type: ignore[misc]  # lerobot has no types
    """See `deploy.robot_env.RobotEnv`; every action passes the safety filter.

    Args:
        config: See `FR3Config`.
    """

    config_class = FR3Config
    name = "fr3"

    def __init__(self, config: FR3Config) -> None:
        super().__init__(config)
        self.config = config
        self._env: RobotEnv | None = None

    @property
    def observation_features(self) -> dict[str, Any]:
        """Name -> float, and camera -> (height, width, 3)."""
        shape = (self.config.picture_height, self.config.picture_width, 3)
        return {**dict.fromkeys(NAMES, float), **dict.fromkeys(self.config.camera_names(), shape)}

    @property
    def action_features(self) -> dict[str, Any]:
        """Name -> float: joint targets in rad and the gripper."""
        return dict.fromkeys(NAMES, float)

    @property
    def cameras(self) -> dict[str, Any]:
        """Name -> camera, None before `connect`; lerobot's commands count them."""
        if self._env is None:
            return dict.fromkeys(self.config.camera_names())
        return dict(self._env.robot.cameras)

    @property
    def is_connected(self) -> bool:
        """Whether `connect` was called."""
        return self._env is not None

    def connect(self, calibrate: bool = True) -> None:
        """Connect, and move to the start if the configuration says so.

        Raises:
            RobotError: The robot does not answer; says what to do.
        """
        self._env = RobotEnv(
            "joint_position",
            "position",
            do_reset=self.config.reset_on_connect,
            robot=self.config.to_robot(),
        )

    @property
    def is_calibrated(self) -> bool:
        """The arm calibrates itself."""
        return True

    def calibrate(self) -> None:
        """Nothing to do."""

    def configure(self) -> None:
        """Nothing to do: the driver has set the robot up."""

    def get_observation(self) -> dict[str, Any]:
        """Joint positions, gripper and pictures (RGB)."""
        seen = self._connected().get_observation()
        words = seen["robot_state"]
        state = [*words["joint_positions"], words["gripper_position"]]
        return {**dict(zip(NAMES, map(float, state), strict=True)), **self._pictures(seen["image"])}

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        """Send joint targets; returns what the safety filter made of them."""
        wish = np.array([float(action[name]) for name in NAMES])
        executed = self._connected().step(wish)["executed_action"]
        return dict(zip(NAMES, map(float, executed), strict=True))

    def disconnect(self) -> None:
        """Hang up; the arm holds itself."""
        env, self._env = self._env, None
        if env is not None:
            env.close()

    def _connected(self) -> RobotEnv:
        if self._env is None:
            raise RobotDisconnectedError("the FR3 is not connected: call connect() first")
        return self._env

    def _pictures(self, images: dict[str, Any]) -> dict[str, Any]:
        height, width = self.config.picture_height, self.config.picture_width
        return {
            name: resize_with_pad(
                np.ascontiguousarray(images[f"{name}_left"][..., 2::-1]), height, width
            )
            for name in self.config.camera_names()
        }
