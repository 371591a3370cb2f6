"""DROID's environment behind an executor, and the contract with a policy."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from policies_for_tests import DROID, Echo
from simulated import FakeClock

from deploy.cameras import Picture
from deploy.client import ClientConfig
from deploy.droid import DroidRobot, Views, filter_report, robot_metadata
from deploy.errors import (
    CameraError,
    ContractMismatchError,
    PolicyConnectionError,
    ReflexError,
)
from deploy.executor import ExecutorConfig
from deploy.images import resize_with_pad
from deploy.limits import RESET_POSE
from deploy.metadata import ServerMetadata
from deploy.openpi_environment import OpenpiEnvironment
from deploy.preflight import (
    Latency,
    check_cameras,
    check_cycles,
    check_gripper,
    check_latency,
)
from deploy.safety import CAUTIOUS
from deploy.server import PolicyServer, ServerConfig
from deploy.session import agree, open_session
from deploy.states import State


def droid(env: Env, **given: Any) -> DroidRobot:
    return DroidRobot(env, env.cameras, **given)


class View:
    """A camera with one picture."""

    def __init__(self, age_s: float) -> None:
        self.age_s = age_s
        self.image = np.random.default_rng(0).integers(0, 255, (180, 320, 3), dtype=np.uint8)

    def latest(self) -> Picture:
        moment = time.time() - self.age_s
        return Picture(image=self.image, captured=moment, received=moment, number=1)

    def close(self) -> None: ...


class Env:
    """A `DroidEnv` that notes what it is told."""

    def __init__(self, action_space: str = "joint_velocity") -> None:
        self.action_space = action_space
        self.control_hz = 15.0
        self.calls: list[Any] = []
        self.cameras = {
            "exterior_left": View(0.03),
            "exterior_right": View(9.0),
            "wrist": View(5.0),
        }
        self.cameras["wrist"].age_s = 0.05
        self.fault: Exception | None = None
        self.rates = [0.0, 1.0]
        self.robot = self
        self.profile = CAUTIOUS

    def get_state(self) -> tuple[dict[str, Any], dict[str, int]]:
        if self.fault:
            raise self.fault
        return {"joint_positions": RESET_POSE.tolist(), "gripper_position": 0.25}, {}

    def step(self, action: Any) -> dict[str, Any]:
        if self.fault:
            raise self.fault
        self.calls.append(action)
        return {"interventions": {"scaled": 0.1}, "success_rate": 1.0}

    def hold(self) -> dict[str, Any]:
        self.calls.append("hold")
        return {"interventions": {}, "success_rate": self.rates[len(self.calls) % 2]}

    def reset(self) -> None:
        self.calls.append("reset")

    def recover(self) -> None:
        self.calls.append("recover")
        self.fault = None

    def stop(self) -> None:
        self.calls.append("stop")


def test_an_observation_is_openpis_request() -> None:
    env = Env()
    robot = droid(env)
    frame = robot.observe()
    assert frame.pictures is not None
    pictures = frame.pictures()
    request = {**frame.observation, **pictures.views}
    assert {k: v.shape for k, v in request.items()} | {"prompt": ()} == DROID.inputs
    expected = resize_with_pad(env.cameras["wrist"].image, 224, 224)
    np.testing.assert_array_equal(request["observation/wrist_image_left"], expected)
    np.testing.assert_array_equal(request["observation/joint_position"], RESET_POSE)
    assert pictures.age_s == pytest.approx(0.05, abs=5.0)
    assert pictures.age_s >= 0.05, "the oldest picture counts, but not of the third camera"
    assert pictures.age_s < 9.0


def test_the_operator_chooses_the_side() -> None:
    env = Env()
    views = Views(cameras={"observation/exterior_image_1_left": "exterior_right"}, image_size=64)
    pictures = droid(env, views=views).pictures()
    assert {k: v.shape for k, v in pictures.views.items()} == {
        "observation/exterior_image_1_left": (64, 64, 3)
    }
    assert pictures.age_s >= 9.0


def test_a_policy_gets_its_pictures_in_the_size_it_states() -> None:
    env = Env()
    robot, key = droid(env), "observation/wrist_image_left"
    robot.fit_pictures(dataclasses.replace(DROID, inputs={key: (18, 32, 3), "prompt": ()}))
    pictures = robot.pictures().views
    np.testing.assert_array_equal(
        pictures[key], resize_with_pad(env.cameras["wrist"].image, 18, 32)
    )
    assert pictures["observation/exterior_image_1_left"].shape == (224, 224, 3)
    robot.fit_pictures(dataclasses.replace(DROID, inputs={key: (10**6, 10**6, 3)}))
    assert robot.pictures().views[key].shape == (224, 224, 3), "nobody fills this memory"


def test_a_missing_camera_is_named_with_those_that_are_there() -> None:
    env = Env()
    env.cameras = {"front": View(0.0)}
    with pytest.raises(CameraError, match="camera 'exterior_left'; the robot has front"):
        droid(env).pictures()


def test_velocities_are_clipped_as_openpis_example_does_and_positions_are_not() -> None:
    action = np.linspace(-2, 2, 8)
    env = Env()
    droid(env).act(action)
    np.testing.assert_array_equal(env.calls[0], np.clip(action, -1, 1))
    env = Env("joint_position")
    droid(env).act(action)
    np.testing.assert_array_equal(env.calls[0], action)


def test_standing_is_told_to_the_robot_and_its_idle_cycles_are_no_bad_link() -> None:
    env = Env()
    assert "success_rate" not in droid(env).act(None)
    assert env.calls == ["hold"]


def test_a_reflex_is_acknowledged_only_by_the_reset_after_it() -> None:
    env = Env()
    robot = droid(env)
    robot.reset()
    env.fault = ReflexError("cartesian_reflex", ("cartesian_reflex",))
    with pytest.raises(ReflexError):
        robot.act(np.zeros(8))
    assert env.calls == ["reset"]
    robot.reset()
    robot.reset()
    assert env.calls == ["reset", "recover", "reset", "reset"]


def test_a_dry_run_moves_nothing_and_tells_what_the_filter_would_do() -> None:
    env = Env()
    robot = droid(env, judge=filter_report(env))
    robot.reset()
    robot.act(None)
    calm = robot.act(np.zeros(8))
    wild = robot.act(np.full(8, 1.0))
    robot.stop()
    assert env.calls == []
    assert not calm["interventions"]
    assert wild["interventions"]
    with pytest.raises(ContractMismatchError, match="without moving"):
        filter_report(Env("cartesian_velocity"))


# ---------------------------------------------------------------- contract


def robot_says(**changes: Any) -> ServerMetadata:
    import dataclasses

    return dataclasses.replace(robot_metadata(Env(), controller_profile="droid"), **changes)


def test_policy_and_robot_that_fit_agree() -> None:
    agreement = agree(DROID, robot_says(), stated=ServerMetadata(), execute_steps=8)
    assert agreement.policy == DROID
    assert not agreement.warnings


def test_a_server_that_says_nothing_needs_the_operators_word() -> None:
    """openpi's own servers say nothing for DROID."""
    stated = ServerMetadata(action_space="joint_velocity", action_horizon=15)
    agreement = agree(ServerMetadata(), robot_says(), stated=stated, execute_steps=8)
    assert agreement.policy == stated
    assert "controller_profile: the policy server does not say" in agreement.warnings


def test_another_rate_than_the_policys_is_a_warning() -> None:
    agreement = agree(
        DROID, robot_says(), stated=ServerMetadata(), execute_steps=8, control_hz=10.0
    )
    assert agreement.warnings == ("control_hz: 15 of the policy against the executor's 10",)


@pytest.mark.parametrize(
    ("server", "stated", "robot", "execute_steps", "reason"),
    [
        ({}, {}, {"action_space": "joint_position"}, 8, "joint_velocity against joint_position"),
        ({}, {}, {"controller_profile": "stiff"}, 8, "controller_profile: droid against stiff"),
        ({}, {}, {"control_hz": 20.0}, 8, "control_hz"),
        ({}, {}, {"gripper": "1 open, 0 closed"}, 8, "gripper"),
        ({}, {}, {}, 16, "at most the former"),
        ({}, {"action_horizon": 10}, {}, 8, "contradicts"),
        ({"inputs": {"observation/image": (8, 8, 3)}}, {}, {}, 8, "asks for observation/image"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_moves(
    server: dict[str, Any],
    stated: dict[str, Any],
    robot: dict[str, Any],
    execute_steps: int,
    reason: str,
) -> None:
    import dataclasses

    with pytest.raises(ContractMismatchError, match=reason):
        agree(
            dataclasses.replace(DROID, **server),
            robot_says(**robot),
            stated=ServerMetadata(**stated),
            execute_steps=execute_steps,
        )


def test_a_session_runs_an_episode_over_the_network() -> None:
    env = Env()
    policy = Echo()
    with (
        PolicyServer(policy, metadata=DROID, config=ServerConfig(port=0)).running() as server,
        open_session(
            droid(env),
            robot_says(),
            client=ClientConfig(url=server.url, answer_timeout_s=20.0),
            executor=ExecutorConfig(
                control_hz=50.0, max_steps=30, max_hold_s=20.0, max_camera_age_s=20.0
            ),
        ) as session,
    ):
        session.executor.reset()
        report = session.executor.run("put the cube into the bowl", session.fetcher)
    assert (report.ending, report.executed) == ("max_steps", 30)
    assert report.interventions == {"scaled": 30}
    assert {request["prompt"] for request in policy.seen} == {"put the cube into the bowl"}
    assert env.calls[0] == "reset"
    assert env.calls[-1] == "stop"
    assert session.executor.state is State.IDLE


def test_a_server_that_is_not_there_or_does_not_fit_leaves_the_robot_alone() -> None:
    env = Env()
    with (
        pytest.raises(PolicyConnectionError),
        open_session(
            droid(env),
            robot_says(),
            client=ClientConfig(url="127.0.0.1:9", connect_timeout_s=1.0),
            executor=ExecutorConfig(),
        ),
    ):
        pass
    with (
        PolicyServer(Echo(), config=ServerConfig(port=0)).running() as server,
        pytest.raises(ContractMismatchError, match=r"--policy\.action_space"),
        open_session(
            droid(env),
            robot_says(),
            client=ClientConfig(url=server.url),
            executor=ExecutorConfig(),
        ),
    ):
        pass
    assert env.calls == []


# ---------------------------------------------------------------- preflight


@pytest.mark.parametrize(("p95", "status"), [(0.1, "ok"), (0.45, "ok"), (0.55, "warning")])
def test_latency_is_compared_with_the_chunk(p95: float, status: str) -> None:
    latency = Latency(p50=p95 / 2, p95=p95, server_p50=p95 / 3)
    assert check_latency(latency, DROID, 15.0).status == status
    assert check_latency(latency, ServerMetadata(), 15.0).status == "warning"


def test_control_cycles_are_counted_while_the_arm_stands() -> None:
    env = Env()
    env.rates = [1.0, 1.0]
    found = check_cycles(droid(env), seconds=3.0, clock=FakeClock())
    assert found.status == "ok"
    assert env.calls.count("hold") == pytest.approx(45, abs=1)
    assert env.calls[-1] == "stop"
    env.rates = [0.5, 1.0]
    assert check_cycles(droid(env), seconds=3.0, clock=FakeClock()).status == "failure"


def looks(env: Env) -> Mapping[str, str]:
    return {c.name: c.status for c in check_cameras(droid(env), max_age_s=10.0)}


def test_covered_and_frozen_cameras_are_found() -> None:
    env = Env()
    assert set(looks(env).values()) == {"ok"}
    env.cameras["wrist"].age_s = 20.0
    assert looks(env)["camera age"] == "failure"
    env.cameras["wrist"].image = np.zeros((224, 224, 3), np.uint8)
    assert looks(env)["wrist_image_left"] == "failure"
    assert looks(env)["exterior_image_1_left"] == "ok"


@pytest.mark.parametrize(
    ("measured", "status", "remedy"),
    [
        ([0.0, 1.0, 0.02], "ok", ""),
        ([1.0, 0.0, 1.0], "failure", "reversed"),
        ([0.5, 0.5, 0.5], "failure", "does not move"),
    ],
)
def test_the_grippers_polarity_is_measured(measured: list[float], status: str, remedy: str) -> None:
    told: list[float] = []
    found = check_gripper(told.append, lambda: measured[len(told) - 1], lambda: None)
    assert told == [0.0, 1.0, 0.0]
    assert found.status == status
    assert remedy in found.remedy


def test_a_recorded_episode_holds_what_was_executed(tmp_path: Any) -> None:
    from simulated import ScriptedSource

    from deploy.executor import Executor
    from deploy.policy_recording import PolicyRecording
    from deploy.recording import read_episode

    class Recordable(Env):
        @property
        def arm(self) -> Any:
            return self

        def get_observation(self) -> dict[str, Any]:
            picture = np.full((8, 8, 4), (1, 2, 3, 255), np.uint8)
            times = {"robot_timestamp_seconds": len(self.calls), "robot_timestamp_nanos": 0}
            return {
                "robot_state": self.get_state()[0],
                "image": {"wrist_left": picture},
                "timestamp": {"robot_state": times},
            }

        def step(self, action: Any) -> dict[str, Any]:
            return {**super().step(action), "rejected": None, "executed_action": action / 2}

    env: Any = Recordable()
    env.profile = type("Profile", (), {"name": "droid"})
    recording = PolicyRecording(tmp_path / "episodes", "put the cube in the bowl")
    clock = FakeClock()
    robot = DroidRobot(recording.wrap(env), {}, Views(cameras={}))
    executor = Executor(robot, ExecutorConfig(max_steps=6, blend="none"), clock=clock)
    executor.connect()
    for _ in range(2):
        executor.reset()
        source = ScriptedSource(clock, 0.1, lambda n: np.full((15, 8), 0.5))
        recording.finish(executor.run("put the cube in the bowl", source))
    files = sorted((tmp_path / "episodes").glob("*.npz"))
    assert len(files) == 2
    episode = read_episode(files[1])
    np.testing.assert_allclose(episode.action, np.full((6, 8), 0.25))
    assert episode.task == "put the cube in the bowl"
    assert episode.meta["ending"] == "max_steps"
    assert episode.meta["spec"]["controller_profile"] == "droid"
    assert episode.frames["wrist"][0, 0, 0].tolist() == [3, 2, 1]


def test_openpis_runtime_drives_the_arm_with_openpis_client(
    openpi_client: ModuleType, openpi_runtime: ModuleType
) -> None:
    env, policy = Env(), Echo()
    steps = iter(range(100))
    arm = OpenpiEnvironment(droid(env), "put it there", done=lambda info: next(steps) == 4)
    with PolicyServer(policy, metadata=DROID, config=ServerConfig(port=0)).running() as server:
        asking = openpi_client.WebsocketClientPolicy(server.url)

        class Agent:
            """One action of each chunk, as openpi's `PolicyAgent` with a broker of horizon 1."""

            def get_action(self, observation: Mapping[str, Any]) -> dict[str, Any]:
                return {"actions": asking.infer(observation)["actions"][0]}

            def reset(self) -> None: ...

        openpi_runtime.Runtime(
            arm, Agent(), [], max_hz=200, num_episodes=2, max_episode_steps=3
        ).run()
    assert [call for call in env.calls if isinstance(call, str)] == ["reset"] * 3
    assert len(policy.seen) == 5, "one episode of the most steps, one that was done"
    assert policy.seen[0]["prompt"] == "put it there"
    assert set(policy.seen[0]) == set(DROID.inputs)
