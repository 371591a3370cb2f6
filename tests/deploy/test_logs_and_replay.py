"""What an episode leaves behind, and playing one again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from simulated import FakeClock, FakeRobot, ScriptedSource

from deploy.errors import ContractMismatchError, DeployError
from deploy.executor import Executor, ExecutorConfig
from deploy.metadata import ServerMetadata
from deploy.replay import RecordedActions, check_recording, read_actions
from deploy.tick_log import TickLog


def run(source: Any, watchers: Any = (), **config: Any) -> tuple[Any, FakeRobot]:
    clock, robot = FakeClock(), FakeRobot()
    if isinstance(source, float):
        source = ScriptedSource(clock, source)
    executor = Executor(robot, ExecutorConfig(**config), clock=clock, watchers=watchers)
    executor.connect()
    executor.reset()
    return executor.run("do it", source), robot


def test_every_tick_is_a_line(tmp_path: Path) -> None:
    log = TickLog(tmp_path / "deep" / "ticks.jsonl")
    report, robot = run(0.6, [log], max_steps=40)
    log.close()
    rows = [json.loads(line) for line in log.path.read_text().splitlines()]
    ticks = [row for row in rows if "state" in row]
    assert len(ticks) == len(robot.actions)
    assert [row["step"] for row in ticks if row["action"]] == list(range(40))
    assert [row["note"] for row in rows if "note" in row] == [text for _, text in report.notes]
    assert log.error == ""


def test_a_full_disk_ends_the_log_and_not_the_episode(tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full on this system")
    log = TickLog(full)
    report, _ = run(0.1, [log], max_steps=40)
    log.close()
    assert (report.ending, report.executed) == ("max_steps", 40)
    assert "No space left" in log.error


def test_recorded_actions_are_played_once_in_order() -> None:
    actions = np.random.default_rng(0).normal(size=(37, 8))
    config = {"max_steps": 37, "execute_steps": 37, "blend": "none", "mode": "async"}
    report, robot = run(RecordedActions(actions), **config)
    np.testing.assert_array_equal(np.stack([a for a in robot.actions if a is not None]), actions)
    assert (report.ending, report.held) == ("max_steps", 1)


@pytest.mark.parametrize(
    ("spec", "stated", "value", "reason"),
    [
        ({"action_space": "joint_velocity", "controller_profile": "droid"}, {}, 0.5, ""),
        ({}, {"action_space": "joint_velocity"}, 0.5, ""),
        ({}, {}, 0.5, r"--policy\.action_space"),
        ({"action_space": "joint_position"}, {}, 0.5, "joint_position against joint_velocity"),
        ({"action_space": "joint_velocity", "controller_profile": "x"}, {}, 0.5, "x against droid"),
        ({"action_space": "joint_velocity"}, {}, 50.0, "more than 5"),
    ],
)
def test_a_recording_must_mean_what_the_robot_does(
    tmp_path: Path, spec: dict[str, Any], stated: dict[str, Any], value: float, reason: str
) -> None:
    if spec:
        (tmp_path / "meta").mkdir()
        (tmp_path / "meta" / "deploy_spec.json").write_text(json.dumps(spec))
    robot = ServerMetadata(action_space="joint_velocity", action_dim=8, controller_profile="droid")
    actions = np.full((2000, 8), value)
    given: Any = {"stated": ServerMetadata(**stated), "override": False}
    if reason:
        with pytest.raises(DeployError, match=reason):
            check_recording(tmp_path, actions, robot, **given)
    else:
        check_recording(tmp_path, actions, robot, **given)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from vla_opt.data import Episode, write_dataset

    rng = np.random.default_rng(0)
    episodes = [
        Episode(
            frames={"wrist": rng.integers(0, 255, (length, 32, 32, 3), dtype=np.uint8)},
            state=rng.normal(size=(length, 8)).astype(np.float32),
            action=rng.normal(size=(length, 8)).astype(np.float32),
            task=task,
            meta={},
        )
        for length, task in ((9, "put the cube in the bowl"), (12, "open the drawer"))
    ]
    root = tmp_path_factory.mktemp("data") / "set"
    return write_dataset(episodes, root, robot_type="fr3"), episodes


def test_an_episode_of_a_data_set_is_found(dataset: Any) -> None:
    root, episodes = dataset
    for number, episode in enumerate(episodes):
        actions, task = read_actions(root, number)
        np.testing.assert_array_equal(actions.astype(np.float32), episode.action)
        assert task == episode.task
    with pytest.raises(DeployError, match="has no episode 2"):
        read_actions(root, 2)
    with pytest.raises(DeployError, match="no LeRobotDataset v3"):
        read_actions(root / "videos", 0)


def test_a_recording_with_nan_is_not_played(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "data").mkdir()
    table = {"episode_index": [0], "frame_index": [0], "task_index": [0], "action": [[np.nan]]}
    pq.write_table(pa.table(table), tmp_path / "data" / "file-000.parquet")
    with pytest.raises(ContractMismatchError, match="not finite"):
        read_actions(tmp_path, 0)


def test_rerun_gets_ticks_notes_and_pictures(tmp_path: Path) -> None:
    rerun = pytest.importorskip("rerun", reason="rerun-sdk is not installed: pip install rerun-sdk")
    from deploy.interfaces import Pictures
    from deploy.rerun_log import RerunLog

    log = RerunLog(tmp_path / "episodes.rrd")
    log.on_pictures(0.0, Pictures(views={"wrist": np.zeros((32, 32, 3), np.uint8)}, age_s=0.0))
    run(0.6, [log], max_steps=40)
    log.close()
    schema = rerun.dataframe.load_recording(tmp_path / "episodes.rrd").schema()
    logged = {column.entity_path.strip("/") for column in schema.component_columns()}
    assert {"action", "state", "latency_ms", "interventions", "notes", "wrist"} <= logged


def test_without_rerun_the_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    from deploy.errors import RobotError
    from deploy.rerun_log import RerunLog

    monkeypatch.setitem(sys.modules, "rerun", None)
    with pytest.raises(RobotError, match="pip install 'rerun-sdk"):
        RerunLog(tmp_path / "episodes.rrd")
