"""The simulated Franka Hand: commands take as long as the fingers do, in robot time."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from deploy.sim.physics import FINGER_TRAVEL, ArmPhysics

MAX_WIDTH = 2 * FINGER_TRAVEL
_MAX_FORCE = 70.0  # N
_MOVE_FORCE = 30.0  # N
_STILL = 2e-4  # m of travel that counts as none
_STILL_FOR = 0.15  # s of robot time
_GIVE_UP = 6.0  # s of robot time


@dataclass(frozen=True, kw_only=True)
class HandState:
    """What the hand's state stream carries; widths in m."""

    width: float
    max_width: float
    is_grasped: bool
    temperature: int = 30


class SimulatedHand:
    """What franka-sim's gripper server asks of a gripper."""

    def __init__(self, physics: ArmPhysics) -> None:
        self._physics = physics
        self._grasped = False
        self._stop = threading.Event()

    def homing(self) -> bool:
        """Open fully."""
        return self.move(MAX_WIDTH, 0.1)

    def move(self, width: float, speed: float) -> bool:
        """Move the fingers to `width` (m) at `speed` (m/s); waits until they are there."""
        _check_width(width)
        self._grasped = False
        self._drive(width, speed, _MOVE_FORCE)
        return True

    def grasp(
        self, width: float, epsilon_inner: float, epsilon_outer: float, speed: float, force: float
    ) -> bool:
        """Close with `force` (N) until the fingers stall; True if at about `width`."""
        _check_width(width)
        final = self._drive(0.0, speed, min(force, _MAX_FORCE))
        self._grasped = width - epsilon_inner < final < width + epsilon_outer
        return self._grasped

    def stop(self) -> bool:
        """Stay where the fingers are."""
        self._stop.set()
        self._physics.finger_goal = self._physics.finger_width() / 2
        return True

    def get_state(self) -> HandState:
        """Width and grasp of this moment."""
        return HandState(
            width=min(max(self._physics.finger_width(), 0.0), MAX_WIDTH),
            max_width=MAX_WIDTH,
            is_grasped=self._grasped,
        )

    def _drive(self, width: float, speed: float, force: float) -> float:
        """Command a width and wait, in robot time, until the fingers rest; the width then."""
        physics = self._physics
        self._stop.clear()
        physics.finger_speed, physics.finger_force = max(speed, 0.005), force
        physics.finger_goal = width / 2
        begin = still_since = physics.time
        last = physics.finger_width()
        while not self._stop.is_set() and physics.running:
            time.sleep(0.005)
            now, current = physics.time, physics.finger_width()
            if abs(current - last) > _STILL:
                last, still_since = current, now
            if now - still_since > _STILL_FOR or now - begin > _GIVE_UP:
                break
        return physics.finger_width()


def _check_width(width: float) -> None:
    if not 0.0 <= width <= MAX_WIDTH:
        raise ValueError(f"expected a width of 0 to {MAX_WIDTH} m, got {width}")
