"""Freon, a control: any power of the singular values, from SGD's to Muon's and beyond."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vla_opt.optim._base import Group, Params, RuleOptimizer, Slot, UpdateRule
from vla_opt.optim._batches import Batch
from vla_opt.optim._eigen import left_singular, matched, with_singular_values
from vla_opt.optim._matrix import MATRIX_DEFAULTS, check_matrix_group, update_matrices


class FreonRule:
    """One Freon step for a group of matrices."""

    @property
    def defaults(self) -> Mapping[str, Any]:
        """Options of a group beside lr and params."""
        return {**MATRIX_DEFAULTS, "q": 0.5, "match_rms": True}

    def check(self, group: Group) -> None:
        """Raise ValueError if an option or a parameter's shape does not fit."""
        check_matrix_group(group)
        if not 0.0 < group["q"] <= 2.0:
            raise ValueError(f"q must lie in (0, 2], got {group['q']!r}")

    def update(self, group: Group, slots: Sequence[Slot]) -> None:
        """Momentum, power of the singular values, decoupled weight decay, step."""

        def direction(_: Batch, stack: Tensor) -> Tensor:
            powered = schatten_direction(stack, group["q"])
            return matched(powered) if group["match_rms"] else powered

        update_matrices(group, slots, direction)


def schatten_direction(X: Tensor, q: float) -> Tensor:
    """U (sigma / |sigma|_q)^(q - 1) V^T of each matrix of X (B, m, n) (arXiv 2605.11181).

    (X X^T)^(-c) X with c = 1 - q / 2, after division by the Schatten-q norm. q = 2 is X over its
    Frobenius norm, q = 1 the orthogonal factor; below one small singular values come out largest.
    Those below 1e-6 of the largest are taken as zero and stay zero.
    """
    if X.shape[1] > X.shape[2]:
        return schatten_direction(X.mT, q).mT
    U, sigma = left_singular(X)
    norm = sigma.pow(q).sum(1, keepdim=True).pow(1.0 / q)
    share = torch.where(norm > 0.0, sigma / norm, 0.0)
    target = torch.where(share > 0.0, share.pow(q - 1.0), 0.0)
    return with_singular_values(X, U, sigma, target)


class Freon(RuleOptimizer):
    """Momentum with its singular values to the power q - 1 (arXiv 2605.11181).

    A control for what the spectrum does: q = 2 is momentum SGD with normalised matrices, q = 1 is
    Muon by an exact orthogonal factor, q < 1 turns the spectrum upside down. The paper reaches its
    exponents by rational iterations; here it is an eigendecomposition per matrix and step.

    Args:
        params: parameters, (name, parameter) pairs or group dicts; matrices as for `Pion`.
        lr: learning rate.
        momentum: decay of the averaged gradient, in [0, 1).
        nesterov: look one step ahead along the momentum.
        weight_decay: decoupled, per step and multiplied by lr.
        update_scale: 0.2 gives the update the root mean square of AdamW's.
        q: in (0, 2]. The default is ours: the paper finds its best below one.
        match_rms: scale each direction to the norm of an orthogonal matrix, so that runs with
            different q differ by the spectrum alone; otherwise the paper's Schatten-q scaling.
        num_heads: treat each attention head on its own; with head_axis, as for `Pion`.
        head_axis: 0 for query, key, value weights, 1 for the output projection.
        head_size: instead of num_heads, as for `Pion`.
        split_sizes: of fused projections, as for `Pion`.

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
        q: float = 0.5,
        match_rms: bool = True,
        num_heads: int | Sequence[int] | None = None,
        head_axis: int | None = None,
        head_size: int | None = None,
        split_sizes: Sequence[int] | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "nesterov": nesterov,
            "weight_decay": weight_decay,
            "update_scale": update_scale,
            "q": q,
            "match_rms": match_rms,
            "num_heads": num_heads,
            "head_axis": head_axis,
            "head_size": head_size,
            "split_sizes": split_sizes,
        }
        super().__init__(params, defaults)

    def _rule(self, group: Group) -> UpdateRule:
        return FreonRule()
