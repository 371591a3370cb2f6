"""Our optimizers under stock lerobot: found, routed by names, trained with, resumed."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import draccus
import pytest
import torch
from draccus.utils import DraccusException
from lerobot.optim import OptimizerConfig as LerobotOptimizerConfig
from lerobot.optim import load_optimizer_state, save_optimizer_state
from lerobot.optim.schedulers import LRSchedulerConfig
from torch import nn

from vla_opt.lerobot_plugin import VlaOptOptimizerConfig, ignored_options, named_parameters
from vla_opt.optim import ALGORITHMS, MixedOptimizer, OptimizerConfig

ROOT = Path(__file__).resolve().parents[2]
DISTRIBUTION = ROOT / "plugins" / "lerobot_policy_vla_opt"


@dataclass
class _Job:
    optimizer: LerobotOptimizerConfig | None = None
    scheduler: LRSchedulerConfig | None = field(default=None)


def read(*words: str) -> _Job:
    job: _Job = draccus.parse(_Job, args=list(words))
    return job


class Net(nn.Module):
    """Something of each kind that routing tells apart by name."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed_tokens = nn.Embedding(5, 4)
        self.body = nn.Linear(4, 4)
        self.lm_head = nn.Linear(4, 5)


def algorithms(optimizer: MixedOptimizer) -> dict[str, str]:
    return {
        name: group["algorithm"]
        for group in optimizer.param_groups
        for name in group["param_names"]
    }


ROUTED = {
    "embed_tokens.weight": "adamw",
    "body.weight": "pion",
    "body.bias": "adamw",
    "lm_head.weight": "adamw",
    "lm_head.bias": "adamw",
}


def config(*words: str) -> VlaOptOptimizerConfig:
    found = read("--optimizer.type=pion", *words).optimizer
    assert isinstance(found, VlaOptOptimizerConfig)
    return found


def test_every_algorithm_is_a_type_and_lerobots_own_stay() -> None:
    known = LerobotOptimizerConfig.get_known_choices()
    assert known.keys() >= ALGORITHMS.keys()
    assert known["adamw"].__module__.startswith("lerobot.")
    for name in ALGORITHMS.keys() - {"adamw"}:
        assert read(f"--optimizer.type={name}").optimizer.config().name == name


def test_fields_and_defaults_are_those_of_our_own_configuration() -> None:
    ours, theirs = OptimizerConfig(), config().config()
    assert theirs == ours


def test_command_line_reaches_the_groups() -> None:
    found = config(
        "--optimizer.lr=0.5", "--optimizer.promotion_steps=2", "--optimizer.betas=[0.8,0.9]",
        "--optimizer.adamw_lr_ratio=0.1", "--optimizer.nonfinite=skip",
        "--optimizer.options={precision: float64}",
    )  # fmt: skip
    optimizer = found.build(Net().parameters())
    groups = {group["algorithm"]: group for group in optimizer.param_groups}
    assert (groups["pion"]["lr"], groups["pion"]["promotion_steps"]) == (0.5, 2)
    assert groups["pion"]["precision"] == "float64"
    assert (groups["adamw"]["lr"], groups["adamw"]["betas"]) == (0.05, (0.8, 0.9))
    assert optimizer.options.nonfinite == "skip"


def test_unknown_names_are_refused_with_the_nearest_before_anything_is_loaded(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for word, message in {
        "--optimizer.preset=vla_adaptor": "'vla_adapter'",
        "--optimizer.options={precison: float64}": "'precision'",
        "--optimizer.nonfinite=skipp": "'skip'",
    }.items():
        with pytest.raises(DraccusException):
            config(word)
        assert message in caplog.text
        caplog.clear()


def test_names_are_found_in_what_the_stock_command_hands_over() -> None:
    net = Net()
    for params in (
        net.parameters(),  # what lerobot-train passes
        dict(net.named_parameters()),
        list(net.named_parameters()),
        [{"params": [p], "param_names": [n]} for n, p in net.named_parameters()],
    ):
        optimizer = config().build(params)
        assert algorithms(optimizer) == ROUTED


def test_generator_that_has_begun_has_lost_its_names() -> None:
    params = Net().parameters()
    next(params)
    assert named_parameters(params) is None
    assert named_parameters(p for p in Net().parameters()) is None


@pytest.mark.parametrize("form", ["list", "groups"])
def test_missing_names_are_said_and_routed_by_shape(
    form: str, caplog: pytest.LogCaptureFixture
) -> None:
    net = Net()
    params: Iterable[object] = list(net.parameters())
    if form == "groups":
        params = [{"params": list(net.parameters()), "lr": 1.0}]
    with caplog.at_level(logging.WARNING):
        optimizer = config().build(params)
    assert "5 parameters without names" in caplog.text
    assert "all 3 matrices go to pion" in caplog.text
    assert sorted(algorithms(optimizer).values()) == ["adamw"] * 2 + ["pion"] * 3


def test_state_survives_lerobots_checkpoint_bit_by_bit(tmp_path: Path) -> None:
    def step(net: Net, optimizer: torch.optim.Optimizer, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for p in net.parameters():
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()

    net, other = Net(), Net()
    optimizer = config().build(net.parameters())
    for seed in range(3):
        step(net, optimizer, seed)
    save_optimizer_state(optimizer, tmp_path)
    other.load_state_dict(net.state_dict())
    resumed = load_optimizer_state(config().build(other.parameters()), tmp_path)
    assert resumed.param_groups[0]["betas"] == (0.9, 0.999)
    for seed in range(3, 6):
        step(net, optimizer, seed)
        step(other, resumed, seed)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))


def test_schedule_is_a_scheduler_type(caplog: pytest.LogCaptureFixture) -> None:
    scheduler = read("--scheduler.type=vla_opt", "--scheduler.name=wsd").scheduler
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    assert scheduler is not None
    built = scheduler.build(optimizer, 10)
    rates = []
    for _ in range(10):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        built.step()
    assert rates[:9] == [2.0] * 9
    assert rates[9] == pytest.approx(1.0)
    with pytest.raises(DraccusException):
        read("--scheduler.type=vla_opt", "--scheduler.name=cosin")
    assert "'cosine'" in caplog.text


def test_options_that_lerobot_would_ignore_are_named() -> None:
    given = ["--optimizer.type=pion", "--scheduler.name=wsd", "--steps=3",
             "--optimizer.discover_packages_path=vla_opt.lerobot_plugin"]  # fmt: skip
    assert ignored_options(given) == given[:2]
    assert ignored_options([*given, "--use_policy_training_preset", "false"]) == []
    assert ignored_options([*given, "--use_policy_training_preset=true"]) == given[:2]
    assert ignored_options([*given, "--resume=true"]) == []


# The stock command itself ---------------------------------------------------------------------


def lerobot_train(
    tmp_path: Path, *words: str, path: Iterable[Path] = ()
) -> subprocess.CompletedProcess[str]:
    places = [ROOT / "tests" / "vla_opt" / "plugin", ROOT, *path]
    environment = {
        **os.environ,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join(map(str, places)),
    }
    command = [sys.executable, "-m", "lerobot.scripts.lerobot_train", *words]
    return subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1800
    )


def arguments(dataset: Path, out: Path) -> list[str]:
    return [
        "--policy.discover_packages_path=tiny_policy",
        "--policy.type=tiny",
        "--policy.device=cpu",
        "--policy.push_to_hub=false",
        "--dataset.repo_id=local/tiny",
        f"--dataset.root={dataset}",
        "--dataset.video_backend=pyav",
        f"--output_dir={out}",
        "--steps=2",
        "--save_freq=2",
        "--log_freq=1",
        "--batch_size=4",
        "--num_workers=0",
        "--wandb.enable=false",
    ]


OURS = [
    "--use_policy_training_preset=false",
    "--optimizer.type=pion",
    "--optimizer.preset=vla_adapter",
    "--scheduler.type=vla_opt",
    "--scheduler.name=constant",
]


def groups_of(checkpoint: Path) -> dict[str, str]:
    saved = json.loads((checkpoint / "training_state/optimizer_param_groups.json").read_text())
    return {name: g["algorithm"] for g in saved for name in g["param_names"]}


@pytest.mark.slow
def test_stock_command_trains_with_pion_and_resumes(dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    plugin = "--optimizer.discover_packages_path=vla_opt.lerobot_plugin"
    done = lerobot_train(tmp_path, *arguments(dataset, out), plugin, *OURS)
    assert done.returncode == 0, done.stderr[-3000:]
    first = groups_of(out / "checkpoints/000002")
    assert first["action_head.fc1.weight"] == "pion"
    assert first["vision_projector.weight"] == "muon"
    assert first["action_head.fc2.weight"] == "adamw"
    assert "who updates what" in done.stdout + done.stderr

    saved = out / "checkpoints/last/pretrained_model/train_config.json"
    again = ["--policy.discover_packages_path=tiny_policy", plugin, f"--config_path={saved}",
             "--resume=true", "--steps=3", "--save_freq=3"]  # fmt: skip
    done = lerobot_train(tmp_path, *again)
    assert done.returncode == 0, done.stderr[-3000:]
    assert groups_of(out / "checkpoints/000003") == first
    state = out / "checkpoints/000003/training_state/optimizer_state.safetensors"
    from safetensors.torch import load_file

    steps = {value.item() for key, value in load_file(state).items() if key.endswith("/step")}
    assert steps == {3.0}


@pytest.mark.slow
def test_installed_distribution_is_found_without_a_flag(dataset: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    source = tmp_path / "source"
    subprocess.run(["cp", "-r", str(DISTRIBUTION), str(source)], check=True)
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index",
               "--no-build-isolation", "--target", str(site), str(source)]  # fmt: skip
    done = subprocess.run(install, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    done = lerobot_train(tmp_path, *arguments(dataset, out), *OURS, path=[site])
    assert done.returncode == 0, done.stderr[-3000:]
    assert groups_of(out / "checkpoints/000002")["action_head.fc1.weight"] == "pion"


@pytest.mark.slow
def test_preset_that_hides_the_optimizer_is_warned_of(dataset: Path, tmp_path: Path) -> None:
    plugin = "--optimizer.discover_packages_path=vla_opt.lerobot_plugin"
    words = [*arguments(dataset, tmp_path / "out"), plugin, "--optimizer.type=pion"]
    done = lerobot_train(tmp_path, *words)
    assert "lerobot-train ignores --optimizer.type=pion" in done.stderr
    assert "--use_policy_training_preset=false" in done.stderr
