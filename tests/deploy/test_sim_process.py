"""A simulated arm's process ends with the program that started it, however that one ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("franka")
ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 30.0  # wall time for what takes a moment: the machine may have other work

STARTER = """
import signal, sys, time
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup, around the tests, has it ignored
from deploy.sim.process import SimulatedArm
arm = SimulatedArm()
print(arm.pid, flush=True)
time.sleep(600)
"""


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended and that nobody has waited for does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def await_end(pid: int) -> bool:
    deadline = time.monotonic() + WAIT_S
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not alive(pid)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_the_simulation_ends_with_whoever_started_it(how: signal.Signals) -> None:
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert starter.stdout is not None
    pid = int(starter.stdout.readline())
    try:
        assert alive(pid)
        starter.send_signal(how)
        starter.wait(WAIT_S)
        assert await_end(pid), f"the simulation outlived its starter's {how.name}"
    finally:
        starter.kill()
        if alive(pid):
            os.kill(pid, signal.SIGKILL)


def test_a_program_that_is_started_by_hand_needs_nobody() -> None:
    """Its standard input may be empty, as under nohup or a service manager."""
    from deploy.sim.process import READY, free_loopback_address

    server = subprocess.Popen(
        [sys.executable, "-m", "deploy.sim.server", "--host", free_loopback_address()],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert server.stderr is not None
    try:
        assert READY in iter(lambda: server.stderr.readline().strip(), "")
        time.sleep(0.5)
        assert server.poll() is None
        server.terminate()
        assert server.wait(WAIT_S) == 0
    finally:
        server.kill()
