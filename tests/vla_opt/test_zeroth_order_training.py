"""Fine-tuning a policy by forward calls: the log is the run, and workers cannot change it."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lerobot.configs import FeatureType, PolicyFeature
from torch import nn

from envs.rollout import RolloutConfig
from policies import VLAAdapterConfig, VLAAdapterPolicy, make_vla_adapter_pre_post_processors
from vla_opt.checkpoint import CheckpointError, write_checkpoint
from vla_opt.cli import main as cli
from vla_opt.config import DataConfig
from vla_opt.errors import ConfigError
from vla_opt.evaluation.inference import CheckpointPolicy
from vla_opt.io import read_jsonl
from vla_opt.zeroth_order import Query, Reading, StepRecord, ZerothOrder, mezo, zoar
from vla_opt.zo_training import (
    AdapterConfig,
    EpisodesConfig,
    MethodConfig,
    ReplayConfig,
    ZOTrainConfig,
    replay,
    zo_train,
)
from vla_opt.zo_training.adapters import add_adapters, merged
from vla_opt.zo_training.live_policy import LivePolicy
from vla_opt.zo_training.objectives import RandomScenes, Success
from vla_opt.zo_training.queries import RayQueries
from vla_opt.zo_training.replica import Replica

SIZE = 64


def fill(folder: Path) -> None:
    """A small policy on two views, as the trainer stores one."""
    image = PolicyFeature(type=FeatureType.VISUAL, shape=(3, SIZE, SIZE))
    views = ("observation.images.image", "observation.images.image2")
    state = PolicyFeature(type=FeatureType.STATE, shape=(8,))
    config = VLAAdapterConfig(
        backbone="compact",
        image_size=SIZE,
        device="cpu",
        num_queries=2,
        width=32,
        num_layers=1,
        num_heads=2,
        input_features={**dict.fromkeys(views, image), "observation.state": state},
        output_features={"action": PolicyFeature(type=FeatureType.ACTION, shape=(7,))},
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        policy = VLAAdapterPolicy(config)
        for parameter in policy.parameters():
            parameter.data.add_(0.05 * torch.randn_like(parameter))
    stats = {
        key: {"mean": torch.zeros(size), "std": torch.ones(size)}
        for key, size in (("observation.state", 8), ("action", 7))
    }
    pretrained = folder / "pretrained_model"
    pretrained.mkdir()
    policy.save_pretrained(pretrained)
    for processor in make_vla_adapter_pre_post_processors(config, stats):
        processor.save_pretrained(pretrained)
    spec = RolloutConfig(image_size=SIZE).env_spec.to_dict()
    (pretrained / "env_spec.json").write_text(json.dumps(spec))


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint; do not change it."""
    return write_checkpoint(tmp_path_factory.mktemp("start") / "checkpoints", 5, fill)


@pytest.fixture
def config(start: Path, dataset: Path, tmp_path: Path) -> ZOTrainConfig:
    return ZOTrainConfig(
        checkpoint=start,
        method=MethodConfig(name="zoar", lr=1e-5, directions=2, reuse=1, rule="momentum"),
        data=DataConfig(root=dataset, cache_dir=dataset.parent / "cache"),
        trainable=("action_head", "queries"),
        output_dir=tmp_path / "run",
        budget=6,
        batch_size=2,
    )


def weights(policy: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in policy.state_dict().items()}


class TestRun:
    def test_run_leaves_a_log_and_a_checkpoint_that_can_act(
        self, config: ZOTrainConfig, start: Path
    ) -> None:
        told: list[int] = []

        from vla_opt.zo_training.run import Listener

        class Watch(Listener):
            def stepped(self, queries: int, loss: float) -> None:
                told.append(queries)

        summary = zo_train(config, Watch())
        assert (summary.steps, summary.queries, told) == (3, 6, [2, 4, 6])
        rows = read_jsonl(config.output_dir / "steps.jsonl")
        assert [row["step"] for row in rows] == [0, 1, 2]
        assert [len(row["coefficients"]) for row in rows] == [2, 4, 4]
        before, after = LivePolicy(start).module, CheckpointPolicy(summary.checkpoint)
        moved = {
            name.split(".")[1]
            for name, value in weights(before).items()
            if not torch.equal(value, after._policy.state_dict()[name])
        }
        assert moved == {"action_head", "queries"}
        view = np.zeros((SIZE, SIZE, 3), np.uint8)
        seen = {"pixels": {"image": view, "image2": view}, "agent_pos": np.zeros(8), "task": "go"}
        assert after.infer([seen])[0].shape == (8, 7)
        assert after.spec is not None

    def test_stopped_run_goes_on_to_the_same_bits(
        self, config: ZOTrainConfig, tmp_path: Path
    ) -> None:
        whole = zo_train(dataclasses.replace(config, output_dir=tmp_path / "whole"))
        zo_train(dataclasses.replace(config, budget=3))  # two steps
        log = config.output_dir / "steps.jsonl"
        log.write_bytes(log.read_bytes() + b'{"step": 2, "lo')  # killed while writing
        resumed = zo_train(config)
        assert resumed.weights == whole.weights
        assert (resumed.steps, resumed.queries) == (3, 6)

    def test_spent_budget_makes_no_step(self, config: ZOTrainConfig) -> None:
        first = zo_train(config)
        assert zo_train(config).weights == first.weights
        assert len(read_jsonl(config.output_dir / "steps.jsonl")) == 3

    def test_another_run_is_not_continued(self, config: ZOTrainConfig) -> None:
        zo_train(config)
        method = dataclasses.replace(config.method, lr=1e-4)
        with pytest.raises(ConfigError, match=r"method.lr: 1e-05 then, 0.0001 now"):
            zo_train(dataclasses.replace(config, method=method))

    def test_options_of_other_methods_are_refused(self, start: Path) -> None:
        with pytest.raises(ValueError, match="mezo has no option rank"):
            MethodConfig(name="mezo", rank=4)
        with pytest.raises(ValueError, match="adapter"):
            ZOTrainConfig(checkpoint=start, method=MethodConfig(name="ar1_zo"))
        method = MethodConfig(name="forward_gradient")
        with pytest.raises(ValueError, match="no derivative"):
            ZOTrainConfig(checkpoint=start, method=method, objective="success")
        with pytest.raises(ConfigError, match="finds no trainable"):
            Replica(ZOTrainConfig(checkpoint=start, trainable=("nothing",)))

    @pytest.mark.parametrize(
        "name", ["mezo", "zo_muon", "zo_high_pass", "forward_gradient", "coordinate_wise"]
    )
    def test_method_lowers_the_loss_of_one_batch(
        self, name: str, config: ZOTrainConfig, start: Path
    ) -> None:
        """Small steps along an estimate go down, for any of the methods."""
        lr = {"mezo": 1e-5, "forward_gradient": 1e-5, "coordinate_wise": 1.0}.get(name, 1e-4)
        method = MethodConfig(name=name, lr=lr)  # type: ignore[arg-type]
        replica = Replica(dataclasses.replace(config, method=method))
        closure = replica._loss()
        with torch.no_grad():
            before = float(closure())
            for _ in range(8):
                replica.optimizer.step(closure)
            assert float(closure()) < before


class TestReplay:
    def test_weights_come_back_from_the_log(self, config: ZOTrainConfig, tmp_path: Path) -> None:
        summary = zo_train(dataclasses.replace(config, save_every=1, keep_last=0))
        whole = replay(ReplayConfig(run=config.output_dir, output_dir=tmp_path / "rebuilt"))
        assert (whole.equal, whole.steps, whole.queries) == (True, 3, 6)
        assert whole.weights == summary.weights
        assert whole.checkpoint is not None
        rebuilt, trained = (
            CheckpointPolicy(path)._policy.state_dict()
            for path in (whole.checkpoint, summary.checkpoint)
        )
        assert all(torch.equal(rebuilt[name], trained[name]) for name in trained)
        part = replay(ReplayConfig(run=config.output_dir, step=1))
        assert part.equal is True
        assert part.weights != whole.weights

    def test_damage_is_noticed(self, config: ZOTrainConfig, capsys: Any) -> None:
        zo_train(config)
        log = config.output_dir / "steps.jsonl"
        rows = read_jsonl(log)
        rows[1]["coefficients"][0][1] *= 1.001
        log.write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert cli.main(["zo", "replay", f"--run={config.output_dir}"]) == 1
        assert "NOT the weights" in capsys.readouterr().out

    def test_another_start_is_refused(
        self, config: ZOTrainConfig, tmp_path: Path, start: Path
    ) -> None:
        summary = zo_train(config)
        with pytest.raises(CheckpointError, match=r"not what .* began with"):
            replay(ReplayConfig(run=config.output_dir, checkpoint=summary.checkpoint))
        with pytest.raises(ConfigError, match="has 3 steps"):
            replay(ReplayConfig(run=config.output_dir, step=4))
        with pytest.raises(ConfigError, match="no zeroth-order run"):
            replay(ReplayConfig(run=tmp_path / "nowhere"))


class TestAdapters:
    def test_adapted_policy_computes_what_its_merged_checkpoint_does(
        self, config: ZOTrainConfig
    ) -> None:
        config = dataclasses.replace(
            config,
            method=MethodConfig(name="ar1_zo", lr=1.0, epsilon=1e-2),
            adapter=AdapterConfig(rank=2, modules=("action_head", "language_model")),
            trainable=("",),
        )
        summary = zo_train(config)
        replica = Replica(config, _records(config))
        assert replica.weights_hash() == summary.weights
        view = np.full((SIZE, SIZE, 3), 99, np.uint8)
        seen = {"pixels": {"image": view, "image2": view}, "agent_pos": np.ones(8), "task": "go"}
        (live,), (stored,), (start,) = (
            policy.infer([seen])
            for policy in (
                replica.live,
                CheckpointPolicy(summary.checkpoint),
                CheckpointPolicy(config.checkpoint),
            )
        )
        np.testing.assert_allclose(live, stored, atol=1e-6)
        assert np.abs(live - start).max() > 1e-4

    def test_only_adapters_are_trained_and_start_at_nothing(self) -> None:
        net = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))
        inputs = torch.randn(4, 5)
        before = net(inputs)
        names = add_adapters(net, ("2",), rank=2, alpha=1.0, seed=0)
        assert names == ["2"]
        torch.testing.assert_close(net(inputs), before)
        trained = [name for name, p in net.named_parameters() if p.requires_grad]
        assert [name.rsplit(".", 1)[1] for name in trained] == ["lora_A", "lora_B"]
        plain = merged(net)
        assert sorted(plain.state_dict()) == ["0.bias", "0.weight", "2.bias", "2.weight"]
        with pytest.raises(ConfigError, match="no trainable linear layer"):
            add_adapters(nn.Linear(2, 2), ("head",), rank=2, alpha=1.0, seed=0)


def _records(config: ZOTrainConfig) -> list[StepRecord]:
    return [StepRecord.from_dict(row) for row in read_jsonl(config.output_dir / "steps.jsonl")]


class Reach:
    """The interface of LiberoEnv; succeeds if the first action exceeds what its seed asks for."""

    def __init__(self, task: tuple[str, int], config: RolloutConfig) -> None:
        self.spec, self.task_description = config.env_spec, f"do {task[1]}"
        self.resets: list[int] = []

    def reset(self, *, seed: int, options: object = None) -> Any:
        assert options is None, "evaluation's initial states are not for training"
        self.resets.append(seed)
        self.threshold = (seed % 1000) / 500 - 1
        np.random.seed(seed)  # noqa: NPY002 - as LIBERO does
        view = np.full((SIZE, SIZE, 3), seed % 256, np.uint8)
        pixels = {"image": view, "image2": view}
        self.seen = {"pixels": pixels, "agent_pos": np.zeros(8, np.float32)}
        return self.seen, {"steps": 0, "is_success": False}

    def step_chunk(self, actions: np.ndarray) -> Any:
        success = bool(actions[0, 0] > self.threshold)
        return self.seen, 0.0, success, not success, {"steps": 4, "is_success": success}

    def close(self) -> None:
        pass


class Constant:
    """A policy without eyes."""

    def __init__(self) -> None:
        self.action = torch.zeros(7)

    def infer(self, observations: Sequence[Any]) -> list[np.ndarray]:
        chunk = self.action.double().expand(8, 7).numpy().copy()
        return [chunk for _ in observations]


class TestSuccess:
    def test_loss_is_the_share_of_failures_and_repeats(self, start: Path) -> None:
        config = ZOTrainConfig(
            checkpoint=start,
            objective="success",
            episodes=EpisodesConfig(episodes=4),
        )
        live = LivePolicy(start)
        objective = Success(config, live, make_env=Reach)
        state = np.random.get_state()[1].copy()  # noqa: NPY002
        losses = [objective.closure(0)() for _ in range(2)]
        assert losses[0] == losses[1]
        assert losses[0] * 4 == int(losses[0] * 4)
        assert (np.random.get_state()[1] == state).all()  # noqa: NPY002
        keys = [objective.episodes(step) for step in (0, 1)]
        assert not {k.seed for k in keys[0]} & {k.seed for k in keys[1]}
        assert {k.task_id for k in keys[0]} == {0, 1}
        objective.close()

    def test_success_can_be_raised_without_a_derivative(self, start: Path) -> None:
        """The policy is one constant action; the larger its first entry, the more succeed."""
        config = ZOTrainConfig(
            checkpoint=start,
            objective="success",
            episodes=EpisodesConfig(episodes=16, task_ids=(0,)),
        )
        constant = Constant()
        objective = Success(config, constant, make_env=Reach)  # type: ignore[arg-type]
        optimizer = zoar([constant.action], 0.3, epsilon=0.3, directions=6)
        test = objective.closure(10**6)
        before = test()
        for step in range(20):
            optimizer.step(objective.closure(step))  # type: ignore[arg-type]
        assert 0.2 < before < 0.8
        assert test() < before - 0.15

    def test_scenes_are_never_those_of_evaluation(self) -> None:
        env = RandomScenes(Reach(("libero_object", 0), RolloutConfig(image_size=SIZE)))
        env.reset(seed=3, options={"init_state": 0})  # the stub refuses options
        assert env.resets == [3]

    @pytest.mark.sim
    @pytest.mark.slow
    def test_simulated_episodes_answer_a_query(self, start: Path, tmp_path: Path) -> None:
        config = ZOTrainConfig(
            checkpoint=start,
            objective="success",
            method=MethodConfig(name="mezo", lr=1e-4, epsilon=1e-2),
            episodes=EpisodesConfig(episodes=1, task_ids=(0,), execute_steps=8),
            output_dir=tmp_path / "run",
            budget=2,
        )
        summary = zo_train(config)
        assert (summary.steps, summary.queries) == (1, 2)
        assert replay(ReplayConfig(run=config.output_dir)).equal is True


class Toy:
    """A replica without policy or data, which dies once if it is told to."""

    def __init__(self, die: Path | None, history: Sequence[StepRecord]) -> None:
        self.weight = torch.linspace(-1, 1, 7)
        self.optimizer: ZerothOrder = mezo([self.weight], 0.01, directions=3)
        self._die = die
        for record in history:
            self.apply(record)

    def measure(self, queries: Sequence[Query]) -> list[Reading]:
        if self._die is not None and self.optimizer.steps == 2 and not self._die.exists():
            self._die.touch()
            os._exit(1)
        return self.optimizer.measure(queries, lambda: self.weight.pow(4).sum())

    def apply(self, record: StepRecord) -> None:
        self.optimizer.apply(record)


def toy_run(answering: Any, toy: Toy, steps: int = 4) -> list[StepRecord]:
    records = []
    for _ in range(steps):
        record = toy.optimizer.conclude(answering.measure(toy.optimizer.plan()))
        toy.apply(record)
        if answering is not toy:
            answering.apply(record)
        records.append(record)
    return records


@pytest.mark.slow
def test_any_number_of_workers_and_a_dying_one_give_the_same_run(tmp_path: Path) -> None:
    from ray import cloudpickle

    from envs._ray_cluster import ray_cluster

    cloudpickle.register_pickle_by_value(__import__("sys").modules[__name__])
    alone = Toy(None, [])
    expected = toy_run(alone, alone)
    with ray_cluster(num_cpus=2) as ray:
        for workers, die in ((1, None), (2, tmp_path / "died")):
            queries = RayQueries(ray, functools.partial(Toy, die), workers=workers)
            toy = Toy(None, [])
            assert toy_run(queries, toy) == expected
            assert torch.equal(toy.weight, alone.weight)
            queries.close()
    assert (tmp_path / "died").exists()


class TestCommandLine:
    def test_train_and_replay(self, config: ZOTrainConfig, capsys: Any) -> None:
        words = [
            f"--checkpoint={config.checkpoint}",
            f"--data.root={config.data.root}",
            f"--data.cache_dir={config.data.cache}",
            f"--output_dir={config.output_dir}",
            "--method.name=mezo",
            "--method.lr=1e-5",
            "--trainable=action_head",
            "--budget=4",
            "--batch_size=2",
        ]
        assert cli.main(["zo", "train", *words]) == 0
        assert "2 steps with 4 forward calls" in capsys.readouterr().out
        assert cli.main(["zo", "replay", f"--run={config.output_dir}"]) == 0
        assert "the same bits as the run's own checkpoint" in capsys.readouterr().out

    @pytest.mark.parametrize("words", [[], ["trian"], ["train", "--checkpoint=x", "--budgt=3"]])
    def test_wrong_words_are_exit_code_2(self, words: list[str]) -> None:
        assert cli.main(["zo", *words]) == 2
