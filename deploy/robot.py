"""The parts of a robot, opened together and closed together."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from deploy._workspace import Workspace
from deploy.cameras import GRABBERS, Camera, ThreadedCamera
from deploy.drivers import ArmDriver, DriverName, Realtime, open_arm
from deploy.errors import RobotError
from deploy.grippers import FrankaHand, Gripper, NoGripper, Robotiq2F85
from deploy.kinematics import FRANKA_HAND, ROBOTIQ_2F85
from deploy.safety import PROFILES, SafetyProfile

SIMULATED = "sim"


@dataclass(frozen=True, kw_only=True)
class RobotConfig:
    """What to connect to.

    Attributes:
        robot: Address of the arm's control box; "sim" starts a simulated arm, "sim:127.0.0.1"
            takes one that runs.
        driver: See `deploy.drivers.DRIVERS`.
        realtime: "enforce" needs a real-time kernel, as real arms do. Simulated ones never enforce.
        gripper: "franka_hand", "robotiq" or "none".
        gripper_port: Serial port of a Robotiq.
        cameras: Name -> "opencv:0", "realsense:SERIAL" ... (see `deploy.cameras.GRABBERS`). A
            simulated arm has its own.
        safety: Profile of the safety filter: "cautious" or "full".
        table_height: z of the table top in the base frame; m.
        workspace_lower: Least x, y, z of wrist and fingertips; m.
        workspace_upper: Greatest x, y, z.
        patience_s: Of a simulated arm: see `deploy.sim.physics.ArmPhysics`.
    """

    robot: str = SIMULATED
    driver: DriverName = "franka-rs"
    realtime: Realtime = "enforce"
    gripper: Literal["franka_hand", "robotiq", "none"] = "franka_hand"
    gripper_port: str = ""
    cameras: Mapping[str, str] = field(default_factory=dict)
    safety: str = "cautious"
    table_height: float = 0.0
    workspace_lower: tuple[float, float, float] = (0.1, -0.6, -0.2)
    workspace_upper: tuple[float, float, float] = (0.85, 0.6, 1.0)
    patience_s: float = 0.05

    @property
    def simulated(self) -> bool:
        """Whether there is no machine behind it."""
        return self.robot == SIMULATED or self.robot.startswith(SIMULATED + ":")

    def profile(self) -> SafetyProfile:
        """The safety profile with this robot's tool and table.

        Raises:
            RobotError: There is no profile of that name.
        """
        if self.safety not in PROFILES:
            raise RobotError(f"unknown safety profile {self.safety!r}; known: {sorted(PROFILES)}")
        workspace = Workspace(
            lower=self.workspace_lower,
            upper=self.workspace_upper,
            table_height=self.table_height,
            tool=ROBOTIQ_2F85 if self.gripper == "robotiq" else FRANKA_HAND,
        )
        streams: Literal["binary", "continuous"] = "continuous"
        if self.gripper == "franka_hand":
            streams = "binary"
        return dataclasses.replace(PROFILES[self.safety], workspace=workspace, gripper=streams)


class Robot:
    """An arm, a gripper and cameras.

    Args:
        arm: The driver.
        gripper: The gripper.
        cameras: Name -> camera.
        profile: Bounds of the safety filter.
        scene: What a simulation knows beyond it; None for a real robot.
        resources: Closed last, in reverse order.
    """

    def __init__(
        self,
        *,
        arm: ArmDriver,
        gripper: Gripper,
        cameras: Mapping[str, Camera],
        profile: SafetyProfile,
        scene: Any = None,
        resources: contextlib.ExitStack | None = None,
    ) -> None:
        self.arm, self.gripper, self.cameras = arm, gripper, dict(cameras)
        self.profile, self.scene = profile, scene
        self._resources = resources or contextlib.ExitStack()

    def close(self) -> None:
        """Hang up everywhere; the arm holds itself."""
        self._resources.close()


def open_robot(config: RobotConfig) -> Robot:
    """Connect to everything a configuration names; nothing stays open if a part fails.

    Raises:
        RobotError: A part does not answer, or a name is unknown; says what to do.
    """
    with contextlib.ExitStack() as stack:
        host, scene = config.robot, None
        cameras: dict[str, Camera] = {}
        if config.simulated:
            host, scene, cameras = _open_simulation(config, stack)
        else:
            cameras = _open_cameras(config.cameras, stack)
        realtime: Realtime = "ignore" if config.simulated else config.realtime
        arm = open_arm(host, config.driver, realtime=realtime)
        stack.callback(arm.close)
        gripper = _open_gripper(config, arm)
        stack.callback(gripper.close)
        return Robot(
            arm=arm,
            gripper=gripper,
            cameras=cameras,
            profile=config.profile(),
            scene=scene,
            resources=stack.pop_all(),
        )


def _open_simulation(
    config: RobotConfig, stack: contextlib.ExitStack
) -> tuple[str, Any, dict[str, Camera]]:
    from deploy.sim.cameras import SceneCameras
    from deploy.sim.link import SceneLink
    from deploy.sim.process import SimulatedArm

    _, _, host = config.robot.partition(":")
    if not host:
        host = stack.enter_context(SimulatedArm(patience_s=config.patience_s)).host
    link = SceneLink(host)
    stack.callback(link.close)
    cameras = SceneCameras(link)
    stack.callback(cameras.close)
    return host, link, dict(cameras.cameras())


def _open_cameras(wanted: Mapping[str, str], stack: contextlib.ExitStack) -> dict[str, Camera]:
    cameras: dict[str, Camera] = {}
    for name, text in wanted.items():
        kind, _, device = text.partition(":")
        if kind not in GRABBERS or not device:
            raise RobotError(
                f"camera {name!r}: expected KIND:DEVICE with a kind of {sorted(GRABBERS)}, "
                f"got {text!r}"
            )
        grabber = GRABBERS[kind](int(device) if kind == "opencv" and device.isdigit() else device)
        cameras[name] = ThreadedCamera(name, grabber)
        stack.callback(cameras[name].close)
    return cameras


def _open_gripper(config: RobotConfig, arm: Any) -> Gripper:
    if config.gripper == "none":
        return NoGripper()
    if config.gripper == "robotiq":
        return Robotiq2F85(config.gripper_port)
    return FrankaHand(arm.open_hand())
