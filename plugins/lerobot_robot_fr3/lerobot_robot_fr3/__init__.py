"""Imported by lerobot's commands: registers the robot type ``fr3``."""

import deploy.lerobot_robot_fr3  # noqa: F401
