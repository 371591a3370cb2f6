"""How far from an object the fingers are when they close, by the way chunks are fetched.

    python tests/bench/bench_closing.py --latency 0.15 --seeds 8

The scripted demonstrator is served with an artificial latency, in the robot's time, to the executor
on the simulated arm. It plans open-loop, as a policy that learned from synchronous demonstrations,
and foresees an arm that is a little better than the one there is. Per way: median and worst
distance between fingertips and the object's middle, when closing is commanded and when the fingers
have closed, and how many hold it then.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from deploy.client import ClientConfig
from deploy.droid import DroidRobot, Views, robot_metadata
from deploy.executor import ExecutorConfig
from deploy.kinematics import GRASP_POINT, flange_pose
from deploy.robot import RobotConfig
from deploy.robot_env import RobotEnv
from deploy.server import PolicyServer, ServerConfig
from deploy.session import Session, open_session
from deploy.sim.clock import RobotClock
from deploy.sim.expert_policy import ExpertPolicy
from deploy.sim.link import SceneLink, SceneState
from deploy.sim.process import SimulatedArm
from deploy.sim.tasks import TASKS, position_of, random_placements

_TASK = TASKS["cube_to_plate"]
_OPEN, _STILL_S = 0.079, 0.7  # m between open fingers; s of robot time by which they have closed
_HELD = (0.04, 0.05)  # m between the fingers with the cube between them
WAYS: Mapping[str, Mapping[str, Any]] = {
    "asynchronous": {"mode": "async"},
    "asynchronous, what elapsed dropped": {"mode": "async", "make_up": False},
    "synchronous": {"mode": "sync"},
    "asynchronous, 4 of 15": {"mode": "async", "execute_steps": 4},
    "synchronous, 4 of 15": {"mode": "sync", "execute_steps": 4},
}


class SlowPolicy:
    """Answers after some time of the robot's clock."""

    def __init__(self, link: SceneLink, latency_s: float) -> None:
        self._policy, self._clock = ExpertPolicy(link), RobotClock(link)
        self.metadata, self._latency_s = self._policy.metadata, latency_s

    def infer(self, obs: dict[str, Any]) -> Mapping[str, Any]:
        due = self._clock.now() + self._latency_s
        answer = self._policy.infer(obs)
        self._clock.sleep_until(due)
        return answer


class Closing:
    """Notes where the fingers are when they begin to close; done when they have."""

    def __init__(self, link: SceneLink) -> None:
        self._link = link
        self._began: float | None = None
        self.commanded, self.closed, self.width = np.nan, np.nan, np.nan

    def __call__(self, info: Mapping[str, Any]) -> bool:
        state = self._link.state()
        self.width = float(state.qpos[7:9].sum())
        if self._began is None:
            if self.width < _OPEN:
                self._began, self.commanded = state.time, _distance(state)
            return False
        self.closed = _distance(state)
        return state.time - self._began > _STILL_S

    @property
    def holds(self) -> bool:
        return _HELD[0] < self.width < _HELD[1]


def _distance(state: SceneState) -> float:
    fingertips = flange_pose(state.qpos[:7]) @ np.array([0.0, 0.0, GRASP_POINT, 1.0])
    return float(np.linalg.norm(fingertips[:3] - position_of(_TASK.thing, state)))


@contextlib.contextmanager
def opened(latency_s: float) -> Iterator[tuple[RobotEnv, SceneLink, str]]:
    """A simulated arm, a link to it, and a slow policy server."""
    with contextlib.ExitStack() as stack:
        arm = stack.enter_context(SimulatedArm(patience_s=0.1))
        chosen = RobotConfig(robot=f"sim:{arm.host}", safety="full")
        env = stack.enter_context(
            RobotEnv("joint_velocity", "position", do_reset=False, robot=chosen)
        )
        links = arm.link(), arm.link()
        for link in links:
            stack.callback(link.close)
        policy = SlowPolicy(links[0], latency_s)
        says = policy.metadata(env.robot.arm.profile.name)
        server = PolicyServer(policy, metadata=says, config=ServerConfig(port=0))
        stack.enter_context(server.running())
        yield env, links[1], server.url


def session(
    env: RobotEnv, link: SceneLink, url: str, config: ExecutorConfig
) -> contextlib.AbstractContextManager[Session]:
    """An executor without cameras: the policy sees the simulation."""
    return open_session(
        DroidRobot(env, {}, Views(cameras={})),
        robot_metadata(env, controller_profile=env.robot.arm.profile.name),
        client=ClientConfig(url=url, answer_timeout_s=20.0),
        executor=config,
        clock=RobotClock(link),
    )


def measure(
    env: RobotEnv, link: SceneLink, url: str, seeds: int, way: Mapping[str, Any]
) -> list[Closing]:
    """One approach to each scene."""
    found = []
    with session(env, link, url, ExecutorConfig(max_steps=200, **way)) as ready:
        for seed in range(seeds):
            ready.executor.reset()
            link.place(random_placements(seed))
            closing = Closing(link)
            ready.executor.run(_TASK.instruction, ready.fetcher, until=closing)
            found.append(closing)
    return found


def row(name: str, found: list[Closing]) -> str:
    """A line of the table."""
    parts: list[Callable[[Closing], float]] = [lambda c: c.commanded, lambda c: c.closed]
    cells = []
    for part in parts:
        values = 1e3 * np.array([part(c) for c in found])
        cells.append(f"{np.nanmedian(values):5.1f} {np.nanmax(values):5.1f}")
    holds = sum(c.holds for c in found)
    return f"{name:36}{cells[0]:>18}{cells[1]:>18}{holds:>8}/{len(found)}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--latency", type=float, default=0.15, help="s of the robot's time")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    print(f"{'mm, median and worst':36}{'commanded':>18}{'closed':>18}{'holds':>9}")
    with opened(options.latency) as (env, link, url):
        for name in options.ways:
            print(row(name, measure(env, link, url, options.seeds, WAYS[name])), flush=True)


if __name__ == "__main__":
    main()
