"""The loop over TRL, at sizes that take seconds: what is trained, logged, stored and resumed."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vla_opt.cli import main as cli
from vla_opt.cli._config import parse
from vla_opt.errors import ConfigError
from vla_opt.io import read_jsonl
from vla_opt.optim import MixedOptimizer, OptimizerConfig
from vla_opt.rlvr import (
    CollapseConfig,
    ModelConfig,
    ObjectiveConfig,
    RLVRConfig,
    SamplingConfig,
    SmallModelConfig,
    TaskConfig,
    WarmStartConfig,
    rlvr,
)

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
MODEL = SmallModelConfig(
    hidden_size=32, layers=1, heads=2, kv_heads=1, mlp_size=32, characters="0123456789+="
)
BASE = RLVRConfig(
    model=ModelConfig(small=MODEL),
    task=TaskConfig(name="modular", digits=2, reward="characters", examples=64, held_out=16),
    sampling=SamplingConfig(prompts=4, group=4, max_tokens=3, microbatch=8),
    objective=ObjectiveConfig(name="gmpo", clip_low=0.4, clip_high=0.4, updates_per_batch=2),
    optimizer=OptimizerConfig(name="pion", preset="qwen3", num_heads=2, num_kv_heads=1, lr=1e-2),
    warm_start=WarmStartConfig(steps=3, batch_size=8),
    steps=4,
    save_every=2,
    noise_every=1,
    heads_every=2,
    spectra_every=2,
    num_threads=1,
)


def weights(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model" / "model.safetensors")


def config_in(folder: Path, **changes: Any) -> RLVRConfig:
    return dataclasses.replace(BASE, output_dir=folder, **changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rlvr") / "run"
    summary = rlvr(config_in(folder))
    assert summary.steps == 4
    assert summary.before.questions == summary.after.questions == 16
    return folder


def test_log_holds_what_the_papers_ask_for(finished: Path) -> None:
    rows = read_jsonl(finished / "log.jsonl")
    steps = {
        kind: [r["step"] for r in rows if r["kind"] == kind] for kind in {r["kind"] for r in rows}
    }
    assert steps["train"] == [2, 4]  # two updates per round of sampling
    assert steps["eval"] == [0, 4]
    assert steps["heads"] == steps["spectra"] == [2, 4]
    assert set(steps["noise"]) <= {1, 3}  # where a round begins, and no ratio is clipped
    train = [row for row in rows if row["kind"] == "train"]
    assert all(0.0 <= row["reward"] <= 1.0 and row["entropy"] > 0.0 for row in train)
    assert all(
        {"clip_fraction", "equal_groups", "grad_norm", "lr", "length"} <= set(r) for r in train
    )
    assert any(row["update_variance"] > 0.0 for row in rows if row["kind"] == "heads")


def test_a_run_describes_itself(finished: Path) -> None:
    assert parse(RLVRConfig, [f"--config_path={finished / 'config.yaml'}"]) == config_in(finished)
    routing = (finished / "routing.txt").read_text()
    assert any("pion" in line and "q_proj" in line for line in routing.splitlines())
    assert any("adamw" in line and "embed" in line for line in routing.splitlines())


def test_the_trained_model_is_one_that_transformers_reads(finished: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(finished / "model")
    tokenizer = AutoTokenizer.from_pretrained(finished / "model")
    assert model(**tokenizer("1+2=", return_tensors="pt")).logits.shape == (1, 4, 15)
    start = AutoModelForCausalLM.from_pretrained(finished / "start").state_dict()
    moved = {name for name, value in model.state_dict().items() if not value.equal(start[name])}
    assert {"lm_head.weight", "model.layers.0.self_attn.o_proj.weight"} <= moved


def test_a_finished_run_is_not_done_again(finished: Path) -> None:
    log = (finished / "log.jsonl").read_bytes()
    rlvr(config_in(finished))
    assert (finished / "log.jsonl").read_bytes() == log


def test_a_stopped_run_goes_on_to_the_same_weights(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "stopped"
    shutil.copytree(finished, folder)
    shutil.rmtree(folder / "model")
    shutil.rmtree(folder / "checkpoints" / "checkpoint-4")
    rlvr(config_in(folder))
    whole, resumed = weights(finished), weights(folder)
    assert whole.keys() == resumed.keys()
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, msg=name)
    logs = [read_jsonl(run / "log.jsonl") for run in (finished, folder)]
    assert [row["step"] for row in logs[1] if row["kind"] == "train"] == [2, 4]
    heads = [next(r for r in log if r["kind"] == "heads" and r["step"] == 4) for log in logs]
    assert heads[1] == pytest.approx(heads[0])  # changes count from the start, not from the stop


def test_another_configuration_in_the_folder_is_refused(finished: Path) -> None:
    with pytest.raises(ConfigError, match="optimizer"):
        rlvr(config_in(finished, optimizer=OptimizerConfig(name="adamw", preset="qwen3")))
    with pytest.raises(ConfigError, match="holds a run already"):
        rlvr(config_in(finished, resume=False))


def test_measuring_changes_nothing(finished: Path, tmp_path: Path) -> None:
    blind = config_in(tmp_path, noise_every=0, heads_every=0, spectra_every=0, save_every=0)
    rlvr(blind)
    seen, unseen = weights(finished), weights(tmp_path)
    for name, value in seen.items():
        torch.testing.assert_close(unseen[name], value, rtol=0, atol=0, msg=name)


def test_without_trl_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(ConfigError, match=r"vla_opt\[rlvr\]"):
        rlvr(config_in(tmp_path))


def test_collapse_is_warned_of(tmp_path: Path) -> None:
    config = config_in(
        tmp_path,
        task=TaskConfig(name="copy", digits=2, examples=60, held_out=4),
        # Warm enough that a policy that knows the answers makes mistakes, and has a gradient.
        sampling=dataclasses.replace(BASE.sampling, prompts=8, microbatch=16, temperature=2.5),
        optimizer=OptimizerConfig(name="muon", preset="qwen3", lr=0.3, weight_decay=0.0),
        warm_start=WarmStartConfig(steps=40, lr=1e-2),
        collapse=CollapseConfig(window=1),
        steps=8,
        save_every=0,
        noise_every=0,
        spectra_every=0,
        heads_every=0,
    )
    summary = rlvr(config)
    warnings = read_jsonl(tmp_path / "warnings.jsonl")
    assert summary.warnings == len(warnings) > 0
    assert "reward" in {row["sign"] for row in warnings}
    assert any("update_scale" in row["message"] for row in warnings)


def test_the_verb_says_what_came_of_it(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.main(["rlvr", f"--config_path={finished / 'config.yaml'}"])
    said = capsys.readouterr().out
    assert code == 0
    assert "gmpo with pion on a small random Qwen3" in said
    assert "Held-out questions" in said
    assert "/16" in said
    page = (finished / "report.html").read_text()
    for figure in ("entropy", "signal to noise", "clipped tokens", "variance over heads"):
        assert figure in page


# Against TRL's own -------------------------------------------------------------------------------

MakeTrainer = Callable[[type, dict[str, Any]], Any]


def trl_trainer(kind: type, arguments: type, folder: Path, **own: Any) -> Any:
    import datasets

    from vla_opt.rlvr.text_models import character_tokenizer, small_model

    torch.manual_seed(0)
    trainer = kind(
        model=small_model(MODEL),
        processing_class=character_tokenizer(MODEL.characters),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=arguments(
            output_dir=str(folder),
            per_device_train_batch_size=4,
            num_generations=4,
            epsilon=0.4,
            epsilon_high=0.3,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
        ),
        train_dataset=datasets.Dataset.from_list([{"prompt": "1+1=", "answer": "2"}] * 4),
        **own,
    )
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    return trainer


def batch(divergence: bool) -> dict[str, Tensor]:
    """Four completions of different lengths, sampled by a policy that has since moved."""
    generator = torch.Generator().manual_seed(1)
    mask = (torch.arange(5) < torch.tensor([[5], [3], [1], [4]])).long()
    inputs = {
        "prompt_ids": torch.randint(3, 15, (4, 3), generator=generator),
        "prompt_mask": torch.tensor([[0, 1, 1]] * 4),
        "completion_ids": torch.randint(3, 15, (4, 5), generator=generator),
        "completion_mask": mask,
        "advantages": torch.tensor([1.0, -0.5, 0.8, -1.3]),
        "old_per_token_logps": -2.7 + 0.5 * torch.randn(4, 5, generator=generator),
    }
    if divergence:
        inputs["ref_per_token_logps"] = -2.7 + 0.2 * torch.randn(4, 5, generator=generator)
    return inputs


@pytest.mark.parametrize("divergence", [False, True])
def test_gmpo_is_the_one_that_trl_has_as_an_experiment(divergence: bool, tmp_path: Path) -> None:
    from trl import GRPOConfig
    from trl.experimental.gmpo import GMPOConfig, GMPOTrainer

    from vla_opt.rlvr.trainer import GeometricMeanTrainer

    ours = trl_trainer(
        GeometricMeanTrainer,
        GRPOConfig,
        tmp_path,
        build_optimizer=OptimizerConfig(preset="qwen3").build,
        build_scheduler=BASE.scheduler.build,
    )
    theirs = trl_trainer(GMPOTrainer, GMPOConfig, tmp_path)
    found = []
    for trainer in (ours, theirs):
        trainer.beta = 0.1 if divergence else 0.0
        loss = trainer._compute_loss(trainer.model, batch(divergence))
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in trainer.model.parameters()])
        logged = {key: value for key, value in trainer._metrics["train"].items() if "_m" not in key}
        means = trainer._metrics["train"]["clip_ratio/region_mean"]
        found.append((loss.detach(), gradient, logged, means))
    torch.testing.assert_close(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1])
    assert found[0][3][0] > 0.0  # some tokens are held, or the comparison shows little
    assert found[0][3] == pytest.approx(found[1][3])
    for key, value in found[0][2].items():
        assert value == pytest.approx(found[1][2][key], rel=1e-5), key


def test_trl_trains_with_an_optimizer_that_knows_names(tmp_path: Path) -> None:
    from trl import GRPOConfig

    from vla_opt.rlvr.trainer import PolicyTrainer

    config = OptimizerConfig(name="muon", preset="qwen3", lr=0.5)
    trainer = trl_trainer(
        PolicyTrainer,
        GRPOConfig,
        tmp_path,
        build_optimizer=config.build,
        build_scheduler=BASE.scheduler.build,
    )
    trainer.create_optimizer_and_scheduler(10)
    assert isinstance(trainer.optimizer, MixedOptimizer)
    algorithms = {
        name: group["algorithm"]
        for group in trainer.optimizer.param_groups
        for name in group["param_names"]
    }
    assert algorithms["model.layers.0.mlp.up_proj.weight"] == "muon"
    assert algorithms["lm_head.weight"] == "adamw"
    assert {group["lr"] for group in trainer.optimizer.param_groups} == {0.5}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pion", "adamw"])
def test_reward_rises_from_a_random_start(name: str, tmp_path: Path) -> None:
    config = parse(RLVRConfig, [f"--config_path={CONFIGS / 'rlvr_tiny.yaml'}"])
    if name == "adamw":
        rate = dataclasses.replace(config.optimizer, name=name, lr=1.5e-3)
        config = dataclasses.replace(config, optimizer=rate)
    summary = rlvr(dataclasses.replace(config, output_dir=tmp_path))
    assert summary.first_reward < 0.15
    assert summary.reward > 0.5
    assert summary.after.right > summary.before.right
