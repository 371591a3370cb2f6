"""What bench_optim.py times: shapes of real policies, our optimizers and others', gradients."""

from __future__ import annotations

import functools
import importlib
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from vla_opt.optim import Muon, Pion
from vla_opt.spectral import NEWTON_SCHULZ

COMPILE = "--compile" in sys.argv


@dataclass(frozen=True)
class Matrix:
    """`count` parameters of one shape per layer, cut into heads of rows where given."""

    rows: int
    columns: int
    count: int = 1
    heads: int = 1

    def reduced(self, scale: int, count: int) -> Matrix:
        """Sides divided by `scale`, heads as many; at most `count` parameters unless 0."""
        number = min(self.count, count) if count else self.count
        return Matrix(self.rows // scale, self.columns // scale, number, self.heads)


@dataclass(frozen=True)
class ShapeList:
    """The matrices of one layer, of `depth`."""

    layer: tuple[Matrix, ...]
    depth: int


LISTS = {
    # Query, three keys and values, output, feed-forward; the unused FiLM generator has no gradient.
    "vla_adapter_pro": ShapeList((Matrix(896, 896, 9),), 24),
    "qwen25_05b": ShapeList(
        (Matrix(896, 896, 2), Matrix(128, 896, 2), Matrix(4864, 896, 2), Matrix(896, 4864)), 24
    ),
    "pi05_expert": ShapeList(
        (Matrix(2048, 1024), Matrix(256, 1024, 2), Matrix(1024, 2048), Matrix(4096, 1024, 2),
         Matrix(1024, 4096)), 18,
    ),
    "qwen3_heads": ShapeList((Matrix(2048, 2048, 1, 16), Matrix(1024, 2048, 2, 8)), 28),
    "small": ShapeList((Matrix(128, 128, 64), Matrix(128, 512, 64)), 1),
}  # fmt: skip


@dataclass(frozen=True)
class Contender:
    """An optimizer, and whether it is given whole parameters or one per head."""

    name: str
    make: Callable[[list[nn.Parameter]], Any]
    heads: bool = False
    noise: bool = False
    around: Callable[[], AbstractContextManager[Any]] = nullcontext  # its steps

    @property
    def peer(self) -> bool:
        """Whether it comes from another package."""
        return "." in self.name


class Loop:
    """Muon one matrix after the other in float32: what one writes first."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters = parameters
        self.momenta = [torch.zeros_like(p) for p in parameters]

    @torch.no_grad()
    def step(self) -> None:
        """Momentum, five quintics, weight decay and step."""
        for p, momentum in zip(self.parameters, self.momenta, strict=True):
            assert p.grad is not None
            momentum.lerp_(p.grad, 0.05)
            X = p.grad.lerp(momentum, 0.95)
            X = X.mT if X.shape[0] > X.shape[1] else X
            X = X / (X.norm() + 1e-7)
            for a, b, c in NEWTON_SCHULZ:
                A = X @ X.mT
                X = torch.addmm(X, torch.addmm(A, A, A, beta=b, alpha=c), X, beta=a)
            update = X.mT if p.shape[0] > p.shape[1] else X
            p.mul_(1 - 1e-5).add_(update, alpha=-1e-3 * 0.2 * math.sqrt(max(p.shape)))


def contenders(matrices: Sequence[Matrix], peers: bool) -> Iterator[Contender]:
    """Ours, torch's, the loop, and the peers that can be imported."""
    heads = max(matrix.heads for matrix in matrices) > 1
    size = next((m.rows // m.heads for m in matrices if m.heads > 1), None)
    cut: dict[str, Any] = {"head_size": size, "head_axis": 0} if heads else {}

    def unchecked(parameters: list[nn.Parameter]) -> Muon:
        """As the others, which do not look for NaN in gradients."""
        return Muon(parameters, 1e-3, **cut).configure(nonfinite="ignore")

    yield Contender("vla_opt Muon", lambda ps: Muon(ps, 1e-3, **cut), heads=True)
    yield Contender("vla_opt Muon, unchecked", unchecked, heads=True)
    yield Contender("vla_opt Pion", lambda ps: Pion(ps, 1e-3, **cut), heads=True)
    yield Contender("vla_opt Pion, noise", lambda ps: Pion(ps, 1e-3, **cut), True, True)
    yield Contender("loop in float32", Loop)
    yield from both(Contender("torch.optim.Muon", lambda ps: torch.optim.Muon(ps, lr=1e-3)))
    if peers:
        yield from imported("heavyball", "Muon", lr=1e-3)
        groups = {"use_muon": True}
        yield from imported("pytorch_optimizer", "Muon", lr=1e-3, group=groups)


def both(peer: Contender) -> Iterator[Contender]:
    """A peer as it comes, and with its code in float32."""
    yield peer
    yield Contender(f"{peer.name} fp32", peer.make, around=FLOAT32[peer.name])


def _heavyball_float32() -> AbstractContextManager[Any]:
    utils = importlib.import_module("heavyball.utils")
    return mock.patch.object(
        utils, "stochastic_round_", lambda ref, source=None: _second(ref, source)
    )


def _second(ref: Tensor, source: Tensor | None) -> Tensor:
    return ref if source is None else source


def _pytorch_optimizer_float32() -> AbstractContextManager[Any]:
    base = importlib.import_module("pytorch_optimizer.optimizer.muon.base")
    exact = functools.partial(base.zero_power_via_newton_schulz_5, dtype=torch.float32)
    return mock.patch.object(base, "zero_power_via_newton_schulz_5", exact)


# What rounds to 16 bits in each, taken out.
FLOAT32: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "torch.optim.Muon": lambda: mock.patch.object(Tensor, "bfloat16", Tensor.clone),
    "heavyball.Muon": _heavyball_float32,
    "pytorch_optimizer.Muon": _pytorch_optimizer_float32,
}


def imported(
    module: str, name: str, *, lr: float, group: dict[str, Any] | None = None
) -> Iterator[Contender]:
    """A peer's optimizer; a line and nothing else if it cannot be imported."""
    try:
        package = importlib.import_module(module)
        make = getattr(package, name)
    except Exception as error:  # whatever a package does when it is imported
        print(f"  {module}.{name}: not timed ({type(error).__name__}: {error})")
        return

    if module == "heavyball" and not COMPILE:
        package.utils.compile_mode = None

    def build(parameters: list[nn.Parameter]) -> Any:
        return make([{"params": parameters, **group}] if group else parameters, lr=lr)

    yield from both(Contender(f"{module}.{name}", build))


def parameters_of(
    matrices: Sequence[Matrix], layers: int, *, heads: bool, noise: bool
) -> tuple[list[nn.Parameter], list[Tensor]]:
    """Parameters and gradients; one parameter per head unless `heads`."""
    generator = torch.Generator().manual_seed(0)
    weights, gradients = [], []
    for matrix in [m for m in matrices for _ in range(m.count * layers)]:
        shape = (matrix.rows, matrix.columns)
        G = torch.randn(shape, generator=generator)
        if not noise:  # two directions that pass in each head
            G = G.div_(math.sqrt(max(shape)))
            for part in G.chunk(matrix.heads):
                U = torch.randn(part.shape[0], 2, generator=generator)
                part.addmm_(U, torch.randn(2, part.shape[1], generator=generator))
        parts = [G] if heads else G.chunk(matrix.heads)
        gradients += [part.clone() for part in parts]
        weights += [nn.Parameter(torch.zeros_like(part)) for part in parts]
    return weights, gradients
