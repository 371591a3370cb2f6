"""Singular values of a layer's gradient, momentum and update, and how a log holds them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

KINDS = ("gradient", "momentum", "update")
_LOGGED = 16  # singular values of each matrix in a log, evenly in the logarithm of their rank


def singular_values(stack: Tensor) -> Tensor | None:
    """Singular values of (count, m, n), each matrix at Frobenius norm one: (count, k), descending.

    Matrices that are zero are left out; None if all are, or if something is not finite.
    """
    scale = torch.linalg.vector_norm(stack, dim=(1, 2))
    stack, scale = stack[scale > 0], scale[scale > 0]
    if not len(stack) or not torch.isfinite(scale).all():
        return None
    stack = stack / scale[:, None, None]
    wide = stack if stack.shape[1] <= stack.shape[2] else stack.mT
    energy: Tensor = torch.linalg.eigvalsh(wide @ wide.mT).clamp_min(0.0).flip(1)
    return (energy / energy.sum(dim=1, keepdim=True)).sqrt()


@dataclass(frozen=True, kw_only=True)
class LayerReading:
    """Singular values of one matrix at one step, each over the Frobenius norm.

    Attributes:
        name: of the parameter.
        group: name of its group.
        shape: of the matrix, which may be one head of the parameter.
        ranks: which singular values are given, the largest counting as 1.
        values: by one of `KINDS`: of the gradient, of the momentum as the map is given it, and of
            what the step changed (weight decay taken out). Those of zero matrices are missing, and
            the momentum's where an algorithm keeps none.
    """

    name: str
    group: str
    shape: tuple[int, ...]
    ranks: tuple[int, ...]
    values: Mapping[str, tuple[float, ...]]

    def top_energy(self, kind: str) -> float | None:
        """Share of the squared norm in the first direction."""
        return self.values[kind][0] ** 2 if kind in self.values else None

    def row(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> LayerReading:
        """The inverse of `row`."""
        values = {kind: tuple(sigma) for kind, sigma in row["values"].items()}
        shape, ranks = tuple(row["shape"]), tuple(row["ranks"])
        return cls(name=row["name"], group=row["group"], shape=shape, ranks=ranks, values=values)


def layer_reading(
    name: str, group: str, shape: tuple[int, ...], sigmas: Mapping[str, Tensor]
) -> LayerReading:
    """A reading of singular values (k,) by kind, all of them, at a norm of one."""
    ranks = logged_ranks(min(shape))
    at = torch.tensor(ranks) - 1
    return LayerReading(
        name=name,
        group=group,
        shape=shape,
        ranks=ranks,
        values={kind: tuple(_short(v) for v in s.cpu()[at].tolist()) for kind, s in sigmas.items()},
    )


def logged_ranks(count: int) -> tuple[int, ...]:
    """At most 16 of 1 ... count, the first and the last among them.

    >>> logged_ranks(100)
    (1, 2, 3, 5, 6, 9, 12, 16, 22, 29, 40, 54, 74, 100)
    """
    steps = max(1, _LOGGED - 1)
    return tuple(sorted({round(math.exp(math.log(count) * i / steps)) for i in range(steps + 1)}))


def _short(value: float) -> float:
    return float(f"{value:.4g}")
