"""Clients of Franka's protocol against the simulated arm: real sockets, both enforcements on.

Every bound is in robot time, which stretches when the machine has other work.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from undisturbed import undisturbed

from deploy._schedule import Schedule
from deploy.drivers import ArmDriver, open_arm
from deploy.errors import RobotDisconnectedError, RobotError
from deploy.kinematics import flange_pose
from deploy.limits import MAX_JOINT_DELTA, MAX_SPEED, RESET_POSE, Array
from deploy.motions import follow, plan
from deploy.safety import FULL, FilterState, filter_action
from deploy.sim.clock import RobotClock
from deploy.sim.link import SceneLink
from deploy.sim.process import SimulatedArm
from deploy.sim.server import build, check_loopback

pytest.importorskip("franka")
PERIOD = 1 / 15
PATIENCE_S = 0.2


@pytest.fixture(scope="module")
def simulation() -> Iterator[SimulatedArm]:
    with SimulatedArm(patience_s=PATIENCE_S) as arm:
        yield arm


@pytest.fixture
def link(simulation: SimulatedArm) -> Iterator[SceneLink]:
    connection = simulation.link()
    yield connection
    connection.close()


@pytest.fixture
def arm(simulation: SimulatedArm) -> Iterator[ArmDriver]:
    driver = open_arm(simulation.host, realtime="ignore")
    yield driver
    driver.close()


def await_robot_time(link: SceneLink, seconds: float) -> float:
    """Wait; the greatest joint speed seen meanwhile, rad/s."""
    state = link.state()
    end, fastest = state.time + seconds, 0.0
    while state.time < end:
        fastest = max(fastest, float(np.abs(state.speed).max()))
        time.sleep(0.005)
        state = link.state()
    return fastest


class WatchingClock(RobotClock):
    """The robot's clock; each look at it also sees the joints' speed."""

    fastest: Array = np.zeros(7)

    def now(self) -> float:
        state = self._link.state()
        self.fastest = np.maximum(self.fastest, np.abs(state.speed))
        return state.time


def streamed(
    simulation: SimulatedArm, link: SceneLink, seconds: float
) -> tuple[int, list[float], Array]:
    """Random velocities with jumps at chunk edges, filtered, 15 per second of robot time.

    Returns:
        Steps, the share of control cycles on time at each, and the joints' greatest speeds.
    """
    rng = np.random.default_rng(0)
    arm, clock = open_arm(simulation.host, realtime="ignore"), WatchingClock(link)
    schedule = Schedule(PERIOD, clock)
    try:
        rates, state = [], FilterState.at_rest(arm.read().q)
        while schedule.wait() - schedule.times[0] < seconds - PERIOD / 2:
            if len(rates) % 8 == 0:  # where one chunk meets the next
                velocity = np.append(rng.uniform(-0.3, 0.3, 7), 0.0)
            measured = arm.read()
            done = filter_action(
                velocity, state=state, measured=measured.q, measured_gripper=0.0, profile=FULL
            )
            arm.move_to(done.state.target)
            state = done.state
            rates.append(measured.success_rate)
        assert arm.read().mode == "move", "no reflex"
    finally:
        arm.close()
    return len(rates), rates[3:], clock.fastest


def test_two_independent_clients_read_the_same_joints_and_pose(simulation: SimulatedArm) -> None:
    official = pytest.importorskip("pylibfranka")
    driver = open_arm(simulation.host, realtime="ignore")
    first = driver.read()
    driver.close()
    robot = official.Robot(simulation.host, official.RealtimeConfig.kIgnore)
    second = robot.read_once()
    pose = np.array(second.O_T_EE).reshape(4, 4).T
    np.testing.assert_allclose(first.q, second.q, atol=1e-4)
    np.testing.assert_allclose(first.pose, pose, atol=1e-4)
    np.testing.assert_allclose(first.pose, flange_pose(first.q), atol=1e-6)
    assert np.abs(first.q - RESET_POSE).max() < 0.01
    del robot


def test_streaming_at_15_hz_meets_no_reflex(simulation: SimulatedArm, link: SceneLink) -> None:
    steps, rates, fastest = undisturbed(lambda: streamed(simulation, link, 3.0))
    assert steps >= 44
    assert np.mean(rates) >= 0.98
    assert 0.05 < fastest.max() < 1.5


@pytest.mark.slow
def test_streaming_for_30_seconds_meets_no_reflex(
    simulation: SimulatedArm, link: SceneLink
) -> None:
    steps, rates, fastest = undisturbed(lambda: streamed(simulation, link, 30.0))
    assert 445 <= steps <= 450
    assert np.mean(rates) >= 0.98
    assert np.all(fastest < MAX_SPEED)
    print(f"{steps} of 450 steps, success rate mean {np.mean(rates):.4f}, least {min(rates):.2f}")


def test_negative_control_a_position_jump_per_tick_is_a_reflex(simulation: SimulatedArm) -> None:
    """What must fail: else the enforcement is off and every other test here proves nothing."""
    official = pytest.importorskip("pylibfranka")
    robot = official.Robot(simulation.host, official.RealtimeConfig.kIgnore)
    control = robot.start_joint_position_control(official.ControllerMode.JointImpedance)
    state, _ = control.readOnce()
    q = np.array(state.q_d)

    def jump_once_per_tick() -> None:
        for cycle in range(400):
            control.readOnce()
            q[0] += 0.3 * MAX_JOINT_DELTA * (cycle % 67 == 20)  # a whole control step at once
            control.writeOnce(official.JointPositions(q.tolist()))

    with pytest.raises(official.ControlException, match=r"discontinuity|velocity"):
        jump_once_per_tick()
    robot.automatic_error_recovery()


def test_a_planned_motion_arrives_and_keeps_the_speed_it_planned(
    arm: ArmDriver, link: SceneLink
) -> None:
    start = arm.read().q
    goal = start + np.array([0.1, 0.05, 0, 0.05, 0, 0, 0.1])
    path = plan(start, goal, FULL.limits)
    fastest = 0.0

    def watch() -> None:
        nonlocal fastest
        fastest = max(fastest, float(np.abs(link.state().speed).max()))

    follow(arm, path, tolerance=0.02, on_step=watch)
    assert np.abs(arm.read().q - goal).max() < 0.02
    assert 0.05 < fastest < 1.0
    follow(arm, plan(arm.read().q, start, FULL.limits), tolerance=0.02)


def test_a_target_out_of_range_is_refused_and_moves_nothing(
    arm: ArmDriver, link: SceneLink
) -> None:
    before = arm.read().q
    arm.move_to(before)
    with pytest.raises(RobotError, match="joint 4"):
        arm.move_to(np.zeros(7))
    assert await_robot_time(link, 0.1) < 0.01
    np.testing.assert_allclose(arm.read().q, before, atol=1e-3)
    assert arm.read().mode == "move"


STREAM = """
import sys, time
import numpy as np
from deploy.drivers import open_arm
arm = open_arm(sys.argv[1], realtime="ignore")
while True:
    arm.move_to(arm.read().q + 0.2 * 0.3 * np.array([float(sys.argv[2]), 0, 0, 0, 0, 0, 0]))
    print("moving", flush=True)
    time.sleep(1 / 15)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
def test_an_arm_whose_client_is_gone_stops(
    simulation: SimulatedArm, link: SceneLink, how: signal.Signals
) -> None:
    direction = "1" if how == signal.SIGKILL else "-1"  # there and back
    client = subprocess.Popen(
        [sys.executable, "-c", STREAM, simulation.host, direction],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert client.stdout is not None
    try:
        assert client.stdout.readline() == "moving\n"
        moving = await_robot_time(link, 0.3)
        assert moving > 0.02
        os.kill(client.pid, how)
        assert await_robot_time(link, 0.3) < moving + 0.3  # no lurch on the way to rest
        assert await_robot_time(link, 0.3) < 0.02
    finally:
        client.kill()
        client.wait()


def test_a_cut_link_is_told_within_the_drivers_timeout() -> None:
    with SimulatedArm(patience_s=PATIENCE_S) as simulation:
        arm = open_arm(simulation.host, realtime="ignore")
        arm.move_to(arm.read().q)
        os.kill(simulation.pid, signal.SIGSTOP)
        deadline = time.monotonic() + 60  # a hang fails; how quick it is depends on the machine

        def read_on() -> None:
            while time.monotonic() < deadline:
                arm.read()
                time.sleep(0.05)

        with pytest.raises(RobotDisconnectedError, match="Timeout"):
            read_on()
        arm.close()
        os.kill(simulation.pid, signal.SIGCONT)
        again = simulation.link()
        assert await_robot_time(again, 0.1) < 0.01
        again.close()


def test_nobody_at_the_address_is_said_with_advice() -> None:
    with pytest.raises(RobotDisconnectedError, match="FCI"):
        open_arm("127.254.254.254", realtime="ignore")


def test_a_real_time_kernel_is_demanded_by_default(simulation: SimulatedArm) -> None:
    if Path("/sys/kernel/realtime").exists():
        pytest.skip("this machine has a real-time kernel")
    with pytest.raises(RobotError, match="PREEMPT_RT"):
        open_arm(simulation.host)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.2", "localhost.example", "::"])
def test_the_simulated_arm_listens_on_loopback_only(host: str) -> None:
    with pytest.raises(RobotError, match="loopback"):
        build(host)
    assert check_loopback("127.4.5.6") == "127.4.5.6"


def test_objects_are_placed_and_unknown_ones_refused(link: SceneLink) -> None:
    from deploy.sim.tasks import position_of, random_placements

    wanted = random_placements(7)
    state = link.place(wanted)
    for name, (x, y, *_) in wanted.items():
        np.testing.assert_allclose(position_of(name, state)[:2], [x, y], atol=1e-3)
    with pytest.raises(ValueError, match="cube"):
        link.place({"fork": (0.5, 0.0, 0.0, 0.0)})


def test_physics_alone_needs_no_client() -> None:
    """Unattended, the arm holds itself and things come to rest."""
    from deploy.sim.physics import ArmPhysics

    physics = ArmPhysics()
    physics.initialize_simulation()
    start: Array = physics.scene_state().qpos.copy()
    for _ in range(200):
        physics.step()
    after = physics.scene_state()
    np.testing.assert_allclose(after.qpos[:7], start[:7], atol=1e-4)
    np.testing.assert_allclose(after.qpos[9:12], start[9:12], atol=1e-3)
