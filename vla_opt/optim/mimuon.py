"""MiMuon: Muon where the momentum is worth it, plain momentum elsewhere (arXiv 2605.19619)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from vla_opt.optim._base import Group, Params, RuleOptimizer, Slot, UpdateRule
from vla_opt.optim._batches import Batch
from vla_opt.optim._eigen import left_singular
from vla_opt.optim._matrix import (
    MAP_DEFAULTS,
    MATRIX_DEFAULTS,
    check_coefficients,
    check_map_options,
    check_matrix_group,
    directions,
    update_by_map,
    update_matrices,
)
from vla_opt.spectral import NEWTON_SCHULZ, Coefficients, Normalize, Precision

type Condition = Literal["norm", "gap"]


class MiMuonRule:
    """One MiMuon step for a group of matrices."""

    @property
    def defaults(self) -> Mapping[str, Any]:
        """Options of a group beside lr and params."""
        own = {"coefficients": NEWTON_SCHULZ, "tau": 0.0, "condition": "norm", "plain_scale": 1.0}
        return {**MATRIX_DEFAULTS, **MAP_DEFAULTS, **own}

    def check(self, group: Group) -> None:
        """Raise ValueError if an option or a parameter's shape does not fit."""
        check_matrix_group(group)
        check_map_options(group)
        check_coefficients(group["coefficients"])
        if group["condition"] not in ("norm", "gap"):
            raise ValueError(f"condition is {group['condition']!r}; choose norm or gap")
        for key in ("tau", "plain_scale"):
            if not 0.0 <= group[key] < math.inf:
                raise ValueError(f"{key} must be finite and >= 0, got {group[key]!r}")
        if not group["update_scale"] > 0.0:
            raise ValueError(f"update_scale must be above 0, got {group['update_scale']!r}")

    def update(self, group: Group, slots: Sequence[Slot]) -> None:
        """Momentum, orthogonalisation where the condition holds, weight decay, step."""
        if group["tau"] == 0.0:  # it always holds
            update_by_map(group, slots, group["coefficients"])
            return
        mapped = directions(group, group["coefficients"])
        holds = norm_condition if group["condition"] == "norm" else gap_condition

        def direction(batch: Batch, stack: Tensor) -> Tensor:
            worth = holds(stack, group["tau"])[:, None, None]
            # What update_matrices multiplies by, taken out: plain steps are lr * plain_scale * X.
            scale = group["update_scale"] * math.sqrt(max(stack.shape[1:]))
            return torch.where(worth, mapped(batch, stack), stack * (group["plain_scale"] / scale))

        # No padding: a stack would have other sides than its matrices.
        update_matrices(group, slots, direction)


def norm_condition(X: Tensor, tau: float) -> Tensor:
    """Whether the Frobenius norm of each matrix of X (B, m, n) is at least tau: (B,)."""
    norm: Tensor = torch.linalg.vector_norm(X, dim=(1, 2))
    return norm >= tau


def gap_condition(X: Tensor, tau: float) -> Tensor:
    """Whether all singular values above zero of each matrix are at least tau apart: (B,)."""
    wide = X if X.shape[1] <= X.shape[2] else X.mT
    _, sigma = left_singular(wide)
    gaps = torch.where(sigma[:, :-1] > 0.0, sigma.diff(dim=1), math.inf)
    return (gaps >= tau).all(1)


class MiMuon(RuleOptimizer):
    """Muon where a matrix' momentum passes a test, momentum SGD elsewhere (arXiv 2605.19619).

    With tau = 0 it is Muon. The tests are in the units of the gradient, so tau depends on the task;
    the paper's values were not available to us.

    Args:
        params: parameters, (name, parameter) pairs or group dicts; matrices as for `Pion`.
        lr: learning rate.
        momentum: decay of the averaged gradient, in [0, 1).
        nesterov: look one step ahead along the momentum.
        weight_decay: decoupled, per step and multiplied by lr.
        update_scale: of orthogonalised steps; 0.2 gives them the root mean square of AdamW's.
        coefficients: (a, b, c) per iteration of the map.
        tau: threshold of the test.
        condition: "norm" orthogonalises where the Frobenius norm is at least tau, as shipped
            implementations do; "gap" where all non-zero singular values are at least tau apart, as
            the paper states it, by an eigendecomposition per matrix and step.
        plain_scale: elsewhere the step is lr * plain_scale * momentum.
        num_heads: treat each attention head on its own; with head_axis, as for `Pion`.
        head_axis: 0 for query, key, value weights, 1 for the output projection.
        head_size: instead of num_heads, as for `Pion`.
        split_sizes: of fused projections, as for `Pion`.
        eps: added to the norm a matrix is divided by.
        precision: dtype of the map, see `vla_opt.spectral.spectral_map`.
        normalize: what singular values are divided by, see there.

    Raises:
        ValueError: an option is out of range, or a parameter is not a matrix.
    """

    def __init__(
        self,
        params: Params,
        lr: float,
        *,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.01,
        update_scale: float = 0.2,
        coefficients: Coefficients = NEWTON_SCHULZ,
        tau: float = 0.0,
        condition: Condition = "norm",
        plain_scale: float = 1.0,
        num_heads: int | Sequence[int] | None = None,
        head_axis: int | None = None,
        head_size: int | None = None,
        split_sizes: Sequence[int] | None = None,
        eps: float = 1e-7,
        precision: Precision = "auto",
        normalize: Normalize = "frobenius",
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "nesterov": nesterov,
            "weight_decay": weight_decay,
            "update_scale": update_scale,
            "coefficients": coefficients,
            "tau": tau,
            "condition": condition,
            "plain_scale": plain_scale,
            "num_heads": num_heads,
            "head_axis": head_axis,
            "head_size": head_size,
            "split_sizes": split_sizes,
            "eps": eps,
            "precision": precision,
            "normalize": normalize,
        }
        super().__init__(params, defaults)

    def _rule(self, group: Group) -> UpdateRule:
        return MiMuonRule()
