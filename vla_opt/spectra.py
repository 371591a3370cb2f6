"""Spectra of every layer's momentum, from a checkpoint: what the optimizer sees and lets through.

The momentum of a checkpoint stands after the step; with Nesterov the map is given the momentum
mixed with one gradient, which no checkpoint holds, so figures differ slightly from those a run
logs. Gradients and updates are in the log alone: of the matrices that the meter looked at.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vla_opt._optimizer_state import StoredParameter
from vla_opt._singular_values import KINDS, LayerReading, singular_values
from vla_opt.diagnostics import coefficients_of, mapped_values, momentum_of
from vla_opt.optim._matrix import matrices_of
from vla_opt.spectral import Coefficients, high_pass, scalar_map

_STEPS = 5  # of all published maps


@dataclass(frozen=True, kw_only=True)
class LayerSpectrum:
    """The singular values of one matrix parameter's momentum, and what its map makes of them.

    Attributes:
        name: of the parameter.
        group: name of its group, or of its algorithm.
        algorithm: what updates it.
        shape: of the parameter.
        sigma: (count, k) singular values of its matrices (heads, experts), each matrix divided by
            its Frobenius norm, descending.
        mapped: (count, k) of the update before scaling; None where no spectral map is used.
    """

    name: str
    group: str
    algorithm: str
    shape: tuple[int, ...]
    sigma: Tensor
    mapped: Tensor | None

    @property
    def stable_rank(self) -> float:
        """Squared Frobenius norm over squared spectral norm, mean over the matrices."""
        return self.sigma[:, 0].square().reciprocal().mean().item()

    @property
    def effective_rank(self) -> float:
        """Exp of the entropy of the singular values' shares, mean (arXiv 2605.19282)."""
        share = self.sigma / self.sigma.sum(dim=1, keepdim=True)
        entropy: Tensor = -torch.special.xlogy(share, share).sum(dim=1)
        return entropy.exp().mean().item()

    @property
    def top_energy(self) -> float:
        """Share of the squared norm in the first direction, mean."""
        return self.sigma[:, 0].square().mean().item()

    @property
    def directions_passed(self) -> float | None:
        """Squared norm of the update before scaling, mean: about how many directions pass."""
        return None if self.mapped is None else self.mapped.square().sum(dim=1).mean().item()

    @property
    def dead(self) -> int:
        """Matrices of which practically nothing passes."""
        if self.mapped is None:
            return 0
        return int((self.mapped.square().sum(dim=1) < 1e-4).sum())


@dataclass(frozen=True, kw_only=True)
class WhatIf:
    """What high-pass Pion would do to a set of matrices.

    Attributes:
        promotion_steps: of five steps in all.
        passed: directions that pass, mean over matrices.
        dead: matrices of which nothing passes.
        matrices: how many there are.
    """

    promotion_steps: int
    passed: float
    dead: int
    matrices: int


def layer_spectra(parameters: Sequence[StoredParameter]) -> list[LayerSpectrum]:
    """Spectra of all parameters with two or more dimensions and a momentum that is not zero.

    A fused parameter (split_sizes) has one for each of its blocks, named `weight[0]` and so on.
    """
    return [layer for parameter in parameters for layer in _layers(parameter)]


def _layers(parameter: StoredParameter) -> list[LayerSpectrum]:
    momentum = momentum_of(parameter.state)
    if momentum is None or momentum.ndim < 2:
        return []
    blocks = matrices_of(parameter.group, momentum.double())
    names = [f"{parameter.name}[{i}]" for i in range(len(blocks))]
    shapes = [tuple(block.shape) for block in blocks]
    if len(blocks) == 1:
        names, shapes = [parameter.name], [tuple(momentum.shape)]
    found = [
        _layer(name, shape, parameter.group, block)
        for name, shape, block in zip(names, shapes, blocks, strict=True)
    ]
    return [layer for layer in found if layer is not None]


def _layer(
    name: str, shape: tuple[int, ...], group: Mapping[str, Any], stack: Tensor
) -> LayerSpectrum | None:
    sigma = singular_values(stack)
    if sigma is None:
        return None
    coefficients = coefficients_of(group)
    algorithm = str(group.get("algorithm", "unknown"))
    return LayerSpectrum(
        name=name,
        group=str(group.get("name", algorithm)),
        algorithm=algorithm,
        shape=shape,
        sigma=sigma,
        mapped=None
        if coefficients is None
        else mapped_values(sigma, coefficients, group.get("normalize", "frobenius")),
    )


def what_if(layers: Sequence[LayerSpectrum]) -> list[WhatIf]:
    """What each number of promotion steps would let through of these momenta."""
    rows = []
    for promotion in range(_STEPS + 1):
        coefficients = high_pass(promotion, _STEPS - promotion)
        passed = torch.cat(
            [scalar_map(layer.sigma, coefficients).square().sum(dim=1) for layer in layers]
        )
        rows.append(
            WhatIf(
                promotion_steps=promotion,
                passed=passed.mean().item(),
                dead=int((passed < 1e-4).sum()),
                matrices=len(passed),
            )
        )
    return rows


def threshold(coefficients: Coefficients) -> float:
    """The share of the squared norm at which half of a direction passes.

    >>> round(threshold(high_pass(1, 4)), 2)
    0.24
    """
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = 0.5 * (low + high)
        reached = scalar_map(torch.tensor(middle, dtype=torch.float64), coefficients) >= 0.5
        low, high = (low, middle) if reached else (middle, high)
    return high * high


def table(layers: Sequence[LayerSpectrum]) -> str:
    """One line per layer as text."""
    head = ("layer", "algorithm", "shape", "mats", "stable", "eff.", "top", "passed", "dead")
    rows = [
        (
            layer.name, layer.algorithm, "x".join(map(str, layer.shape)), str(len(layer.sigma)),
            f"{layer.stable_rank:.2f}", f"{layer.effective_rank:.1f}", f"{layer.top_energy:.2f}",
            _number(layer.directions_passed), str(layer.dead) if layer.dead else "",
        )
        for layer in layers
    ]  # fmt: skip
    return _aligned(head, rows)


def reading_table(readings: Sequence[LayerReading]) -> str:
    """The leading directions of gradient, momentum and update as text, one line per layer."""
    head = (
        "layer",
        "shape",
        *(f"top {kind}" for kind in KINDS),
        *(f"rank {kind}" for kind in KINDS),
    )
    rows = []
    for layer in readings:
        top = [layer.top_energy(kind) for kind in KINDS]
        stable = [None if energy is None else 1.0 / energy for energy in top]
        rows.append(
            (layer.name, "x".join(map(str, layer.shape)), *map(_number, top), *map(_number, stable))
        )
    return _aligned(head, rows)


def logged_layers(rows: Sequence[Mapping[str, Any]], step: int | None = None) -> list[LayerReading]:
    """The layers of the newest row of kind "spectra" in a training log; none in logs without.

    Args:
        rows: of the log.
        step: rows of later steps are passed over.
    """
    known = [row for row in rows if row.get("layers") and (step is None or row["step"] <= step)]
    return [LayerReading.of_row(layer) for layer in known[-1]["layers"]] if known else []


def what_if_table(rows: Sequence[WhatIf]) -> str:
    """The answers of `what_if` as text."""
    head = ("promotion_steps", "needs share", "directions passed", "dead matrices")
    return _aligned(
        head,
        [
            (
                f"{row.promotion_steps} + {_STEPS - row.promotion_steps}",
                f"{threshold(high_pass(row.promotion_steps, _STEPS - row.promotion_steps)):.3f}",
                f"{row.passed:.2f}", f"{row.dead}/{row.matrices}",
            )
            for row in rows
        ],
    )  # fmt: skip


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _aligned(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = ("  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)) for r in (head, *rows))
    return "\n".join(line.rstrip() for line in lines)


def curve(coefficients: Coefficients, points: int = 200) -> list[tuple[float, float]]:
    """(share of the squared norm, factor) along a map, evenly in the logarithm of the share."""
    shares = [10 ** (-4 + 4 * i / (points - 1)) for i in range(points)]
    sigma = torch.tensor([math.sqrt(share) for share in shares], dtype=torch.float64)
    return list(zip(shares, scalar_map(sigma, coefficients).tolist(), strict=True))
