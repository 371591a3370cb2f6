"""A step holds little more memory than a forward call, counted tensor by tensor."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

PLUGIN = Path(__file__).parent / "plugin"
sys.path.insert(0, str(PLUGIN))

from rl_toys import tiny_policy  # noqa: E402

from vla_opt._live_bytes import LiveBytes  # noqa: E402
from vla_opt.zeroth_order import (  # noqa: E402
    ZerothOrder,
    ar1_zo,
    forward_gradient,
    mezo,
    zo_muon,
    zoar,
)
from vla_opt.zo_training.adapters import add_adapters, freeze_others  # noqa: E402

LAYERS, WIDTH = 10, 1024


def peak_of(work: Callable[[], object], held: list[torch.Tensor]) -> int:
    """Peak bytes during the work, with what is held all the time."""
    with LiveBytes(held) as memory:
        work()
    return memory.peak


class Perceptron(nn.Sequential):
    """Ten layers of 1024 x 1024: 42 MB of weights in float32."""

    def __init__(self) -> None:
        super().__init__(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)))


@pytest.fixture(scope="module")
def net() -> Perceptron:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Perceptron()


@pytest.mark.parametrize("name", ["mezo", "zoar", "zo_muon"])
def test_peak_of_a_step_is_within_ten_percent_of_inference(net: Perceptron, name: str) -> None:
    presets: dict[str, Callable[[], ZerothOrder]] = {
        "mezo": lambda: mezo(net.parameters(), 1e-6),
        "zoar": lambda: zoar(net.parameters(), 1e-6, directions=2, reuse=1),
        "zo_muon": lambda: zo_muon(net.parameters(), 1e-6, rank=16, directions=1),
    }
    batch = torch.ones(4, WIDTH)
    held = [*net.parameters(), batch]

    def closure() -> float:
        return float(net(batch).square().mean())

    optimizer = presets[name]()
    with torch.no_grad():
        inference = peak_of(closure, held)
    step = peak_of(lambda: optimizer.step(closure), held)
    print(f"{name}: {step / inference:.3f} of inference ({inference / 1e6:.1f} MB)")
    assert inference < step < 1.10 * inference


@pytest.fixture
def adapter() -> nn.Module:
    """The embedded VLA-Adapter at the size that the quickstart trains, on cached features."""
    sizes = {"width": 128, "num_layers": 4, "num_heads": 4, "num_queries": 8, "chunk_size": 8}
    return tiny_policy("adapter", backbone="efficientnet_lite0", **sizes)


def batch_of(policy: Any, rows: int) -> dict[str, Any]:
    source = torch.Generator().manual_seed(0)
    return {
        "observation.features": torch.randn(rows, *policy.model.features_shape, generator=source),
        "observation.state": torch.randn(rows, 8, generator=source),
        "action": torch.randn(rows, policy.config.chunk_size, 7, generator=source),
        "task": ["pick up the alphabet soup and place it in the basket"] * rows,
    }


@pytest.mark.parametrize("trained", ["", "action_head"], ids=["all", "head"])
@pytest.mark.parametrize("name", ["mezo", "zoar", "zo_muon", "ar1_zo"])
def test_peak_of_a_step_of_the_policy_is_within_ten_percent_of_inference(
    adapter: nn.Module, name: str, trained: str
) -> None:
    """Frozen encoders do not count: they would hide what a step holds."""
    if name == "ar1_zo":
        add_adapters(adapter, [trained], rank=8, alpha=1.0, seed=0)
    else:
        freeze_others(adapter, [trained])
    learned = [(n, p) for n, p in adapter.named_parameters() if p.requires_grad]
    presets: dict[str, Callable[[], ZerothOrder]] = {
        "mezo": lambda: mezo(learned, 1e-6),
        "zoar": lambda: zoar(learned, 1e-6, directions=2, reuse=1),
        "zo_muon": lambda: zo_muon(learned, 1e-6, rank=16, directions=1),
        "ar1_zo": lambda: ar1_zo(learned, 1e-6),
    }
    batch = batch_of(adapter, 4)

    def closure() -> float:
        return float(adapter(batch)[0])

    optimizer = presets[name]()
    with torch.no_grad():
        closure()  # words are embedded once
        held = [*adapter.parameters(), *(v for v in batch.values() if not isinstance(v, list))]
        inference = peak_of(closure, held)
    step = peak_of(lambda: optimizer.step(closure), held)
    print(f"{name}: {step / inference:.3f} of inference ({inference / 1e6:.2f} MB)")
    assert inference <= step < 1.10 * inference


def test_forward_gradient_holds_a_second_copy(net: Perceptron) -> None:
    """The reference is not the memory-efficient one, and the count sees it."""
    batch = torch.ones(4, WIDTH)
    held = [*net.parameters(), batch]
    weights = sum(p.nbytes for p in net.parameters())
    optimizer = forward_gradient(net.parameters(), 1e-6)
    assert peak_of(lambda: optimizer.step(lambda: net(batch).square().mean()), held) > 1.9 * weights
