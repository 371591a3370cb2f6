"""Grippers take the newest command, once, and never block the caller."""

from __future__ import annotations

import threading
import time

import pytest

from deploy.errors import RobotDisconnectedError, RobotError
from deploy.grippers import FrankaHand, LatestCommand, Robotiq2F85

LONG_S = 30.0  # not to be reached; a machine with other work is slow


class Gate:
    """Executes commands one at a time, when one lets it."""

    def __init__(self) -> None:
        self.done: list[float] = []
        self.started, self.go = threading.Event(), threading.Semaphore(0)

    def __call__(self, position: float) -> None:
        self.started.set()
        assert self.go.acquire(timeout=LONG_S)
        self.done.append(position)


def test_commands_that_are_overtaken_are_never_executed() -> None:
    gate = Gate()
    commands = LatestCommand(gate)
    commands.send(1.0)
    assert gate.started.wait(LONG_S)
    for position in (0.0, 0.3, 0.6):
        commands.send(position)
    gate.go.release(2)
    commands.wait(LONG_S)
    assert gate.done == [1.0, 0.6]
    commands.close()


def test_the_same_position_is_sent_once() -> None:
    done: list[float] = []
    commands = LatestCommand(done.append)
    for _ in range(5):
        commands.send(1.0)
        commands.wait(LONG_S)
    assert done == [1.0]
    commands.close()


def test_a_failure_is_told_to_the_next_caller_and_the_command_can_be_repeated() -> None:
    attempts: list[float] = []

    def fail_once(position: float) -> None:
        attempts.append(position)
        if len(attempts) == 1:
            raise OSError("no power")

    commands = LatestCommand(fail_once)
    commands.send(1.0)
    with pytest.raises(RobotError, match="no power"):
        commands.wait(LONG_S)
    commands.send(1.0)
    commands.wait(LONG_S)
    assert attempts == [1.0, 1.0]
    commands.close()


def test_waiting_for_a_command_that_never_ends_is_an_error() -> None:
    gate = Gate()
    commands = LatestCommand(gate)
    commands.send(1.0)
    with pytest.raises(RobotError, match="did not get"):
        commands.wait(0.05)
    gate.go.release(1)
    commands.close()


class HandConnection:
    def __init__(self) -> None:
        self.width, self.calls = 0.08, []  # type: ignore[var-annotated]

    def widths(self) -> tuple[float, float]:
        return self.width, 0.08

    def move(self, width: float, speed: float) -> None:
        self.width = width
        self.calls.append(("move", width, speed))

    def grasp(self, speed: float, force: float) -> None:
        self.width = 0.02
        self.calls.append(("grasp", speed, force))


def test_the_franka_hand_grasps_to_close_and_moves_to_open() -> None:
    connection = HandConnection()
    hand = FrankaHand(connection, speed=0.05, force=20.0)
    assert hand.position() == 0.0
    hand.move_to(1.0)
    hand.wait(LONG_S)
    deadline = time.monotonic() + LONG_S
    while hand.position() != 0.75 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert hand.position() == 0.75  # an object is in between
    hand.move_to(0.0)
    hand.wait(LONG_S)
    assert connection.calls == [("grasp", 0.05, 20.0), ("move", 0.08, 0.05)]
    hand.close()


def test_a_lost_hand_is_told_to_whoever_asks_for_its_position() -> None:
    class Lost(HandConnection):
        def widths(self) -> tuple[float, float]:
            if self.calls:
                raise RobotDisconnectedError("lost the Franka Hand")
            return super().widths()

    connection = Lost()
    hand = FrankaHand(connection)
    connection.calls.append("cable")
    hand._reader.join(LONG_S)
    with pytest.raises(RobotDisconnectedError, match="lost the Franka Hand"):
        hand.position()
    hand.close()


class RobotiqRegisters:
    """The gripper's side of the manual: registers 1000-1002 in, 2000-2002 out."""

    def __init__(self, stuck_at: int | None = None, fault: int = 0, silent: bool = False) -> None:
        self.activated, self.position, self.echo = False, 0, 0
        self.stuck_at, self.fault, self.silent = stuck_at, fault, silent
        self.writes: list[list[int]] = []
        self.polls = 0

    def write_registers(self, address: int, values: list[int]) -> None:
        assert address == 1000
        assert len(values) == 3
        if self.silent:
            raise OSError("no communication")
        self.writes.append(values)
        action = values[0] >> 8
        self.activated = bool(action & 0x01)
        if action & 0x08:
            self.echo, self.polls = values[1] & 0xFF, 0

    def read_registers(self, address: int, count: int) -> list[int]:
        assert (address, count) == (2000, 3)
        self.polls += 1
        moving = self.polls <= 2
        if not moving:
            self.position = self.echo if self.stuck_at is None else self.stuck_at
        status = (0x31 if self.activated else 0) | (0x08 if self.echo else 0)
        status |= 0 if moving else (0xC0 if self.stuck_at is None else 0x80)
        return [status << 8, (self.fault << 8) | self.echo, self.position << 8]


def test_a_robotiq_is_activated_and_moves_where_it_is_sent() -> None:
    registers = RobotiqRegisters()
    gripper = Robotiq2F85("test", speed=1.0, force=0.5, instrument=registers)
    assert registers.writes[:2] == [[0, 0, 0xFF80], [0x0100, 0, 0xFF80]]
    gripper.move_to(1.0)
    gripper.wait(LONG_S)
    assert gripper.position() == 1.0
    assert registers.writes[2] == [0x0900, 255, 0xFF80]
    gripper.close()


def test_a_robotiq_that_holds_an_object_has_finished() -> None:
    gripper = Robotiq2F85("test", instrument=RobotiqRegisters(stuck_at=120))
    gripper.move_to(1.0)
    gripper.wait(LONG_S)
    assert gripper.position() == pytest.approx(120 / 255)
    gripper.close()


def test_faults_and_silence_of_a_robotiq_are_named() -> None:
    with pytest.raises(RobotError, match="0x0a"):
        Robotiq2F85("ttyX", instrument=RobotiqRegisters(fault=0x0A))
    with pytest.raises(RobotDisconnectedError, match="ttyX"):
        Robotiq2F85("ttyX", instrument=RobotiqRegisters(silent=True))
