"""Optimizers from one start: the same scenes and episodes, the start evaluated once, resumable."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest

PLUGIN = Path(__file__).parent / "plugin"
sys.path.insert(0, str(PLUGIN))

import fake_eval  # noqa: E402
from rl_toys import Reach, fill_checkpoint  # noqa: E402

from vla_opt.checkpoint import write_checkpoint  # noqa: E402
from vla_opt.evaluation.config import EvalConfig  # noqa: E402
from vla_opt.io import read_jsonl  # noqa: E402
from vla_opt.rl.compare import RLCompareConfig, rl_compare  # noqa: E402
from vla_opt.rl.config import ObjectiveConfig, RLConfig, RolloutsConfig  # noqa: E402


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RLCompareConfig:
    monkeypatch.setattr("vla_opt.rl.run.evaluate", fake_eval.evaluate)
    fake_eval.RUN.clear()
    return RLCompareConfig(
        run=RLConfig(
            checkpoint=write_checkpoint(tmp_path / "start", 1, fill_checkpoint),
            rollouts=RolloutsConfig(
                groups=1, group_size=3, max_rounds=1, execute_steps=2, backend="serial"
            ),
            objective=ObjectiveConfig(max_rows=8),
            trainable=("action_head",),
            eval=EvalConfig(episodes=6),
            updates=1,
            tensorboard=False,
        ),
        arms={
            "adamw": {"name": "adamw", "lr": 1e-2},
            "pion_per_head": {"name": "pion", "lr": 1e-2, "num_heads": 2},
        },
        seeds=(0, 3),
        output_dir=tmp_path / "compare",
    )


def test_every_arm_is_run_from_the_start_and_set_against_it(config: RLCompareConfig) -> None:
    comparison = rl_compare(config, make_env=Reach)
    assert [arm.name for arm in comparison.arms] == ["start", "adamw", "pion_per_head"]
    assert all(arm.scored == 12 for arm in comparison.arms)
    assert {(pair.a, pair.b) for pair in comparison.pairs} >= {("start", "adamw")}
    starts = [p for p in fake_eval.RUN if p.name == "000000"]
    assert len(starts) == 1, "the start was evaluated more than once"
    assert [[p.step for p in curve.points] for curve in comparison.curves] == [[0, 1]] * 4
    runs = [config.output_dir / arm / f"seed_{s}" for arm in config.arms for s in config.seeds]
    scenes = [read_jsonl(run / "rollouts.jsonl") for run in runs]
    assert all(len(rows) == 3 for rows in scenes)  # the same budget of episodes
    assert "pion" in (runs[2] / "metadata.json").read_text()
    found = json.loads((config.output_dir / "result.json").read_text())
    assert found["controls"] == ["start"]
    assert "start is a control" in (config.output_dir / "result.md").read_text()
    assert (config.output_dir / "result.html").exists()
    again = list(fake_eval.RUN)
    assert rl_compare(config, make_env=Reach).to_dict() == comparison.to_dict()
    assert again == fake_eval.RUN


def played(config: RLCompareConfig, arm: str) -> list[dict[str, Any]]:
    rows = read_jsonl(config.output_dir / arm / "seed_0/rollouts.jsonl")
    return [{key: value for key, value in row.items() if key != "wall_s"} for row in rows]


@pytest.mark.slow
def test_runs_side_by_side_are_those_of_one_after_another(config: RLCompareConfig) -> None:
    alone = dataclasses.replace(config, seeds=(0,))
    many = dataclasses.replace(alone, parallel=2, output_dir=config.output_dir / "many")
    expected = rl_compare(alone, make_env=Reach)
    from reach_apart import Reach as Apart  # after `evaluate` was replaced, which is undone

    told: list[tuple[int, int]] = []
    found = rl_compare(many, make_env=Apart, progress=lambda *counts: told.append(counts))
    assert told[-1] == (2, 2)
    for arm in config.arms:
        assert played(alone, arm) == played(many, arm)
    expected_arms, found_arms = ([(a.name, a.successes) for a in c.arms] for c in (expected, found))
    assert found_arms == expected_arms
    assert rl_compare(many, make_env=Apart).to_dict() == found.to_dict()


def test_an_arm_without_a_signal_runs_its_episodes_like_the_others(config: RLCompareConfig) -> None:
    class Unreachable(Reach):
        def reset(self, *, seed: int, options: object = None) -> Any:
            super().reset(seed=seed, options=options)
            self._goal = 1e9
            return self._observe(), {"is_success": False, "steps": 0}

    several = dataclasses.replace(
        config, run=dataclasses.replace(config.run, updates=4), seeds=(0,)
    )
    rl_compare(several, make_env=Unreachable)
    rows = [read_jsonl(several.output_dir / a / "seed_0/rollouts.jsonl") for a in several.arms]
    assert [len(found) for found in rows] == [12, 12]


def test_an_arm_that_does_not_exist_is_refused(config: RLCompareConfig) -> None:
    with pytest.raises(ValueError, match=r"arm pion: .*optimiser"):
        dataclasses.replace(config, arms={"pion": {"name": "optimiser"}})
    with pytest.raises(ValueError, match="none named start"):
        dataclasses.replace(config, arms={"start": {"name": "pion"}})
    with pytest.raises(ValueError, match="none twice"):
        dataclasses.replace(config, seeds=(1, 1))
