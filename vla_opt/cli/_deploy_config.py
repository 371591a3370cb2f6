"""Keys of ``vla-opt deploy``, and opening what they name."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploy.client import ClientConfig
from deploy.droid import DROID_VIEWS, DroidRobot, Views, filter_report, robot_metadata
from deploy.executor import ExecutorConfig
from deploy.metadata import ServerMetadata
from deploy.robot import RobotConfig
from deploy.session import Stated
from vla_opt.cli.serve import _api_key


@dataclass(frozen=True, kw_only=True)
class DeployConfig:
    """A policy server, a robot, and what to do with them.

    Attributes:
        server: Address and deadlines of the policy server.
        api_key_file: File with the server's key; without it the environment variable
            VLA_OPT_API_KEY counts.
        policy: What the operator states of the policy where its server does not.
        robot: What to connect to; "sim" needs no hardware.
        action_space: What the robot takes actions for.
        views: Key of a request -> camera.
        image_size: Side of the pictures that are sent to a policy that states no size; pixels.
        executor: How chunks are played.
        prompt: The instruction; that of `task` if not given.
        task: Of a simulated robot: cube_to_bowl, cube_to_plate or cucumber_to_plate.
        episodes: How many.
        seed: Objects of simulated episode n stand as seed + n says.
        override_contract: Go on although policy and robot differ in control rate, gripper polarity
            or controller.
        rerun: Also write `episodes.rrd`, with pictures, for the viewer of the package rerun-sdk.
        output_dir: Where reports and logs go.
    """

    server: ClientConfig = field(default_factory=ClientConfig)
    api_key_file: Path | None = None
    policy: Stated = field(default_factory=Stated)
    robot: RobotConfig = field(default_factory=RobotConfig)
    action_space: str = "joint_velocity"
    views: dict[str, str] = field(default_factory=lambda: dict(DROID_VIEWS))
    image_size: int = 224
    executor: ExecutorConfig = field(default_factory=ExecutorConfig)
    prompt: str = ""
    task: str | None = None
    episodes: int = 1
    seed: int = 0
    override_contract: bool = False
    rerun: bool = False
    output_dir: Path = Path("runs/deploy")

    def client(self) -> ClientConfig:
        """The server's address with its key."""
        if self.server.api_key is not None:
            return self.server
        return dataclasses.replace(self.server, api_key=_api_key(self.api_key_file))

    def instruction(self) -> str:
        """What the policy is told.

        Raises:
            ConfigError: Nothing says it, or there is no such task.
        """
        from vla_opt.errors import ConfigError, nearest

        if self.task is not None:
            from deploy.sim.tasks import TASKS

            if self.task not in TASKS:
                raise ConfigError(f"--task={self.task} is not known.{nearest(self.task, TASKS)}")
            if not self.robot.simulated:
                raise ConfigError("--task is for a simulated robot: give --prompt instead.")
            return self.prompt or str(TASKS[self.task].instruction)
        if not self.prompt:
            raise ConfigError("Nothing says what to do: give --prompt='...' (or --task in sim).")
        return self.prompt


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A robot, ready.

    Attributes:
        env: `deploy.robot_env.RobotEnv`.
        robot: The same for an executor.
        says: What it does with an action.
    """

    env: Any
    robot: DroidRobot
    says: ServerMetadata


@contextlib.contextmanager
def open_robot(
    config: DeployConfig,
    *,
    read_only: bool = False,
    wrap: Callable[[Any], Any] | None = None,
    ready: Callable[[Opened], None] = lambda opened: None,
) -> Iterator[Opened]:
    """Connect to the robot.

    Args:
        config: What to connect to.
        read_only: Nothing moves; actions are judged by the safety filter alone.
        wrap: Makes another environment out of the opened one, for the executor.
        ready: Called with the opened robot before it is handed over.

    Raises:
        RobotError: It does not answer.
    """
    from deploy.robot_env import RobotEnv

    views = Views(cameras=config.views, image_size=config.image_size)
    space: Any = config.action_space
    with RobotEnv(space, "position", do_reset=False, robot=config.robot) as env:
        judge = filter_report(env) if read_only else None
        driven = env if wrap is None else wrap(env)
        opened = Opened(
            env=env,
            robot=DroidRobot(driven, env.robot.cameras, views, judge=judge),
            says=robot_metadata(env, controller_profile=env.robot.arm.profile.name, views=views),
        )
        ready(opened)
        yield opened
