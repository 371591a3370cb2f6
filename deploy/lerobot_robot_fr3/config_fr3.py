"""What `--robot.*` may say of an FR3."""

from dataclasses import dataclass, field

from lerobot.robots import RobotConfig as LeRobotConfig

from deploy.robot import RobotConfig
from deploy.sim.scene import CAMERAS, CAPTURE_SIZE


@LeRobotConfig.register_subclass("fr3")
@dataclass(kw_only=True)
class FR3Config(LeRobotConfig):  # type: ignore[misc]  # lerobot has no types
    """An FR3 under lerobot's commands.

    Attributes:
        robot: Address of the arm's control box, or "sim"; see `deploy.robot.RobotConfig`.
        driver: See `RobotConfig`.
        realtime: See `RobotConfig`.
        gripper: See `RobotConfig`.
        gripper_port: See `RobotConfig`.
        views: Camera -> "opencv:0", "realsense:SERIAL" ...; a simulated arm has its own.
        safety: See `RobotConfig`.
        table_height: See `RobotConfig`.
        picture_height: Pictures are scaled to this height; pixels.
        picture_width: And to this width, with black bars where the shape differs.
        reset_on_connect: Move to the start when connecting.
        patience_s: See `RobotConfig`.
    """

    robot: str = "sim"
    driver: str = "franka-rs"
    realtime: str = "enforce"
    gripper: str = "franka_hand"
    gripper_port: str = ""
    views: dict[str, str] = field(default_factory=dict)
    safety: str = "cautious"
    table_height: float = 0.0
    picture_height: int = CAPTURE_SIZE[0]
    picture_width: int = CAPTURE_SIZE[1]
    reset_on_connect: bool = True
    patience_s: float = 0.05

    def to_robot(self) -> RobotConfig:
        """The same as `deploy` has it."""
        return RobotConfig(
            robot=self.robot,
            driver=self.driver,  # type: ignore[arg-type]  # checked where it is opened
            realtime=self.realtime,  # type: ignore[arg-type]
            gripper=self.gripper,  # type: ignore[arg-type]
            gripper_port=self.gripper_port,
            cameras=self.views,
            safety=self.safety,
            table_height=self.table_height,
            patience_s=self.patience_s,
        )

    def camera_names(self) -> tuple[str, ...]:
        """Names of the cameras, connected or not."""
        return CAMERAS if self.to_robot().simulated else tuple(self.views)
