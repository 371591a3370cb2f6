"""A dry run tells what a run would be, without files or memory for weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from vla_opt._dry_run import _parts, _state_per_element, dry_run
from vla_opt.cli.train import main
from vla_opt.config import DataConfig, TrainConfig
from vla_opt.optim import OptimizerConfig


def config(tmp_path: Path, **changes: Any) -> TrainConfig:
    from policies import VLAAdapterConfig

    given: dict[str, Any] = {
        "policy": VLAAdapterConfig(device="cpu"),
        "data": DataConfig(root=tmp_path / "none"),
        "output_dir": tmp_path / "run",
        "steps": 100,
    }
    return TrainConfig(**{**given, **changes})


def test_embedded_policy_is_counted_as_it_is_built(tmp_path: Path) -> None:
    found = dry_run(config(tmp_path))
    assert sum(count for count, _ in found.parts.values()) == 2_001_355  # as in docs/policies.md
    assert found.weights == found.gradients == 4 * 2_001_355
    assert {p.device.type for p in found.policy.parameters()} == {"meta"}
    assert "assumed, LIBERO's: there is no data set" in found.features
    assert found.samples == 100 * 32
    assert found.parts["model.action_head"] == (1_060_491, 1_060_491)


def test_optimizer_state_is_that_of_the_real_one(tmp_path: Path) -> None:
    from policies import VLAAdapterPolicy

    made = config(tmp_path, optimizer=OptimizerConfig(name="pion"))
    found = dry_run(made)
    policy = VLAAdapterPolicy(found.policy.config.__class__(
        device="cpu",
        input_features=found.policy.config.input_features,
        output_features=found.policy.config.output_features,
    ))  # fmt: skip
    optimizer = made.optimizer.build(policy)
    for parameter in policy.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    held = sum(
        t.numel() * t.element_size()
        for state in optimizer.state.values()
        for t in state.values()
        if isinstance(t, torch.Tensor) and t.ndim
    )
    assert found.moments == held


@pytest.mark.parametrize(("algorithm", "floats"), [("adamw", 2), ("muon", 1), ("pion", 1)])
def test_state_per_element(algorithm: str, floats: int) -> None:
    assert _state_per_element(algorithm) == 4 * floats


def test_frozen_roles_cost_neither_gradients_nor_state(tmp_path: Path) -> None:
    frozen = dry_run(config(tmp_path, optimizer=OptimizerConfig(frozen_roles=("language",))))
    free = dry_run(config(tmp_path))
    assert frozen.weights == free.weights
    assert frozen.gradients < free.gradients
    assert frozen.moments < free.moments
    assert frozen.parts["model.language_model"][1] < frozen.parts["model.language_model"][0]


def test_spectral_cost_is_that_of_the_products(tmp_path: Path) -> None:
    """Every m x n matrix, m <= n: five steps of three products with 2 m m n, 2 m m m, 2 m m n."""
    made = config(tmp_path, optimizer=OptimizerConfig(name="muon"))
    found = dry_run(made)
    expected = 0
    for line in found.routing.splitlines()[1:]:
        cells = line.split()
        if cells[0] == "muon":
            m, n = sorted(int(side) for side in cells[4].split("x"))
            expected += int(cells[5]) * 5 * (2 * m * m * n + 2 * m * m * m + 2 * m * m * n)
    assert found.spectral_flops == expected > 0
    assert dry_run(config(tmp_path, optimizer=OptimizerConfig(name="adamw"))).spectral_flops == 0


def test_a_part_that_holds_most_is_shown_by_its_own_parts() -> None:
    model = nn.Module()
    model.tower = nn.Module()
    model.tower.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
    model.tower.table = nn.Embedding(4, 8)
    model.out = nn.Linear(8, 2)
    counts = {n: (p.numel(), p.numel()) for n, p in model.named_parameters()}
    rows = dict(_parts(counts, "", 0.6 * sum(n for n, _ in counts.values())))
    assert {name: count for name, (count, _) in rows.items()} == {
        "tower.layers": 3 * 72, "tower.table": 32, "out": 18,
    }  # fmt: skip


def test_command_prints_it_and_touches_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--dry-run", f"--output_dir={tmp_path / 'run'}", "--policy.device=cpu",
                 f"--data.root={tmp_path}", "--steps=7", "--optimizer.name=pion"]) == 0  # fmt: skip
    shown = capsys.readouterr().out
    for text in ("Dry run: vla_adapter with pion", "model.action_head", "2,001,355", "steps: 7 of",
                 "memory per process: about", "forward and backward of a batch of 32",
                 "spectral maps", "pion       action"):  # fmt: skip
        assert text in shown
    assert list(tmp_path.iterdir()) == []
