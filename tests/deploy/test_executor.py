"""The executor's logic on a clock that only moves when told to.

The policy answers with the numbers of the steps its actions are meant for. So, whatever the
latency, the n-th executed action must be n: nothing is skipped, repeated or played too late.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated import HORIZON, Collector, FakeClock, FakeRobot, ScriptedSource, counting_chunk

from deploy._blending import (
    ActionPlan,
    Chunk,
    delay_fits,
    ensemble_weights,
)
from deploy._schedule import Schedule
from deploy.errors import (
    CameraError,
    ContractMismatchError,
    DeadlineError,
    PolicyServerError,
    ReflexError,
    RobotDisconnectedError,
    RobotError,
    StateError,
    UserStopError,
)
from deploy.executor import EpisodeReport, Executor, ExecutorConfig
from deploy.states import State

LATENCIES = [0.0, 0.02, 0.1, 0.3, 0.45]


def run(
    latency_s: float,
    *,
    script: Callable[[int], Any] = lambda n: None,
    robot: FakeRobot | None = None,
    **config: Any,
) -> tuple[EpisodeReport, FakeRobot, ScriptedSource, Executor]:
    clock = FakeClock()
    robot = robot or FakeRobot()
    source = ScriptedSource(clock, latency_s, script)
    executor = Executor(robot, ExecutorConfig(**{"max_steps": 150, **config}), clock=clock)
    executor.connect()
    executor.reset()
    return executor.run("do it", source), robot, source, executor


@pytest.mark.parametrize("blend", ["none", "linear", "ensemble"])
@pytest.mark.parametrize("latency_s", LATENCIES)
def test_every_step_gets_its_own_action_and_none_is_missing(latency_s: float, blend: str) -> None:
    report, robot, source, _ = run(latency_s, blend=blend)
    np.testing.assert_allclose(robot.executed, np.arange(150))
    assert report.ending == "max_steps"
    assert report.held == report.held_at_start == max(1, math.ceil(latency_s * 15))
    assert report.rate_hz == pytest.approx(15.0)
    assert report.late == report.skipped == 0
    assert {r["prompt"] for r in source.requests} == {"do it"}


@pytest.mark.parametrize(("latency_s", "delay"), [(0.1, 2), (0.3, 5)])
def test_chunks_are_asked_for_ahead_of_time_by_the_latency(latency_s: float, delay: int) -> None:
    """The next one takes over when eight actions of the present one have elapsed, or as soon."""
    _, _, source, _ = run(latency_s, execute_steps=8)
    asked = [request["step"] for request in source.requests]
    assert set(np.diff(asked[3:])) == {max(delay, 8 - delay)}


@pytest.mark.parametrize("execute_steps", [4, 8])
def test_latency_beyond_half_the_chunk_falls_back_to_standing_and_says_so(
    execute_steps: int,
) -> None:
    report, robot, _, _ = run(0.6, execute_steps=execute_steps)
    np.testing.assert_allclose(robot.executed, np.arange(150))
    assert any("synchronous" in text and "takes 9 steps" in text for _, text in report.notes)
    share = report.executed / report.ticks
    assert share == pytest.approx(8 / (8 + 9), abs=0.06), "half of the chunk played, nine stood"


def test_forced_asynchronous_mode_plays_what_is_left_of_each_chunk() -> None:
    report, robot, _, _ = run(0.6, mode="async")
    np.testing.assert_allclose(robot.executed, np.arange(150))
    assert not any("synchronous" in text for _, text in report.notes)
    assert report.held > report.held_at_start


def test_synchronous_mode_plays_only_what_was_seen_standing() -> None:
    report, robot, source, _ = run(0.1, mode="sync", execute_steps=5)
    np.testing.assert_allclose(robot.executed, np.arange(150))
    assert [r["step"] for r in source.requests[:4]] == [0, 5, 10, 15]
    assert report.held == 2 * len(source.requests), "two ticks for each answer"


def test_comes_back_to_asynchronous_when_the_server_is_fast_again() -> None:
    report, _, _, _ = run(0.6, script=lambda n: 0.1 if n > 3 else 0.6, max_steps=200)
    texts = [text for _, text in report.notes]
    assert "synchronous" in texts[0]
    assert "ahead again" in texts[1]


def test_one_spike_does_not_change_the_mode() -> None:
    report, robot, _, _ = run(0.1, script=lambda n: 1.4 if n == 5 else 0.1)
    assert not any("synchronous" in text for _, text in report.notes)
    np.testing.assert_allclose(robot.executed, np.arange(150))
    assert 0 < report.held - report.held_at_start < 21
    assert report.ending == "max_steps"


@settings(max_examples=40, deadline=None)
@given(
    latencies=st.lists(st.floats(0, 1.9), min_size=1, max_size=12),
    blend=st.sampled_from(["none", "linear", "ensemble"]),
    mode=st.sampled_from(["auto", "async", "sync"]),
    execute_steps=st.integers(1, HORIZON),
)
def test_alignment_survives_any_latency(
    latencies: list[float], blend: str, mode: str, execute_steps: int
) -> None:
    report, robot, _, _ = run(
        0.1,
        script=lambda n: latencies[n % len(latencies)],
        blend=blend,
        mode=mode,
        execute_steps=execute_steps,
        max_steps=40,
    )
    np.testing.assert_allclose(robot.executed, np.arange(len(robot.executed)))
    assert report.executed == len(robot.executed)
    assert report.ending == "max_steps" or report.ending == "hold"


# ---------------------------------------------------------------- blending


def test_linear_blending_moves_over_in_equal_parts() -> None:
    plan = ActionPlan(blend="linear", blend_steps=3, decay=0.0)
    plan.add(Chunk(start=0, actions=np.zeros((15, 2)), arrived=0))
    plan.add(Chunk(start=4, actions=np.ones((15, 2)), arrived=6))
    rows = [plan.action_at(step) for step in range(6, 11)]
    np.testing.assert_allclose([row[0] for row in rows], [0.25, 0.5, 0.75, 1.0, 1.0])
    assert [row[1] for row in rows] == [1.0] * 5, "a gripper is never halfway"


def test_ensemble_weights_are_acts() -> None:
    expected = np.exp(-0.5 * np.array([0, 1, 2]))
    np.testing.assert_allclose(ensemble_weights(3, 0.5), expected / expected.sum())
    plan = ActionPlan(blend="ensemble", blend_steps=0, decay=0.5)
    for start, value in ((0, 1.0), (2, 2.0), (3, 4.0)):
        plan.add(Chunk(start=start, actions=np.full((15, 2), value), arrived=start))
    row = plan.action_at(3)
    assert row is not None
    np.testing.assert_allclose(row[0], expected @ [1.0, 2.0, 4.0] / expected.sum())
    assert row[1] == 4.0


def test_a_chunk_that_has_elapsed_is_not_taken() -> None:
    plan = ActionPlan(blend="none", blend_steps=0, decay=0)
    assert not plan.add(Chunk(start=0, actions=np.zeros((5, 2)), arrived=5))
    assert plan.action_at(5) is None


def test_the_plan_hands_out_copies() -> None:
    plan = ActionPlan(blend="none", blend_steps=0, decay=0)
    plan.add(Chunk(start=0, actions=np.zeros((5, 2)), arrived=0))
    row = plan.action_at(0)
    assert row is not None
    row += 1
    np.testing.assert_array_equal(plan.action_at(0), [0, 0])


def test_the_rule_for_asynchronous_fetching() -> None:
    assert delay_fits(7, 15)
    assert not delay_fits(8, 15)
    assert delay_fits(7, 14)
    assert not delay_fits(7, 13)


# ---------------------------------------------------------------- schedule


def test_a_late_tick_does_not_delay_the_later_ones() -> None:
    clock = FakeClock()
    schedule = Schedule(0.1, clock)
    start = schedule.wait()
    clock.time += 0.15
    assert schedule.wait() == pytest.approx(start + 0.15)
    assert schedule.wait() == pytest.approx(start + 0.2)
    assert (schedule.late, schedule.skipped) == (1, 0)


def test_ticks_that_passed_are_skipped_not_made_up() -> None:
    clock = FakeClock()
    schedule = Schedule(0.1, clock)
    start = schedule.wait()
    clock.time += 0.47
    assert schedule.wait() == pytest.approx(start + 0.47)
    assert schedule.wait() == pytest.approx(start + 0.5)
    assert (schedule.late, schedule.skipped) == (1, 3)


@settings(max_examples=60, deadline=None)
@given(work=st.lists(st.floats(0, 0.35), min_size=1, max_size=30))
def test_ticks_stay_on_the_grid_and_none_is_early(work: list[float]) -> None:
    clock = FakeClock()
    schedule = Schedule(0.1, clock)
    start = schedule.wait()
    for busy in work:
        clock.time += busy
        schedule.wait()
    numbers = np.floor((np.array(schedule.times) - start) / 0.1 + 1e-6).astype(int)
    assert (np.diff(numbers) >= 1).all()
    assert numbers[-1] == len(work) + schedule.skipped


# ---------------------------------------------------------------- faults of the policy


@pytest.mark.parametrize(
    "error",
    [PolicyServerError("it raised"), DeadlineError("it froze")],
    ids=lambda error: type(error).__name__,
)
def test_a_policy_that_fails_for_good_is_held_then_stopped_and_named(error: Any) -> None:
    report, robot, _, executor = run(0.1, script=lambda n: error if n >= 2 else None)
    assert report.ending == "hold"
    assert str(error) in report.reason
    assert type(error).__name__ in report.reason
    assert report.failures[type(error).__name__] > 2
    assert robot.actions[-1] is None
    np.testing.assert_allclose(robot.executed, np.arange(len(robot.executed)))
    assert robot.calls[-1] == "stop"
    assert executor.state is State.IDLE
    held = report.held - report.held_at_start
    assert held == pytest.approx(2.0 * 15, abs=2)


def test_a_policy_that_fails_now_and_then_is_survived() -> None:
    error = PolicyServerError("it raised")
    report, robot, _, _ = run(0.1, script=lambda n: error if n % 3 == 1 else None)
    assert report.ending == "max_steps"
    np.testing.assert_allclose(robot.executed, np.arange(150))
    assert report.failures["PolicyServerError"] > 3


def test_a_server_that_never_answers_is_given_time_only_for_its_first_chunk() -> None:
    report, _, _, _ = run(1e9, first_chunk_s=5.0)
    assert report.ending == "hold"
    assert "has not answered for 5" in report.reason
    report, _, _, _ = run(0.1, script=lambda n: 1e9 if n == 2 else 0.1)
    assert report.ending == "hold"
    assert "has not answered" in report.reason


def test_another_policy_behind_the_address_ends_the_episode_at_once() -> None:
    error = ContractMismatchError("it serves another policy now")
    report, robot, _, _ = run(0.1, script=lambda n: error if n == 2 else None)
    assert (report.ending, report.reason) == ("contract", str(error))
    assert robot.calls[-1] == "stop"


def test_answers_to_an_earlier_episode_are_not_played() -> None:
    clock, robot = FakeClock(), FakeRobot()
    source = ScriptedSource(clock, 0.3)
    executor = Executor(robot, ExecutorConfig(max_steps=4), clock=clock)
    executor.connect()
    for _ in range(2):
        executor.reset()
        robot.actions.clear()
        executor.run("do it", source)
        np.testing.assert_allclose(robot.executed, np.arange(4))


# ---------------------------------------------------------------- faults of the robot


@pytest.mark.parametrize(
    ("error", "ending", "state"),
    [
        (ReflexError("joint_velocity_violation", ("j",)), "reflex", State.REFLEX),
        (UserStopError("button"), "estop", State.ESTOP),
        (RobotDisconnectedError("no packets"), "disconnected", State.DISCONNECTED),
        (RobotError("gripper"), "robot", State.IDLE),
    ],
)
def test_a_fault_of_the_robot_ends_the_episode_in_its_own_state(
    error: RobotError, ending: str, state: State
) -> None:
    robot = FakeRobot(faults={20: error})
    report, _, _, executor = run(0.1, robot=robot)
    assert (report.ending, report.reason) == (ending, str(error))
    assert executor.state is state
    assert (robot.calls[-1] == "stop") == (ending == "robot")


def test_recovery_needs_a_person_and_happens_once() -> None:
    robot = FakeRobot(faults={20: ReflexError("first")})
    _, _, source, executor = run(0.1, robot=robot)
    with pytest.raises(StateError, match="confirm"):
        executor.reset()
    executor.confirm()
    executor.reset()
    robot.faults = {len(robot.actions) + 5: ReflexError("second")}
    assert executor.run("do it", source).ending == "reflex"
    with pytest.raises(StateError, match="find the cause"):
        executor.confirm()


def test_a_robot_that_cannot_be_stopped_is_in_the_report() -> None:
    robot = FakeRobot()
    robot.stop = lambda: (_ for _ in ()).throw(RobotDisconnectedError("cable"))  # type: ignore[method-assign]
    report, _, _, executor = run(0.1, robot=robot, max_steps=5)
    assert report.ending == "disconnected"
    assert "cable" in report.reason
    assert executor.state is State.DISCONNECTED


def test_an_unforeseen_error_still_stops_the_robot() -> None:
    robot = FakeRobot(faults={3: ZeroDivisionError("a bug")})
    with pytest.raises(ZeroDivisionError):
        run(0.1, robot=robot)
    assert robot.calls == ["reset", "stop"]


def test_a_frozen_camera_is_held_then_stopped_and_named() -> None:
    clock, robot = FakeClock(), FakeRobot()
    source = ScriptedSource(clock, 0.1)
    executor = Executor(robot, ExecutorConfig(), clock=clock)
    executor.connect()
    executor.reset()

    def freeze(info: Any) -> bool:
        robot.camera_age_s = 0.5 if len(robot.executed) > 30 else 0.0
        return False

    report = executor.run("do it", source, until=freeze)
    assert report.ending == "camera"
    assert "older than 0.2 s" in report.reason
    assert report.executed < 30 + 2 * HORIZON


def test_a_camera_that_fails_is_named() -> None:
    robot = FakeRobot()
    clock = FakeClock()
    executor = Executor(robot, ExecutorConfig(first_chunk_s=3.0), clock=clock)
    executor.connect()
    executor.reset()
    robot.camera_fault = CameraError("wrist camera: no picture")
    report = executor.run("do it", ScriptedSource(clock, 0.1))
    assert report.ending == "camera"
    assert "wrist camera" in report.reason


def test_a_bad_link_to_the_arm_ends_the_episode() -> None:
    robot = FakeRobot()
    robot.info = {"success_rate": 0.85}
    report, _, _, _ = run(0.1, robot=robot)
    assert report.ending == "success_rate"
    assert "85 %" in report.reason


def test_interventions_are_counted_by_name() -> None:
    robot = FakeRobot()
    robot.info = {"interventions": {"scaled": 0.3, "speed": 1.0}, "success_rate": 1.0}
    report, _, _, _ = run(0.1, robot=robot, max_steps=10)
    assert report.interventions == {"scaled": report.ticks - 1, "speed": report.ticks - 1}


def test_a_policy_that_pushes_against_a_wall_on_and_on_is_ended() -> None:
    robot = FakeRobot()
    robot.info = {"interventions": {"acceleration": 0.1, "table": 0.01}}
    report, _, _, _ = run(0.1, robot=robot, max_blocked_s=2.0)
    assert report.ending == "blocked"
    assert report.reason.endswith("2 s (table)")
    assert report.executed == pytest.approx(31, abs=1)
    robot = FakeRobot()
    robot.info = {"interventions": {"acceleration": 0.1, "scaled": 0.5}}  # on its way
    report, _, _, _ = run(0.1, robot=robot, max_blocked_s=2.0)
    assert report.ending == "max_steps"


def test_the_task_ends_the_episode() -> None:
    clock, robot = FakeClock(), FakeRobot()
    executor = Executor(robot, clock=clock)
    executor.connect()
    executor.reset()
    report = executor.run(
        "do it", ScriptedSource(clock, 0.1), until=lambda info: len(robot.executed) == 12
    )
    assert (report.ending, report.executed) == ("success", 12)


def test_the_operator_ends_the_episode() -> None:
    clock, robot, watcher = FakeClock(), FakeRobot(), Collector()
    executor = Executor(robot, clock=clock, watchers=[watcher])
    executor.connect()
    executor.reset()

    def stop_at_ten(info: Any) -> bool:
        if len(robot.executed) == 10:
            executor.request_stop("Ctrl-C")
        return False

    report = executor.run("do it", ScriptedSource(clock, 0.1), until=stop_at_ten)
    assert (report.ending, report.reason, report.executed) == ("operator", "Ctrl-C", 10)
    assert robot.calls == ["reset", "stop"]
    assert [tick.step for tick in watcher.ticks if tick.action is not None] == list(range(10))
    assert {tick.state for tick in watcher.ticks} == {State.HOLD, State.RUNNING}
    assert watcher.pictures, "what the policy saw is shown, too"


def test_a_stop_that_is_asked_for_before_the_first_tick_is_not_forgotten() -> None:
    robot = FakeRobot()
    executor = Executor(robot, clock=FakeClock())
    executor.connect()
    executor.reset()
    executor.request_stop("SIGTERM")
    report = executor.run("do it", ScriptedSource(FakeClock(), 0.1))
    assert (report.ending, report.executed) == ("operator", 0)
    assert robot.calls == ["reset", "stop"]
    executor.reset()  # what was asked for has been done
    assert executor.run("again", ScriptedSource(FakeClock(), 0.0)).ending != "operator"


def test_an_episode_needs_a_robot_at_its_start() -> None:
    executor = Executor(FakeRobot(), clock=FakeClock())
    with pytest.raises(StateError, match="From disconnected"):
        executor.reset()
    executor.connect()
    with pytest.raises(StateError, match="From idle the executor can go to resetting"):
        executor.run("do it", ScriptedSource(FakeClock(), 0.1))


def test_a_report_is_plain_data() -> None:
    import json

    report, _, _, _ = run(0.1, max_steps=20)
    assert json.loads(json.dumps(report.to_dict()))["executed"] == 20
    assert report.transitions[0][1:] == ("ready", "running")
    assert report.latency_ms.p50 == pytest.approx(100)


# ---------------------------------------------------------------- real-time chunking


def test_the_tail_of_the_former_chunk_goes_with_the_request() -> None:
    clock, robot = FakeClock(), FakeRobot()
    source = ScriptedSource(clock, 0.3)
    source.latent = True
    executor = Executor(robot, ExecutorConfig(max_steps=60, blend="none"), clock=clock)
    executor.connect()
    executor.reset()
    executor.run("do it", source)
    assert "realtime/left_over" not in source.requests[0]
    for request in source.requests[1:]:
        step, tail = request["step"], request["realtime/left_over"]
        assert tail[0, 0] == step, "its first row belongs to the step of the observation"
        assert tail.dtype == np.float32
        assert request["realtime/delay"] == 5


def test_without_latent_chunks_requests_are_openpis() -> None:
    _, _, source, _ = run(0.3)
    assert all(set(request) == {"step", "prompt"} for request in source.requests)


@pytest.mark.parametrize(
    "changes",
    [
        {"control_hz": 0},
        {"execute_steps": 0},
        {"mode": "asink"},
        {"blend": "cubic"},
        {"max_hold_s": float("nan")},
        {"ensemble_decay": -1.0},
    ],
)
def test_impossible_configurations_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r".+"):
        ExecutorConfig(**changes)


def test_counting_chunks_count() -> None:
    np.testing.assert_array_equal(counting_chunk(3)[:2, 0], [3, 4])
