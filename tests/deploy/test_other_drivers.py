"""DROID's control law through aiofranka and franky on the simulated arm.

Their packages exclude what the project needs, so each runs in an environment of its own; name its
Python and these tests use it:
    python3.12 -m venv A && A/bin/pip install "aiofranka[native]==0.9.0"
    VLA_OPT_PYTHON_AIOFRANKA=A/bin/python pytest -m slow tests/deploy/test_other_drivers.py
and likewise VLA_OPT_PYTHON_FRANKY with franky-control 2.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from deploy.sim.process import SimulatedArm

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
SECONDS = 15.0

STREAM = """
import json, sys
import numpy as np
from deploy._schedule import Schedule
from deploy.drivers import open_arm
from deploy.limits import MAX_JOINT_DELTA
from deploy.safety import FULL, FilterState, filter_action
from deploy.sim.clock import RobotClock
from deploy.sim.link import SceneLink

host, driver, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
link, arm = SceneLink(host), open_arm(host, driver, realtime="ignore")
rng, rates, wished, moved = np.random.default_rng(0), [], 0.0, 0.0
before = arm.read().q
arm.move_to(before)  # some compile their law now
schedule, state = Schedule(1 / 15, RobotClock(link)), FilterState.at_rest(before)
while schedule.wait() - schedule.times[0] < seconds - 1 / 30:
    if len(rates) % 8 == 0:
        velocity = np.append(rng.uniform(-0.3, 0.3, 7), 0.0)
    measured = arm.read()
    done = filter_action(
        velocity, state=state, measured=measured.q, measured_gripper=0.0, profile=FULL
    )
    arm.move_to(done.state.target)
    state = done.state
    rates.append(measured.success_rate)
    wished += MAX_JOINT_DELTA * np.abs(velocity[:7]).sum()
    moved += np.abs(measured.q - before).sum()
    before = measured.q
mode = arm.read().mode
arm.halt()
after = [arm.read().mode, arm.profile.name]
arm.close()
print(json.dumps({"steps": len(rates), "rates": rates[5:], "mode": mode, "after": after,
                  "realised": moved / wished}))
"""


HAND = """
import json, sys, time
from deploy.drivers import open_arm
from deploy.errors import RobotDisconnectedError, RobotError

arm = open_arm(sys.argv[1], sys.argv[2], realtime="ignore")
hand, widths = arm.open_hand(), []
for motion in (lambda: hand.grasp(0.1, 30.0), lambda: hand.move(0.06, 0.1)):
    motion()
    widths.append(hand.widths()[0])
try:
    arm.move_to([0.0] * 7)
    refused = ""
except RobotError as error:
    refused = str(error)
arm.move_to(arm.read().q)
print(json.dumps({"widths": widths, "refused": refused}), flush=True)
sys.stdin.readline()  # the robot is gone by then
deadline, lost = time.monotonic() + 60, ""
while not lost and time.monotonic() < deadline:
    try:
        arm.read()
        time.sleep(0.05)
    except RobotDisconnectedError as error:
        lost = str(error)
print(json.dumps({"lost": lost}), flush=True)
arm.close()
"""
DRIVERS = pytest.mark.parametrize("driver", ["aiofranka", "franky"])


def python_with(driver: str) -> str:
    """The interpreter that has it, or skip the test."""
    python = os.environ.get(f"VLA_OPT_PYTHON_{driver.upper()}")
    if not python:
        pytest.skip(f"VLA_OPT_PYTHON_{driver.upper()} names no Python that has {driver}")
    return python


@DRIVERS
def test_hand_range_and_a_lost_robot_are_as_with_the_default_driver(driver: str) -> None:
    with SimulatedArm(patience_s=0.2) as arm:
        program = subprocess.Popen(
            [python_with(driver), "-c", HAND, arm.host, driver],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert program.stdout is not None
        try:
            found = json.loads(program.stdout.readline() or "{}")
            os.kill(arm.pid, signal.SIGKILL)
            said, complaints = program.communicate("go on\n", timeout=120)
        finally:
            program.kill()
    assert found, complaints[-3000:]
    assert found["widths"] == pytest.approx([0.0, 0.06], abs=0.002)
    assert "joint 4" in found["refused"]
    assert program.returncode == 0, complaints[-3000:]
    assert arm.host in json.loads(said.splitlines()[-1])["lost"]


@DRIVERS
def test_droids_law_follows_15_hz_without_a_reflex(driver: str) -> None:
    python = python_with(driver)
    with SimulatedArm(patience_s=0.2) as arm:
        done = subprocess.run(
            [python, "-c", STREAM, arm.host, driver, str(SECONDS)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    rates = found["rates"]
    print({**found, "rates": f"mean {sum(rates) / len(rates):.4f}, least {min(rates):.2f}"})
    assert found["steps"] >= 0.98 * 15 * SECONDS
    assert sum(rates) / len(rates) >= 0.98
    assert found["mode"] == "move"
    assert found["after"] == ["idle", "droid"]
    assert 0.2 < found["realised"] < 0.9
