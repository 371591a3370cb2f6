"""The FR3 as a robot of lerobot, for `lerobot-record`, `lerobot-teleoperate` and `lerobot-rollout`.

Give those commands ``--robot.discover_packages_path=deploy.lerobot_robot_fr3 --robot.type=fr3``.
"""

from deploy.lerobot_robot_fr3.config_fr3 import FR3Config
from deploy.lerobot_robot_fr3.fr3 import FR3

__all__ = ["FR3", "FR3Config"]
