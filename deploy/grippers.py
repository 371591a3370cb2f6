"""Grippers behind one interface: 0 is open, 1 is closed, commands return at once.

A command is sent only when it changes something: the Franka Hand finishes one motion before it
takes the next, and would otherwise fall ever further behind.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any, Protocol

from deploy.drivers import needed
from deploy.errors import RobotDisconnectedError, RobotError

logger = logging.getLogger(__name__)

_READ_EVERY = 0.01  # s between two readings of a hand; each waits for the hand's next state


class Gripper(Protocol):
    """What an environment asks of a gripper."""

    def position(self) -> float:
        """Measured position, 0 open, 1 closed."""

    def move_to(self, position: float) -> None:
        """Start moving; returns at once. A newer command replaces one that waits."""

    def wait(self, timeout_s: float = 10.0) -> None:
        """Until the last command is carried out.

        Raises:
            RobotError: It failed, or took longer.
        """

    def close(self) -> None:
        """Hang up; the gripper keeps what it holds."""


class NoGripper:
    """An arm without one: always open."""

    def position(self) -> float:
        """See `Gripper`."""
        return 0.0

    def move_to(self, position: float) -> None:
        """See `Gripper`."""

    def wait(self, timeout_s: float = 10.0) -> None:
        """See `Gripper`."""

    def close(self) -> None:
        """See `Gripper`."""


class LatestCommand:
    """Carries out the newest command on a thread of its own; older ones that wait are dropped.

    Args:
        execute: Blocks until a position is reached, or raises.
    """

    def __init__(self, execute: Callable[[float], None]) -> None:
        self._execute = execute
        self._changed = threading.Condition()
        self._wanted: float | None = None
        self._sent: float | None = None
        self._busy = self._closed = False
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def send(self, position: float) -> None:
        """Hand over a position; the same as before is nothing.

        Raises:
            RobotError: An earlier command failed.
        """
        with self._changed:
            self._raise_error()
            if position == self._sent and self._wanted is None:
                return
            self._wanted = self._sent = position
            self._changed.notify_all()

    def wait(self, timeout_s: float) -> None:
        """See `Gripper.wait`."""
        with self._changed:
            done = self._changed.wait_for(self._idle, timeout_s)
            self._raise_error()
        if not done:
            raise RobotError(f"the gripper did not get where it should within {timeout_s:g} s")

    def close(self) -> None:
        """End the thread after the command in progress."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(5)

    def _idle(self) -> bool:
        return self._wanted is None and not self._busy

    def _raise_error(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            self._sent = None  # the next command is sent whatever it is
            raise RobotError(f"the gripper failed: {error}") from error

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._wanted is not None or self._closed)
                if self._wanted is None:
                    return
                position, self._wanted, self._busy = self._wanted, None, True
            error: Exception | None = None
            try:
                self._execute(position)
            except Exception as caught:  # belongs to whoever asks next, not to this thread
                error = caught
            with self._changed:
                self._busy, self._error = False, error
                self._changed.notify_all()


class HandConnection(Protocol):
    """A driver's own object for the Franka Hand; see `open_hand` of the drivers. Widths in m."""

    def widths(self) -> tuple[float, float]:
        """Present and greatest width."""

    def move(self, width: float, speed: float) -> None:
        """Move and wait."""

    def grasp(self, speed: float, force: float) -> None:
        """Close until the fingers stall, on whatever they meet."""


class FrankaHand:
    """The Franka Hand. Closing grasps: the fingers push on whatever they meet, or on each other.

    Args:
        connection: From a driver.
        speed: Of the fingers; m/s.
        force: Of a grasp; N.
    """

    _CLOSED = 0.5  # positions beyond it grasp, others move

    def __init__(
        self, connection: HandConnection, *, speed: float = 0.1, force: float = 30.0
    ) -> None:
        self._hand, self._speed, self._force = connection, speed, force
        self._widths = connection.widths()
        self._failure: RobotError | None = None
        self._closed = threading.Event()
        self._commands = LatestCommand(self._execute)
        self._reader = threading.Thread(target=self._read_on, daemon=True)
        self._reader.start()

    def position(self) -> float:
        """See `Gripper.position`. The newest that was read: asking the hand waits for its next
        state, which a control loop cannot."""
        if self._failure is not None:
            raise self._failure
        width, greatest = self._widths
        return min(max(1.0 - width / greatest, 0.0), 1.0)

    def move_to(self, position: float) -> None:
        """See `Gripper.move_to`."""
        self._commands.send(position)

    def wait(self, timeout_s: float = 10.0) -> None:
        """See `Gripper.wait`."""
        self._commands.wait(timeout_s)

    def close(self) -> None:
        """See `Gripper.close`."""
        self._closed.set()
        self._commands.close()
        self._reader.join(5)

    def _read_on(self) -> None:
        while not self._closed.wait(_READ_EVERY):
            try:
                self._widths = self._hand.widths()
            except RobotError as error:
                self._failure = error
                return

    def _execute(self, position: float) -> None:
        if position > self._CLOSED:
            self._hand.grasp(self._speed, self._force)
        else:
            self._hand.move(self._widths[1] * (1.0 - position), self._speed)


class Robotiq2F85:
    """A Robotiq 2F-85 on a serial line: Modbus RTU, 115200 baud, 8N1, device 9.

    Registers as in the manufacturer's manual (2F-85 & 2F-140, section 4): one block of three holds
    action, position, speed and force; another the state.

    Args:
        port: For example "/dev/ttyUSB0"; by-id names survive a reboot.
        speed: 0 to 1 of full speed.
        force: 0 to 1 of full force.
        instrument: An object with minimalmodbus' `read_registers` and `write_registers`; None opens
            `port`.

    Raises:
        RobotError: minimalmodbus is not installed, or nothing answers.
    """

    _ACTION, _STATE = 1000, 2000
    _ACTIVATE, _GO = 0x01, 0x08
    _ACTIVATED, _MOVING = 0x30, 0

    def __init__(
        self, port: str, *, speed: float = 0.3, force: float = 0.1, instrument: Any = None
    ) -> None:
        self._line = instrument if instrument is not None else _modbus(port)
        self._port = port
        self._speed, self._force = round(255 * speed), round(255 * force)
        self._lock = threading.Lock()
        self._write(0, 0)
        self._write(self._ACTIVATE, 0)
        self._await(lambda status, _: status & self._ACTIVATED == self._ACTIVATED, "activation")
        self._commands = LatestCommand(self._execute)

    def position(self) -> float:
        """See `Gripper.position`."""
        return self._read()[2] / 255

    def move_to(self, position: float) -> None:
        """See `Gripper.move_to`."""
        self._commands.send(position)

    def wait(self, timeout_s: float = 10.0) -> None:
        """See `Gripper.wait`."""
        self._commands.wait(timeout_s)

    def close(self) -> None:
        """See `Gripper.close`."""
        self._commands.close()

    def _execute(self, position: float) -> None:
        goal = round(255 * min(max(position, 0.0), 1.0))
        self._write(self._ACTIVATE | self._GO, goal)
        self._await(lambda status, echo: echo == goal and status >> 6 != self._MOVING, "a move")

    def _await(self, reached: Callable[[int, int], bool], what: str, polls: int = 400) -> None:
        pause = threading.Event()
        for _ in range(polls):
            status, echo, _, fault = self._read()
            if fault >= 0x08:  # smaller ones are notes about the order of commands
                raise RobotError(f"the Robotiq gripper at {self._port} reports fault {fault:#04x}")
            if reached(status, echo):
                return
            pause.wait(0.02)
        raise RobotError(f"the Robotiq gripper at {self._port} did not finish {what}")

    def _write(self, action: int, position: int) -> None:
        registers = [action << 8, position, (self._speed << 8) | self._force]
        with self._lock:
            self._try(lambda: self._line.write_registers(self._ACTION, registers))

    def _read(self) -> tuple[int, int, int, int]:
        """Status, echo of the wanted position, measured position, fault."""
        with self._lock:
            first, second, third = self._try(lambda: self._line.read_registers(self._STATE, 3))
        return first >> 8, second & 0xFF, third >> 8, second >> 8

    def _try(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except (OSError, ValueError) as error:  # minimalmodbus' errors are both
            raise RobotDisconnectedError(
                f"the Robotiq gripper at {self._port} does not answer: {error}"
            ) from error


def _modbus(port: str) -> Any:
    module = needed("minimalmodbus", "minimalmodbus")
    try:
        line = module.Instrument(port, 9)
    except OSError as error:
        raise RobotError(f"cannot open the serial port {port}: {error}") from error
    line.serial.baudrate = 115200
    line.serial.timeout = 0.2
    return line
