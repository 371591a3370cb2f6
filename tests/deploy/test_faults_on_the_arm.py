"""What may go wrong while the simulated arm moves over the real protocol, and how it comes to rest.

Speeds are the joints' own, sampled in the simulation and bounded in robot time, which stretches
when the machine has other work.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import websockets.sync.server

from deploy.cameras import Picture
from deploy.client import ClientConfig
from deploy.droid import DroidRobot, Views, robot_metadata
from deploy.executor import EpisodeReport, ExecutorConfig
from deploy.metadata import ServerMetadata
from deploy.protocol import pack
from deploy.robot import RobotConfig
from deploy.robot_env import RobotEnv
from deploy.server import PolicyServer, ServerConfig
from deploy.session import open_session
from deploy.sim.clock import RobotClock
from deploy.sim.link import SceneLink
from deploy.sim.process import SimulatedArm
from deploy.states import State

pytest.importorskip("franka")
WAIT_S = 20.0  # wall time for what should be quick: the machine may have other work
SPEED = 0.3  # of a unit step, all joints: 0.9 rad/s nominal, less than half of it realised
BOUND = 0.9  # rad/s that no joint exceeds, before, during and after a fault
REST = 0.03  # rad/s that counts as at rest
GOOD = 2  # chunks before the fault
SAYS = ServerMetadata(
    action_space="joint_velocity", action_dim=8, action_horizon=15, control_hz=15.0
)
Answer = Callable[[], Mapping[str, Any]]


class Sampler:
    """The fastest joint over robot time, while it is open."""

    def __init__(self, arm: SimulatedArm) -> None:
        self.rows: list[tuple[float, float]] = []
        self._link, self._ended = arm.link(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(10)
        self._link.close()

    def _run(self) -> None:
        while not self._ended.wait(0.01):
            state = self._link.state()
            self.rows.append((state.time, float(np.abs(state.speed).max())))

    @property
    def fastest(self) -> float:
        return max(speed for _, speed in self.rows)


class Moving:
    """Moves the arm for `GOOD` requests, then does something else."""

    def __init__(self, then: Answer) -> None:
        self.then, self.asked = then, 0

    def infer(self, obs: dict[str, Any]) -> Mapping[str, Any]:
        self.asked += 1
        return {"actions": moving()} if self.asked <= GOOD else self.then()


def moving() -> Any:
    return np.repeat([[SPEED] * 7 + [0.0]], 15, axis=0) * np.array([1, 0.3, 1, 0.3, 1, 0.3, 1, 1])


class LooseCamera:
    """Always fresh until its plug falls out."""

    def __init__(self) -> None:
        self.last: float | None = None

    def fall_out(self) -> None:
        self.last = time.time() - WAIT_S

    def latest(self) -> Picture:
        captured = self.last or time.time()
        image = np.zeros((8, 8, 3), np.uint8)
        return Picture(image=image, captured=captured, received=captured, number=1)

    def close(self) -> None: ...


@pytest.fixture(scope="module")
def simulation() -> Iterator[SimulatedArm]:
    with SimulatedArm(patience_s=0.2) as arm:
        yield arm


@pytest.fixture(scope="module")
def env(simulation: SimulatedArm) -> Iterator[RobotEnv]:
    chosen = RobotConfig(robot=f"sim:{simulation.host}", safety="full")
    with RobotEnv("joint_velocity", "position", do_reset=False, robot=chosen) as opened:
        yield opened


@pytest.fixture
def link(simulation: SimulatedArm) -> Iterator[SceneLink]:
    connection = simulation.link()
    yield connection
    connection.close()


def episode(
    url: str,
    env: RobotEnv,
    arm: SimulatedArm,
    link: SceneLink,
    *,
    camera: LooseCamera | None = None,
    answer_s: float = WAIT_S,
    at_step: Callable[[int], None] = lambda step: None,
    max_hold_s: float = 0.8,
) -> EpisodeReport:
    """An episode in robot time; checks that the arm moved, kept its bound and came to rest."""
    cameras = {"view": camera} if camera else {}
    views = Views(cameras=dict.fromkeys(["observation/view"] if camera else [], "view"))
    count = 0

    def look(info: Mapping[str, Any]) -> bool:
        nonlocal count
        count += 1
        at_step(count)
        return False

    with open_session(
        DroidRobot(env, cameras, views),
        robot_metadata(env, controller_profile=None, views=views),
        client=ClientConfig(url=url, answer_timeout_s=answer_s, connect_timeout_s=WAIT_S),
        executor=ExecutorConfig(max_hold_s=max_hold_s, max_steps=150),
        stated=SAYS,
        clock=RobotClock(link),
    ) as session:
        session.executor.reset()
        with Sampler(arm) as sampler:
            report = session.executor.run("move", session.fetcher, until=look)
            until = link.state().time + 0.5
            while link.state().time < until:
                time.sleep(0.01)
        assert session.executor.state is State.IDLE
    assert report.executed >= GOOD * 8, report
    assert sampler.fastest > 0.1, "it moved before the fault"
    assert sampler.fastest < BOUND
    assert all(speed < REST for moment, speed in sampler.rows if moment > until - 0.2)
    return report


def raises() -> Mapping[str, Any]:
    raise ZeroDivisionError("the policy's own words")


def sleeps() -> Mapping[str, Any]:
    time.sleep(3)
    return {"actions": moving()}


def with_value(value: float) -> Answer:
    def answer() -> Mapping[str, Any]:
        chunk = moving()
        chunk[3, 2] = value
        return {"actions": chunk}

    return answer


FAULTS: dict[str, tuple[Answer, str]] = {
    "raises": (raises, "the policy's own words"),
    "slow": (sleeps, "within 0.5 s"),
    "NaN": (with_value(np.nan), "holds nan"),
    "huge": (with_value(50.0), "holds 50"),
    "short": (lambda: {"actions": moving()[:3]}, "has 3 steps"),
    "seven numbers": (lambda: {"actions": moving()[:, :7]}, "shape (15, 7)"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_the_arm_comes_to_rest_whatever_the_policy_sends(
    name: str, simulation: SimulatedArm, env: RobotEnv, link: SceneLink
) -> None:
    then, words = FAULTS[name]
    with PolicyServer(Moving(then), metadata=SAYS, config=ServerConfig(port=0)).running() as it:
        wait = 0.5 if name == "slow" else WAIT_S
        report = episode(it.url, env, simulation, link, answer_s=wait)
    assert report.ending == "hold"
    assert words in report.reason + report.last_failure


@pytest.mark.slow
def test_the_arm_comes_to_rest_when_frames_are_garbage(
    simulation: SimulatedArm, env: RobotEnv, link: SceneLink
) -> None:
    rng = np.random.default_rng(0)
    answered = 0

    def converse(socket: Any) -> None:
        nonlocal answered
        socket.send(pack(SAYS.to_wire()))
        while True:
            socket.recv()
            answered += 1
            good = pack({"actions": moving()})
            socket.send(good if answered <= GOOD else rng.bytes(60))

    with websockets.sync.server.serve(converse, "127.0.0.1", 0, compression=None) as it:
        threading.Thread(target=it.serve_forever, daemon=True).start()
        url = f"ws://127.0.0.1:{it.socket.getsockname()[1]}"
        report = episode(url, env, simulation, link)
    assert report.ending == "hold"
    assert "ProtocolError" in report.failures or "ChunkError" in report.failures


SERVER = """
import sys, time
sys.path.insert(0, {here!r})
from test_faults_on_the_arm import SAYS, moving
from deploy.server import PolicyServer, ServerConfig
class Moves:
    def infer(self, obs):
        return {{"actions": moving()}}
with PolicyServer(Moves(), metadata=SAYS, config=ServerConfig(port=0)).running() as it:
    print(it.url, flush=True)
    time.sleep(120)
"""


@contextmanager
def server_process() -> Iterator[tuple[int, str]]:
    here = Path(__file__).parent
    code = SERVER.format(here=str(here))
    path = os.pathsep.join([str(here / "helpers"), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert process.stdout is not None
    try:
        yield process.pid, process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGKILL, ("No policy server", "ended the connection")),
        pytest.param(
            signal.SIGSTOP, ("overloaded, frozen", "did not complete"), marks=pytest.mark.slow
        ),
    ],
    ids=["killed", "frozen"],
)
def test_the_arm_comes_to_rest_when_the_server_is_gone(
    number: signal.Signals,
    words: tuple[str, ...],
    simulation: SimulatedArm,
    env: RobotEnv,
    link: SceneLink,
) -> None:
    with server_process() as (pid, url):
        report = episode(
            url,
            env,
            simulation,
            link,
            answer_s=0.5 if number == signal.SIGSTOP else WAIT_S,
            at_step=lambda step: os.kill(pid, number) if step == 20 else None,
            max_hold_s=1.5,
        )
    assert report.ending == "hold"
    assert any(word in report.reason for word in words), report.reason


@pytest.mark.slow
def test_the_arm_comes_to_rest_when_the_camera_freezes(
    simulation: SimulatedArm, env: RobotEnv, link: SceneLink
) -> None:
    camera, policy = LooseCamera(), Moving(lambda: {"actions": moving()})
    with PolicyServer(policy, metadata=SAYS, config=ServerConfig(port=0)).running() as it:
        report = episode(
            it.url,
            env,
            simulation,
            link,
            camera=camera,
            at_step=lambda step: camera.fall_out() if step == 20 else None,
        )
    assert report.ending == "camera"
    assert "a camera stands still" in report.reason


@pytest.mark.slow
def test_no_filtered_sequence_of_wild_actions_makes_the_arm_reflex(
    simulation: SimulatedArm, env: RobotEnv, link: SceneLink
) -> None:
    """Full speed back and forth, jumps, refused actions; against the arm's own enforcement."""
    from deploy.limits import MAX_SPEED

    rng = np.random.default_rng(0)
    env.reset()
    clock = RobotClock(link)
    due, fastest = clock.now(), np.zeros(7)
    for step in range(300):
        if step % 5 == 0:
            wild = np.append(rng.choice([-1.0, 0.0, 1.0], 7), 0.0)
        action = wild * rng.choice([1.0, 1.0, 1.0, 4.0, 1e9, np.nan]) if step % 7 == 0 else wild
        env.step(action)  # raises what the arm reflexed with
        due += 1 / 15
        clock.sleep_until(due)
        fastest = np.maximum(fastest, np.abs(link.state().speed))
    assert env.robot.arm.read().mode == "move"
    assert np.all(fastest < MAX_SPEED)
    assert fastest.max() > 0.5, "it was wild"
    env.stop()
