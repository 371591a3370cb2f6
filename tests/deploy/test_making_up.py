"""Where an arm is when its fingers close, by the way chunks are fetched.

The arm realises a share of each velocity action, spread over the control period, as the simulated
one does; the policy plans open-loop, as one that learned from synchronous demonstrations. It
believes in a slightly better arm than there is, so that each observation has something to correct.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from simulated import HORIZON, Collector, FakeClock, ScriptedSource

from deploy._blending import ActionPlan, Chunk
from deploy.executor import Executor, ExecutorConfig
from deploy.interfaces import Array, Frame
from deploy.limits import MAX_JOINT_DELTA

PERIOD = 1 / 15
BELIEVED, REALISED = 0.45, 0.4  # shares of a velocity action
START, GOAL = 0.0, 0.6  # rad
NEAR = 0.004  # rad at which the policy closes the fingers


class MovingArm:
    """One joint that moves evenly from one action to the next; standing stops it."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self._q, self._speed, self._since = START, 0.0, clock.now()
        self.closed_at: float | None = None

    @property
    def q(self) -> float:
        passed = min(self._clock.now() - self._since, PERIOD)
        return self._q + self._speed * passed

    def observe(self) -> Frame:
        return Frame(observation={"q": self.q})

    def act(self, action: Array | None) -> Mapping[str, Any]:
        self._q, self._since = self.q, self._clock.now()
        self._speed = 0.0 if action is None else REALISED * MAX_JOINT_DELTA * action[0] / PERIOD
        if action is not None and action[-1] > 0.5 and self.closed_at is None:
            self.closed_at = self._q
        return {}

    def reset(self) -> None: ...

    def stop(self) -> None: ...


def planned(q: float) -> Array:
    """(15, 8): to the goal as fast as it may be, then close."""
    chunk = np.zeros((HORIZON, 8))
    for row in chunk:
        row[0] = np.clip((GOAL - q) / MAX_JOINT_DELTA, -1.0, 1.0)
        row[7] = abs(GOAL - q) < NEAR
        q += BELIEVED * MAX_JOINT_DELTA * row[0]
    return chunk


def off_the_goal(latency_s: float, **config: Any) -> float:
    """Distance from the goal at which the fingers close; rad."""
    clock = FakeClock()
    arm = MovingArm(clock)
    source = ScriptedSource(clock, latency_s)
    source.script = lambda n: planned(source.requests[n]["q"])
    executor = Executor(
        arm, ExecutorConfig(**{"max_steps": 60, **config}), clock=clock, displacements=True
    )
    executor.connect()
    executor.reset()
    executor.run("do it", source)
    assert arm.closed_at is not None
    return abs(arm.closed_at - GOAL)


@pytest.mark.parametrize("blend", ["none", "linear"])
@pytest.mark.parametrize("latency_s", [0.02, 0.1, 0.15, 0.2])
def test_fingers_close_about_as_near_the_goal_as_without_latency(
    latency_s: float, blend: str
) -> None:
    config = {"blend": blend, "execute_steps": 8}
    standing = off_the_goal(latency_s, mode="sync", **config)
    assert off_the_goal(latency_s, mode="async", **config) < standing + 0.015
    lossy = off_the_goal(latency_s, mode="async", make_up=False, **config)
    assert lossy > standing + 0.025, "what is dropped is what each observation had to correct"


@pytest.mark.parametrize("latency_s", [0.02, 0.1, 0.15])
def test_the_more_often_the_policy_looks_the_nearer_they_close(latency_s: float) -> None:
    often = off_the_goal(latency_s, execute_steps=4)
    assert often < 0.01
    assert often < off_the_goal(latency_s, execute_steps=8)


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_the_first_action_of_a_chunk_is_for_the_moment_of_its_observation(mode: str) -> None:
    """As in the demonstrations: what was observed before an action leads to that very action."""
    clock, watcher = FakeClock(), Collector()
    arm, source = MovingArm(clock), ScriptedSource(clock, 0.0)
    source.script = lambda n: np.tile(np.arange(HORIZON)[:, None] / 100, 8)  # row i says i / 100
    executor = Executor(
        arm, ExecutorConfig(max_steps=20, mode=mode, blend="none"), clock=clock, watchers=[watcher]
    )
    executor.connect()
    executor.reset()
    executor.run("do it", source)
    rows = [None if t.action is None else round(100 * t.action[0]) for t in watcher.ticks]
    seen = [n for n, t in enumerate(watcher.ticks) if t.frame is not None]
    assert len(seen) > 2
    for number in seen[1:-1]:
        # One tick later the answer is there: its row 0 where the arm stood, row 1 where it did not.
        assert rows[number + 1] == (0 if mode == "sync" else 1)


def made_up(blend: str, *, before: float, after: float, arrived: int) -> list[float]:
    """Arm actions from step 0 on, of one chunk and of a second one that starts at step 2."""
    plan = ActionPlan(blend=blend, blend_steps=3, decay=0.01, displacements=True)  # type: ignore[arg-type]
    plan.add(Chunk(start=0, actions=np.full((15, 2), before), arrived=0))
    actions = []
    for step in range(14):
        if step == arrived:
            plan.add(Chunk(start=2, actions=np.full((15, 2), after), arrived=arrived))
        action = plan.action_at(step)
        assert action is not None
        plan.executed(action)
        actions.append(float(action[0]))
    return actions


@pytest.mark.parametrize("blend", ["none", "linear"])
def test_what_elapsed_is_made_up_to_the_last_bit_and_once(blend: str) -> None:
    actions = made_up(blend, before=0.1, after=-0.2, arrived=5)
    assert sum(actions[2:]) == pytest.approx(12 * -0.2)
    assert actions[-3:] == pytest.approx([-0.2] * 3)
    assert actions[:5] == pytest.approx([0.1] * 5)


def test_chunks_that_agree_change_nothing() -> None:
    assert made_up("linear", before=0.3, after=0.3, arrived=5) == pytest.approx([0.3] * 14)


def test_making_up_is_never_faster_than_full_speed_and_keeps_the_direction() -> None:
    plan = ActionPlan(blend="none", blend_steps=0, decay=0.0, displacements=True)
    plan.add(Chunk(start=0, actions=np.array([[-1.0, -0.5, 0.0]] * 15), arrived=0))
    for step in range(4):
        action = plan.action_at(step)
        assert action is not None
        plan.executed(action)
    plan.add(Chunk(start=0, actions=np.array([[1.0, 0.5, 1.0]] * 15), arrived=4))
    action = plan.action_at(4)
    assert action is not None
    np.testing.assert_allclose(action, [1.0, 0.5, 1.0])


def test_more_than_full_speed_is_cut_as_the_robot_would_and_not_owed() -> None:
    plan = ActionPlan(blend="none", blend_steps=0, decay=0.0, displacements=True)
    plan.add(Chunk(start=0, actions=np.array([[1.5, 0.0]] * 3 + [[0.0, 0.0]] * 3), arrived=0))
    seen = []
    for step in range(6):
        action = plan.action_at(step)
        assert action is not None
        plan.executed(action)
        seen.append(float(action[0]))
    assert seen == [1.0] * 3 + [0.0] * 3
