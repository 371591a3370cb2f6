"""Demonstrations of the simulated tasks: what disturbs them, what is kept, where it goes on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import deploy.sim.demos as demos
from deploy.errors import DeployError
from deploy.sim.demos import Attempt, DemosConfig, Disturbance, read_attempts
from deploy.sim.tasks import TASKS, random_placements


def test_a_disturbance_lasts_repeats_and_spares_the_gripper() -> None:
    action = np.append(np.full(7, 0.1), 1.0)
    disturb, again = Disturbance(0.1, seed=3), Disturbance(0.1, seed=3)
    seen = np.array([disturb(action, 1.0) for _ in range(120)])
    np.testing.assert_array_equal(seen, [again(action, 1.0) for _ in range(120)])
    assert np.all(seen[:, 7] == 1.0)
    off = seen[:, :7] - 0.1
    assert 0.08 < off.std() < 0.13
    neighbours = np.corrcoef(off[:-1].ravel(), off[1:].ravel())[0, 1]
    assert neighbours > 0.5, "the arm is led away, not shaken"
    np.testing.assert_array_equal(Disturbance(0.0, seed=3)(action, 1.0), action)
    np.testing.assert_array_equal(Disturbance(0.1, seed=3)(action, 0.0), action)


def test_scenes_of_demonstrations_are_none_of_the_rehearsals() -> None:
    config = DemosConfig()
    assert config.seed > 100_000 > len(TASKS) * 1000
    assert random_placements(config.seed) != random_placements(0)


def attempts_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, solves: Any, **changes: Any
) -> Any:
    """Record without an arm: attempt n of a task solves it if `solves(n)`."""
    config = DemosConfig(output_dir=tmp_path, **changes)
    seen: list[Attempt] = []

    def attempt(task: Any, *_: Any, number: int, seed: int, noise: float, **__: Any) -> Attempt:
        found = Attempt(
            task=task.name,
            number=number,
            seed=seed,
            noise=noise,
            solved=solves(number),
            steps=100,
            seconds=6.7,
            skipped=0,
        )
        seen.append(found)
        return found

    monkeypatch.setattr(demos, "demonstrate", attempt)
    nobody: Any = SimpleNamespace()
    for name in config.tasks:
        demos._record_task(config, nobody, nobody, nobody, name)
    return seen


def test_failed_attempts_are_made_up_for_and_no_scene_is_used_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = attempts_of(tmp_path, monkeypatch, lambda number: number != 1, per_task=3)
    assert [a.number for a in seen] == [0, 1, 2, 3] * len(TASKS)
    assert len({a.seed for a in seen}) == len(seen)
    assert [a.noise for a in seen[:4]] == [0.0, 0.05, 0.1, 0.0]
    assert read_attempts(tmp_path) == seen


def test_recording_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone: dict[str, Any] = {"per_task": 2, "tasks": ("cube_to_plate",)}
    first = attempts_of(tmp_path, monkeypatch, lambda n: True, **alone)
    assert attempts_of(tmp_path, monkeypatch, lambda n: True, **alone) == []
    more = attempts_of(tmp_path, monkeypatch, lambda n: True, per_task=3)
    of_task = [a for a in more if a.task == "cube_to_plate"]
    assert [a.number for a in of_task] == [2]
    assert of_task[0].seed not in {a.seed for a in first}


def test_a_demonstrator_that_fails_on_and_on_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DeployError, match="cube_to_bowl 0 times of 6"):
        attempts_of(tmp_path, monkeypatch, lambda number: False, per_task=2)


@pytest.mark.slow
def test_a_demonstration_is_recorded_over_the_protocol(tmp_path: Path) -> None:
    """One attempt on the simulated arm becomes a data set that says what its actions mean."""
    pytest.importorskip("franka")
    from deploy.spec_file import read_spec
    from vla_opt._lerobot_read import DatasetFiles

    config = DemosConfig(
        tasks=("cube_to_bowl",), per_task=1, noise_levels=(0.05,), output_dir=tmp_path
    )
    files = DatasetFiles(demos.record(config))
    (attempt,) = [a for a in read_attempts(tmp_path) if a.solved]
    assert files.episodes[0].length == attempt.steps
    assert files.tasks == [TASKS["cube_to_bowl"].instruction]
    assert {key.rpartition(".")[2] for key in files.camera_keys} == {"exterior_left", "wrist"}
    columns = files.columns(["action", "observation.state"])
    assert set(np.unique(columns["action"][:, 7])) == {0.0, 1.0}
    assert columns["observation.state"][:, 7].max() > 0.3, "it held the cube"
    said = read_spec(files.root / "meta")
    assert said is not None
    assert (said.action_space, said.controller_profile) == ("joint_velocity", "franka-rs-joint")
