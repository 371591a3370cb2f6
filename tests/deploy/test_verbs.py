"""`vla-opt serve` and `vla-opt deploy` as a person meets them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from arms import IdealArm, IdealGripper
from policies_for_tests import DROID, Echo
from simulated import FakeClock, FakeRobot, ScriptedSource

import vla_opt.cli.main as cli
from deploy.droid import DroidRobot
from deploy.errors import ReflexError
from deploy.executor import Executor, ExecutorConfig
from deploy.robot import Robot
from deploy.robot_env import RobotEnv
from deploy.safety import CAUTIOUS
from deploy.server import PolicyServer, ServerConfig
from vla_opt.cli._config import parse
from vla_opt.cli._deploy_config import DeployConfig, Opened
from vla_opt.cli._deploy_run import ReplayConfig, _clear_fault, _episodes
from vla_opt.cli.serve import ServeConfig, _api_key, _server_config
from vla_opt.errors import ConfigError

PLUGIN = Path(__file__).resolve().parent.parent / "vla_opt" / "plugin"


def test_an_unknown_word_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["deploy", "chekc"]) == 2
    assert "Did you mean 'check'?" in capsys.readouterr().err
    assert cli.main(["deploy"]) == 2
    assert cli.main(["deploy", "--help"]) == 0
    assert "dry-run" in capsys.readouterr().out


def test_nested_keys_reach_server_robot_and_executor() -> None:
    words = ["--server.url=ws://gpu:9000", "--executor.blend=ensemble", "--robot.safety=full"]
    config = parse(DeployConfig, [*words, "--policy.action_horizon=15", "--prompt=do it"])
    assert config.server.url == "ws://gpu:9000"
    assert config.executor.blend == "ensemble"
    assert config.robot.safety == "full"
    assert config.policy.metadata().action_horizon == 15
    assert config.instruction() == "do it"
    assert parse(ReplayConfig, ["--dataset=d", "--executor.max_steps=3"]).executor.max_steps == 3


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "--prompt"),
        (["--task=cube_to_bwl"], "Did you mean 'cube_to_bowl'"),
        (["--task=cube_to_bowl", "--robot.robot=192.168.1.2"], "simulated robot"),
    ],
)
def test_what_to_do_must_be_said(words: list[str], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        parse(DeployConfig, words).instruction()


def at_a_terminal(monkeypatch: pytest.MonkeyPatch, *answers: str) -> list[str]:
    """The operator sits at a terminal and answers; returns what was asked."""
    asked: list[str] = []
    left = list(answers)

    def answer(question: str) -> str:
        asked.append(question)
        return left.pop(0)

    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", answer)
    return asked


def episodes_with_reflexes(*at: int) -> tuple[list[str], FakeRobot]:
    """Endings of three episodes of five actions on a robot that reflexes at these actions."""
    clock = FakeClock()
    robot = FakeRobot({n: ReflexError("it touched something", ("cartesian_reflex",)) for n in at})
    executor = Executor(robot, ExecutorConfig(max_steps=5), clock=clock)
    executor.connect()
    config = DeployConfig(prompt="do it", episodes=3)
    opened: Any = None  # asked of simulated tasks alone
    source = ScriptedSource(clock, 0.0)
    reports = _episodes(config, opened, executor, source, "do it")
    return [report.ending for report in reports], robot


def test_after_a_reflex_the_operator_confirms_and_once_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = at_a_terminal(monkeypatch, "recover", "recover")
    endings, robot = episodes_with_reflexes(3, 6)
    assert endings == ["reflex", "reflex"]
    assert len(asked) == 2
    assert "find the cause" in capsys.readouterr().out
    assert robot.calls.count("reset") == 2


@pytest.mark.parametrize("answer", ["", "yes", None], ids=["nothing", "yes", "no terminal"])
def test_without_the_operators_word_a_reflex_is_the_end(
    answer: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if answer is not None:
        at_a_terminal(monkeypatch, answer)
    assert episodes_with_reflexes(3)[0] == ["reflex"]
    if answer is not None:
        at_a_terminal(monkeypatch, "recover")
        assert episodes_with_reflexes(3)[0] == ["reflex", "max_steps", "max_steps"]


def test_a_robot_found_in_a_fault_is_recovered_if_the_operator_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arm = IdealArm()
    arm.mode, arm.errors = "reflex", ("joint_velocity_violation",)
    parts = Robot(arm=arm, gripper=IdealGripper(), cameras={}, profile=CAUTIOUS)
    env = RobotEnv("joint_velocity", "position", do_reset=False, robot=parts)
    opened = Opened(env=env, robot=DroidRobot(env, {}), says=DROID)
    at_a_terminal(monkeypatch, "no")
    with pytest.raises(ReflexError, match="joint_velocity_violation"):
        _clear_fault(opened)
    assert arm.halts == []
    at_a_terminal(monkeypatch, "recover")
    _clear_fault(opened)
    assert arm.halts == [True]


def test_a_task_brings_its_own_words() -> None:
    assert parse(DeployConfig, ["--task=cube_to_bowl"]).instruction() == "put the cube in the bowl"


def test_impossible_values_are_configuration_errors() -> None:
    with pytest.raises(ConfigError, match="executor: execute_steps=0"):
        parse(DeployConfig, ["--executor.execute_steps=0"])
    with pytest.raises(ConfigError, match="port=70000"):
        _server_config(ServeConfig(checkpoint=Path("x"), port=70000))


def test_the_key_comes_from_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VLA_OPT_API_KEY", raising=False)
    assert _api_key(None) is None
    monkeypatch.setenv("VLA_OPT_API_KEY", "from the environment")
    assert _api_key(None) == "from the environment"
    (tmp_path / "key").write_text("from a file\n")
    assert _api_key(tmp_path / "key") == "from a file"
    (tmp_path / "key").write_text("\n")
    with pytest.raises(ConfigError, match="api_key is empty"):
        _server_config(ServeConfig(checkpoint=Path("x"), api_key_file=tmp_path / "key"))
    with pytest.raises(ConfigError, match="cannot be read"):
        _api_key(tmp_path / "absent")


def test_check_looks_at_a_server_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with PolicyServer(Echo(), metadata=DROID, config=ServerConfig(port=0)).running() as it:
        words = ["deploy", "check", "--skip_robot=true", "--server.connect_timeout_s=20"]
        assert cli.main([*words, f"--server.url={it.url}"]) == 0
        assert "action_space joint_velocity" in capsys.readouterr().out
    assert cli.main([*words, f"--server.url={it.config.host}:9"]) == 1
    assert "failure  policy server" in capsys.readouterr().out


def test_serving_nothing_is_explained(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["serve", str(tmp_path / "absent")]) == 1
    error = capsys.readouterr().err
    assert "There is no checkpoint" in error
    assert "Traceback" not in error


@pytest.mark.slow
def test_serve_answers_until_it_is_interrupted(tiny_checkpoint: Path) -> None:
    from policies_for_tests import droid_request

    from deploy.client import ClientConfig, PolicyClient

    command = [sys.executable, "-m", "vla_opt.cli.main", "serve", str(tiny_checkpoint), "--port=0"]
    command += ["--action_space=joint_velocity", "--policy.discover_packages_path=tiny_policy"]
    environment = {**os.environ, "PYTHONPATH": str(PLUGIN), "VLA_OPT_API_KEY": "secret"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as process:
        assert process.stdout is not None
        try:
            printed: list[str] = []
            while not printed or not printed[-1].startswith("serving on"):
                line = process.stdout.readline()
                assert line, printed
                printed.append(line)
            url = printed[-1].split()[2]
            config: Any = {"connect_timeout_s": 60.0, "answer_timeout_s": 60.0}
            with PolicyClient(ClientConfig(url=url, api_key="secret", **config)) as client:
                assert client.infer(droid_request())["actions"].shape == (10, 8)
            process.send_signal(signal.SIGINT)
            rest = process.stdout.read()
            assert process.wait(60) == 0
        finally:
            process.kill()
    assert "1 requests answered, 0 refused" in rest
    assert "takes observation/wrist_image_left: 48 x 64 x 3" in "".join(printed)
