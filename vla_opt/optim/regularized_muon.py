"""Regularized Muon: singular values s become s / sqrt(s^2 + epsilon^2) (arXiv 2605.23871)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vla_opt.optim._base import Group, Params, RuleOptimizer, Slot, UpdateRule
from vla_opt.optim._batches import Batch
from vla_opt.optim._eigen import matched
from vla_opt.optim._matrix import (
    MAP_DEFAULTS,
    MATRIX_DEFAULTS,
    check_coefficients,
    check_map_options,
    check_matrix_group,
    mapped,
    update_matrices,
)
from vla_opt.spectral import Coefficients, Normalize, Precision, polar_express

_COEFFICIENTS = polar_express(6)  # within 0.1 % of the exact map for ridge = 0.5


class RegularizedMuonRule:
    """One Regularized Muon step for a group of matrices."""

    @property
    def defaults(self) -> Mapping[str, Any]:
        """Options of a group beside lr and params."""
        own = {"coefficients": _COEFFICIENTS, "ridge": 0.5, "epsilon": None, "match_rms": False}
        return {**MATRIX_DEFAULTS, **MAP_DEFAULTS, **own}

    def check(self, group: Group) -> None:
        """Raise ValueError if an option or a parameter's shape does not fit."""
        check_matrix_group(group)
        check_map_options(group)
        check_coefficients(group["coefficients"])
        for key in ("ridge", "epsilon"):
            if group[key] is not None and not 0.0 <= group[key] < math.inf:
                raise ValueError(f"{key} must be finite and >= 0, got {group[key]!r}")

    def update(self, group: Group, slots: Sequence[Slot]) -> None:
        """Momentum, regularised map, decoupled weight decay, step."""
        options = {key: group[key] for key in MAP_DEFAULTS}

        def direction(batch: Batch, stack: Tensor) -> Tensor:
            epsilon = regularization(stack, group["ridge"], group["epsilon"])
            choices = {**options, "regularization": epsilon}
            soft = mapped(batch, stack, group["coefficients"], choices)
            return matched(soft) if group["match_rms"] else soft

        update_matrices(group, slots, direction)


def regularization(X: Tensor, ridge: float, epsilon: float | None) -> Tensor:
    """The epsilon of each matrix of X (B, m, n): (B,).

    `epsilon` itself, or `ridge` times the root mean square of the singular values.
    """
    if epsilon is not None:
        return torch.full((X.shape[0],), epsilon, dtype=X.dtype, device=X.device)
    norm: Tensor = torch.linalg.vector_norm(X, dim=(1, 2))
    return norm * (ridge / math.sqrt(min(X.shape[1:])))


class RegularizedMuon(RuleOptimizer):
    """Muon that leaves small singular values small (arXiv 2605.23871).

    The direction is (M M^T + epsilon^2 I)^(-1/2) M: what lies far above epsilon comes out at one,
    what lies below in proportion to its size. Costs what Muon costs: epsilon enters the Gram
    matrix that the map works on.

    Args:
        params: parameters, (name, parameter) pairs or group dicts; matrices as for `Pion`.
        lr: learning rate.
        momentum: decay of the averaged gradient, in [0, 1).
        nesterov: look one step ahead along the momentum.
        weight_decay: decoupled, per step and multiplied by lr.
        update_scale: 0.2 gives the update the root mean square of AdamW's.
        coefficients: (a, b, c) per iteration; they must take singular values to one.
        ridge: epsilon relative to the root mean square of the momentum's singular values.
        epsilon: the paper's: one number in the units of the gradient, in place of ridge.
        match_rms: scale each direction to the norm of an orthogonal matrix, as the recipe called
            Soft Muon does; the paper does not.
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
        coefficients: Coefficients = _COEFFICIENTS,
        ridge: float = 0.5,
        epsilon: float | None = None,
        match_rms: bool = False,
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
            "ridge": ridge,
            "epsilon": epsilon,
            "match_rms": match_rms,
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
        return RegularizedMuonRule()
