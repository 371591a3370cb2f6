"""An arm that goes where it is told, with a clock that moves when somebody reads it."""

from __future__ import annotations

import numpy as np

from deploy.cameras import Picture
from deploy.drivers import ArmState
from deploy.drivers.profiles import FRANKA_RS
from deploy.kinematics import flange_pose
from deploy.limits import RESET_POSE, Array


class IdealArm:
    """Follows its target by a share at every reading, which is one control cycle of `cycle_s`."""

    profile = FRANKA_RS

    def __init__(
        self, q: Array = RESET_POSE, *, follow: float = 1.0, cycle_s: float = 0.01
    ) -> None:
        self.q, self.target = np.array(q), np.array(q)
        self.follow, self.cycle_s, self.time = follow, cycle_s, 0.0
        self.mode, self.errors = "idle", ()
        self.targets: list[Array] = []
        self.halts: list[bool] = []
        self.stuck = False

    def read(self) -> ArmState:
        before = self.q
        if not self.stuck:
            self.q = self.q + self.follow * (self.target - self.q)
        self.time += self.cycle_s
        return ArmState(
            q=self.q.copy(),
            dq=(self.q - before) / self.cycle_s,
            torque=np.zeros(7),
            commanded_torque=np.zeros(7),
            pose=flange_pose(self.q),
            time=self.time,
            success_rate=1.0,
            mode=self.mode,
            errors=self.errors,
        )

    def move_to(self, q: Array) -> None:
        self.mode = "move"
        self.target = np.array(q)
        self.targets.append(self.target)

    def halt(self, *, clear_errors: bool = False) -> None:
        self.mode = "idle"
        self.halts.append(clear_errors)

    def close(self) -> None: ...


class IdealGripper:
    """Is at once where it is sent."""

    def __init__(self) -> None:
        self.commands: list[float] = []
        self.at = 0.0

    def position(self) -> float:
        return self.at

    def move_to(self, position: float) -> None:
        self.commands.append(position)
        self.at = position

    def wait(self, timeout_s: float = 10.0) -> None: ...

    def close(self) -> None: ...


class StillCamera:
    """Shows one picture, taken when one says."""

    def __init__(self, captured: float, shape: tuple[int, int] = (4, 6)) -> None:
        image = np.zeros((*shape, 3), np.uint8)
        image[..., 0] = 200  # red
        self.picture = Picture(image=image, captured=captured, received=captured, number=1)

    def latest(self) -> Picture:
        return self.picture

    def close(self) -> None: ...
