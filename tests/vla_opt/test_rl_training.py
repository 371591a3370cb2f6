"""Runs of reinforcement learning over a small world: repeatable, resumable, fault tolerant."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

PLUGIN = Path(__file__).parent / "plugin"
sys.path.insert(0, str(PLUGIN))

import rl_toys  # noqa: E402
from rl_toys import Reach, fill_checkpoint  # noqa: E402

from envs._ray_cluster import ray_cluster  # noqa: E402
from envs.rollout import EpisodeKey, RolloutConfig  # noqa: E402
from envs.standing_pool import standing_pool  # noqa: E402
from vla_opt._run_log import comparable  # noqa: E402
from vla_opt.checkpoint import write_checkpoint  # noqa: E402
from vla_opt.errors import ConfigError  # noqa: E402
from vla_opt.evaluation.inference import CheckpointPolicy  # noqa: E402
from vla_opt.io import read_jsonl  # noqa: E402
from vla_opt.optim.config import OptimizerConfig  # noqa: E402
from vla_opt.rl._worker import GroupScenes, RolloutWorker, StaleWeightsError  # noqa: E402
from vla_opt.rl.acting import ActingPolicy, load_version, save_version  # noqa: E402
from vla_opt.rl.collect import Collector, RolloutError  # noqa: E402
from vla_opt.rl.config import ExplorationConfig, ObjectiveConfig, RLConfig, RolloutsConfig  # noqa: E402
from vla_opt.rl.run import Listener, rl_train  # noqa: E402
from vla_opt.rl.session import build_session  # noqa: E402
from vla_opt.rl.trajectories import (  # noqa: E402
    RolloutItem,
    Trajectory,
    executed_actions,
    load_trajectories,
    save_trajectories,
)

EXPLORATION = ExplorationConfig(std=0.3)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint; do not change it."""
    return write_checkpoint(tmp_path_factory.mktemp("start") / "checkpoints", 5, fill_checkpoint)


@pytest.fixture
def config(start: Path, tmp_path: Path) -> RLConfig:
    return RLConfig(
        checkpoint=start,
        rollouts=RolloutsConfig(
            groups=2, group_size=3, max_rounds=3, execute_steps=2, backend="serial"
        ),
        exploration=ExplorationConfig(std=0.3, learn_std=True),
        objective=ObjectiveConfig(epochs=2, minibatches=2, kl_weight=0.1, max_rows=8),
        optimizer=OptimizerConfig(name="pion", lr=1e-3),
        output_dir=tmp_path / "run",
        updates=2,
        save_every=1,
        keep_last=0,
        tensorboard=False,
    )


def log_of(folder: Path) -> list[dict[str, Any]]:
    """Rows of the log without seconds."""
    rows = comparable(read_jsonl(folder / "log.jsonl"))
    return [{k: v for k, v in row.items() if not k.endswith("_s")} for row in rows]


def files_of(checkpoint: Path) -> dict[str, bytes]:
    """What must repeat bit for bit of a checkpoint."""
    skipped = {"manifest.json", "rl.json", "trajectories.json"}  # hold seconds
    files = [p for p in checkpoint.rglob("*") if p.is_file() and p.name not in skipped]
    return {str(p.relative_to(checkpoint)): p.read_bytes() for p in files}


def same(a: Trajectory, b: Trajectory) -> bool:
    """Whether two episodes agree in every bit that counts."""
    arrays = ("latents", "log_prob", "executed")
    facts = ("key", "success", "steps", "version", "task")
    return (
        all(np.array_equal(getattr(a, n), getattr(b, n)) for n in arrays)
        and all(getattr(a, n) == getattr(b, n) for n in facts)
        and all(np.array_equal(a.inputs[n], b.inputs[n]) for n in a.inputs)
    )


def acting(start: Path, **changes: Any) -> ActingPolicy:
    options = {"exploration": EXPLORATION, "execute_steps": 2, "seed": 0, **changes}
    return ActingPolicy(start, **options)


def items(groups: int, members: int, version: int = 0) -> list[RolloutItem]:
    return [
        RolloutItem(
            key=EpisodeKey(suite="libero_object", task_id=0, init_state=g, trial=m), version=version
        )
        for g in range(groups)
        for m in range(members)
    ]


ROLLOUT = RolloutConfig(execute_steps=2, image_size=64, videos="none")


def play(policy: Any, wanted: list[RolloutItem]) -> dict[EpisodeKey, Trajectory]:
    worker = RolloutWorker(policy, ROLLOUT, 0, Reach)
    return {item.key: worker.run(item) for item in wanted}


class TestRun:
    def test_only_what_is_named_learns(self, config: RLConfig, start: Path) -> None:
        config = dataclasses.replace(config, trainable=("action_head",), updates=1)
        summary = rl_train(config, make_env=Reach)
        before = CheckpointPolicy(start).policy.state_dict()
        after = CheckpointPolicy(summary.checkpoint).policy.state_dict()
        moved = {n.split(".")[1] for n, value in before.items() if not torch.equal(value, after[n])}
        assert moved == {"action_head"}

    def test_run_leaves_log_curve_and_a_checkpoint_that_can_act(self, config: RLConfig) -> None:
        told: list[int] = []

        class Watch(Listener):
            def updated(self, row: dict[str, Any]) -> None:
                told.append(row["step"])

        summary = rl_train(config, Watch(), Reach)
        assert (summary.updates, told) == (2, [1, 2])
        rows = [row for row in log_of(config.output_dir) if row["kind"] == "rl"]
        learned = [row for row in rows if row["groups"]["learned_episodes"]]
        assert learned, "no group had a signal: the test shows nothing"
        reading = learned[0]["update"]
        assert reading["steps"] == 4
        assert reading["gradient"]["norm"] > 0
        assert reading["rollout_mismatch"] < 1e-3
        assert reading["heads"]["head_update_variance"] >= 0
        assert reading["after"]["ratio_max"] > 1
        episodes = read_jsonl(config.output_dir / "rollouts.jsonl")
        assert summary.episodes == len(episodes)
        assert "| 2 |" in (config.output_dir / "success.md").read_text()
        assert "<svg" in (config.output_dir / "success.html").read_text()
        before, after = CheckpointPolicy(config.checkpoint), CheckpointPolicy(summary.checkpoint)
        states = (p.policy.state_dict() for p in (before, after))
        assert any(
            not torch.equal(a, b) for a, b in zip(*(s.values() for s in states), strict=True)
        )

    def test_stopped_run_goes_on_to_the_same_bytes(self, config: RLConfig, tmp_path: Path) -> None:
        whole = rl_train(dataclasses.replace(config, output_dir=tmp_path / "whole"), None, Reach)
        rl_train(dataclasses.replace(config, updates=1), None, Reach)
        for name in ("log.jsonl", "rollouts.jsonl"):  # killed while update 2 was being written
            with (config.output_dir / name).open("a") as file:
                file.write('{"kind":"rl","step":2}\n{"step"')
        resumed = rl_train(config, None, Reach)
        assert resumed.weights == whole.weights
        assert files_of(resumed.checkpoint) == files_of(whole.checkpoint)
        assert log_of(config.output_dir) == log_of(tmp_path / "whole")

    def test_damaged_checkpoint_is_passed_over_and_said(self, config: RLConfig) -> None:
        done = rl_train(config, None, Reach)
        newest = done.checkpoint / "training_state" / "rl.json"
        newest.write_text("{}", encoding="utf-8")
        assert rl_train(config, None, Reach).weights == done.weights
        (warning,) = read_jsonl(config.output_dir / "warnings.jsonl")
        assert "rl.json" in warning["message"]
        assert f"Going on from update {config.updates - 1}" in warning["message"]

    def test_groups_that_wait_and_the_watch_survive_a_stop(
        self, config: RLConfig, start: Path
    ) -> None:
        session = build_session(config)
        session.leftover = list(play(acting(start), items(1, 2)).values())
        session.watch.check(
            successes=9, episodes=9, entropy=1.0, clip_fraction=0.0, approx_kl=0.0, gain=0.0
        )
        session.step, session.next_group = 1, 8
        with torch.no_grad():
            session.acting.actor.get_parameter("log_std").sub_(0.5)
        session.save()
        again = build_session(config)
        assert all(same(a, b) for a, b in zip(session.leftover, again.leftover, strict=True))
        assert len(again.leftover) == 2
        assert (again.step, again.acting.version, again.next_group) == (1, 1, 8)
        assert again.watch.state_dict()["best"] == (9, 9)
        assert again.weights_hash() == session.weights_hash()

    def test_another_run_is_not_continued(self, config: RLConfig) -> None:
        one = dataclasses.replace(config, updates=1)
        rl_train(one, None, Reach)
        other = dataclasses.replace(one, objective=ObjectiveConfig(name="gmpo"))
        with pytest.raises(ConfigError, match=r"objective.name: 'grpo' then, 'gmpo' now"):
            rl_train(other, None, Reach)

    @pytest.mark.parametrize("name", ["adamw", "muon", "pion"])
    def test_every_optimizer_takes_a_step(self, config: RLConfig, name: str) -> None:
        optimizer = OptimizerConfig(name=name, lr=1e-3)
        one = dataclasses.replace(config, optimizer=optimizer, updates=1)
        rl_train(one, None, Reach)
        (row,) = [row for row in log_of(config.output_dir) if row["kind"] == "rl"]
        assert row["update"]["after"]["approx_kl"] > 0

    def test_per_head_pion_takes_a_step(self, config: RLConfig) -> None:
        optimizer = OptimizerConfig(name="pion", preset="qwen3", num_heads=2, lr=1e-3)
        rl_train(dataclasses.replace(config, optimizer=optimizer, updates=1), None, Reach)
        assert "num_heads" in str(optimizer.rules())
        (row,) = [row for row in log_of(config.output_dir) if row["kind"] == "rl"]
        assert row["update"]["after"]["approx_kl"] > 0

    def test_flow_policy_learns_by_its_path(self, config: RLConfig, tmp_path: Path) -> None:
        checkpoint = write_checkpoint(
            tmp_path / "flow", 1, lambda folder: fill_checkpoint(folder, "flow")
        )
        changed = dataclasses.replace(
            config,
            checkpoint=checkpoint,
            exploration=ExplorationConfig(noise_level=0.5, flow_steps=3),
            objective=ObjectiveConfig(name="gmpo", level="part"),
            updates=1,
        )
        rl_train(changed, None, Reach)
        (row,) = [row for row in log_of(config.output_dir) if row["kind"] == "rl"]
        assert row["update"]["rollout_mismatch"] < 1e-2
        assert row["update"]["after"]["approx_kl"] > 0

    def test_entropy_bonus_without_a_learned_deviation_is_refused(self, start: Path) -> None:
        with pytest.raises(ValueError, match="learn_std"):
            RLConfig(checkpoint=start, objective=ObjectiveConfig(entropy_weight=0.1))


class TestRollouts:
    def test_members_share_the_scene_and_differ_in_what_they_do(self, start: Path) -> None:
        found = list(play(acting(start), items(2, 3)).values())
        goals = [t.inputs["observation.state"][0, 0] for t in found]
        assert len(set(goals[:3])) == 1
        assert goals[0] != goals[3]
        assert len({t.latents[0].tobytes() for t in found}) == 6

    def test_noise_depends_on_group_member_and_decision_alone(self, start: Path) -> None:
        forward, backward = items(2, 2), items(2, 2)[::-1]
        a, b = play(acting(start), forward), play(acting(start), backward)
        assert all(same(a[key], b[key]) for key in a)

    def test_another_seed_gives_other_noise(self, start: Path) -> None:
        (a,), (b,) = (play(acting(start, seed=s), items(1, 1)).values() for s in (0, 1))
        assert not np.array_equal(a.latents[0], b.latents[0])

    def test_actions_after_the_end_of_an_episode_do_not_count(self, start: Path) -> None:
        for t in play(acting(start), items(3, 3)).values():
            assert t.executed.sum() == t.steps
            assert t.executed[:-1].all()
        assert executed_actions(8, 2, 4).all()

    def test_trajectories_come_back_exactly(self, start: Path, tmp_path: Path) -> None:
        found = list(play(acting(start), items(1, 2)).values())
        save_trajectories(tmp_path, found)
        assert all(same(a, b) for a, b in zip(found, load_trajectories(tmp_path), strict=True))

    def test_other_weights_than_asked_for_are_refused(self, start: Path, tmp_path: Path) -> None:
        with pytest.raises(StaleWeightsError, match="version 3"):
            play(acting(start), items(1, 1, version=3))
        with pytest.raises(StaleWeightsError, match=r"no weights 000003.safetensors"):
            play(acting(start, weights=tmp_path), items(1, 1, version=3))

    def test_asked_for_weights_are_fetched(self, start: Path, tmp_path: Path) -> None:
        learner, actor = acting(start), acting(start, weights=tmp_path)
        with torch.no_grad():
            for parameter in learner.actor.parameters():
                parameter.add_(0.01)
        learner.version = 4
        save_version(learner.actor, tmp_path, 4)
        a, b = (play(p, items(1, 2, version=4)) for p in (learner, actor))
        assert all(same(a[key], b[key]) for key in a)
        save_version(learner.actor, tmp_path, 5)
        with pytest.raises(StaleWeightsError):
            load_version(actor.actor, tmp_path, 4)

    def test_a_group_does_not_start_from_an_initial_state_of_the_evaluation(self) -> None:
        env = Reach(("libero_object", 0), ROLLOUT)
        scenes = GroupScenes(env, 0, ("libero_object", 0))
        for member_seed in (1, 2):
            scenes.reset(seed=member_seed, options={"init_state": 7})
        assert len(set(env.seeds)) == 1


def outcome_pool(rewards: dict[int, list[bool]], seen: list[RolloutItem]) -> Any:
    """A pool that knows the outcome of each member."""
    from envs.pool import Outcome

    def run(wanted: list[RolloutItem]) -> Any:
        for item in reversed(wanted):
            seen.append(item)
            key = item.key
            yield Outcome(
                item=item,
                result=Trajectory(
                    key=key,
                    success=rewards[key.init_state][key.trial],
                    steps=2,
                    wall_s=0.0,
                    version=item.version,
                    task="go",
                    inputs={},
                    latents=np.zeros((1, 2, 7)),
                    log_prob=np.zeros((1, 2)),
                    executed=np.ones((1, 2), bool),
                ),
            )

    return run


def test_a_simulation_worker_holds_no_torch() -> None:
    code = "import sys, vla_opt.rl._worker; assert not {'torch', 'lerobot'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


class TestCollector:
    CONFIG = RolloutsConfig(groups=2, group_size=2, max_rounds=2, execute_steps=2)

    def test_groups_without_a_signal_are_replaced(self) -> None:
        rewards = {0: [True, True], 1: [True, False], 2: [False, True], 3: [False, False]}
        seen: list[RolloutItem] = []
        harvest = Collector(self.CONFIG, outcome_pool(rewards, seen)).collect(0, 0)
        assert [(t.group, t.key.trial) for t in harvest.chosen] == [(1, 0), (1, 1), (2, 0), (2, 1)]
        assert (harvest.groups, harvest.all_succeeded, harvest.all_failed) == (4, 1, 1)
        assert (harvest.next_group, harvest.successes, harvest.scored) == (4, 4, 8)

    def test_resampling_is_bounded(self) -> None:
        rewards = {g: [False, False] for g in range(9)}
        seen: list[RolloutItem] = []
        harvest = Collector(self.CONFIG, outcome_pool(rewards, seen)).collect(0, 0)
        assert harvest.chosen == []
        assert len(seen) == 8

    @pytest.mark.parametrize(
        ("on_stale", "age", "used"),
        [("refuse", 1, False), ("correct", 1, True), ("correct", 2, False)],
    )
    def test_stale_groups_are_refused_or_kept(self, on_stale: str, age: int, used: bool) -> None:
        rewards = {g: [True, False] for g in range(9)}
        config = dataclasses.replace(self.CONFIG, on_stale=on_stale)
        old = [o.result for o in outcome_pool(rewards, [])(items(1, 2, version=5))]
        harvest = Collector(config, outcome_pool(rewards, [])).collect(5 + age, 1, old)
        assert any(t.version == 5 for t in harvest.chosen) == used
        assert harvest.refused == (0 if used else 2)
        assert len(harvest.leftover) == (2 if used else 0)

    def test_nothing_but_errors_ends_the_run(self) -> None:
        from envs.pool import Outcome

        def broken(wanted: list[RolloutItem]) -> Any:
            yield from (Outcome(item=item, error="no display") for item in wanted)

        with pytest.raises(RolloutError, match="no display"):
            Collector(self.CONFIG, broken).collect(0, 0)


def killing_world(folder: Path) -> Any:
    """Make a world whose worker dies once, in the middle of an episode. Ray sends it by value."""

    class Deadly(Reach):
        def step_chunk(self, actions: Any) -> Any:
            marker = folder / "died"
            if self._steps >= 2 and not marker.exists():
                marker.write_text("")
                os.kill(os.getpid(), signal.SIGKILL)
            return super().step_chunk(actions)

    return Deadly


@pytest.mark.slow
class TestRay:
    def test_killed_worker_loses_nothing_and_one_worker_does_what_two_do(
        self, config: RLConfig, tmp_path: Path
    ) -> None:
        rollouts = dataclasses.replace(config.rollouts, backend="ray")
        with ray_cluster(num_cpus=2) as ray:
            ray.cloudpickle.register_pickle_by_value(rl_toys)  # workers cannot import it
            for name, workers, world in (("one", 1, Reach), ("two", 2, killing_world(tmp_path))):
                changed = dataclasses.replace(
                    config,
                    rollouts=dataclasses.replace(rollouts, num_workers=workers),
                    output_dir=tmp_path / name,
                )
                rl_train(changed, None, world)
        assert (tmp_path / "died").exists()
        serial = rl_train(config, None, Reach)
        notes = [read_jsonl(f / "rollouts.jsonl") for f in (tmp_path / "one", tmp_path / "two")]
        kept = ("step", "group", "member", "outcome", "steps", "decisions", "version")
        a, b = ([{k: row[k] for k in kept} for row in rows] for rows in notes)
        assert a == b
        assert sum(row["retries"] for row in notes[1]) >= 1
        ends = [files_of(tmp_path / name / "checkpoints/000002") for name in ("one", "two")]
        assert ends[0] == ends[1] == files_of(serial.checkpoint)


class TestStandingPool:
    def test_serial_worker_is_built_once_and_anew_after_a_failure(self) -> None:
        built: list[int] = []

        class Counting:
            def __init__(self) -> None:
                built.append(1)
                self.closed = False

            def run(self, item: Any) -> Any:
                if item == "bad" and len(built) == 1:
                    raise ValueError("once")
                assert not self.closed
                return item

            def close(self) -> None:
                self.closed = True

        with standing_pool(Counting) as pool:
            assert [o.result for o in pool([1, 2])] == [1, 2]
            assert [o.result for o in pool([3])] == [3]
            assert len(built) == 1
            assert [o.result for o in pool(["bad", 4])] == [4, "bad"]
            assert len(built) == 2
