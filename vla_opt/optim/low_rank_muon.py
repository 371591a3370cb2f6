"""LowRankMuon: the leading directions of the momentum, and those alone (arXiv 2605.19282)."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from vla_opt.optim._base import Group, Params, RuleOptimizer, Slot, UpdateRule
from vla_opt.optim._batches import Batch
from vla_opt.optim._eigen import left_singular, with_singular_values
from vla_opt.optim._matrix import MATRIX_DEFAULTS, check_matrix_group, update_matrices

type Method = Literal["exact", "sketch"]
_OVERSAMPLING = 8


class LowRankMuonRule:
    """One LowRankMuon step for a group of matrices."""

    @property
    def defaults(self) -> Mapping[str, Any]:
        """Options of a group beside lr and params."""
        return {**MATRIX_DEFAULTS, "rank": 128, "method": "exact"}

    def check(self, group: Group) -> None:
        """Raise ValueError if an option or a parameter's shape does not fit."""
        check_matrix_group(group)
        if not isinstance(group["rank"], int) or group["rank"] < 1:
            raise ValueError(f"rank must be an integer >= 1, got {group['rank']!r}")
        if group["method"] not in ("exact", "sketch"):
            raise ValueError(f"method is {group['method']!r}; choose exact or sketch")

    def update(self, group: Group, slots: Sequence[Slot]) -> None:
        """Momentum, projection, decoupled weight decay, step."""
        chosen = leading_directions if group["method"] == "exact" else sketched_directions

        def direction(_: Batch, stack: Tensor) -> Tensor:
            return chosen(stack, group["rank"])

        update_matrices(group, slots, direction)


def leading_directions(X: Tensor, rank: int) -> Tensor:
    """U_k V_k^T of each matrix of X (B, m, n): its `rank` leading directions, each at size one."""
    if X.shape[1] > X.shape[2]:
        return leading_directions(X.mT, rank).mT
    U, sigma = left_singular(X)
    target = torch.zeros_like(sigma)
    target[:, -rank:] = 1.0
    return with_singular_values(X, U, sigma, target)


def sketched_directions(X: Tensor, rank: int) -> Tensor:
    """`leading_directions` within the span of a Gaussian sketch of X, after one power iteration.

    The sketch is the same at every call, so that a resumed run goes on as it would have.
    """
    if X.shape[1] > X.shape[2]:
        return sketched_directions(X.mT, rank).mT
    m, n = X.shape[1:]
    width = rank + _OVERSAMPLING
    if width >= m:
        return leading_directions(X, rank)
    generator = torch.Generator().manual_seed(0)
    sketch = torch.randn(n, width, generator=generator).to(X)
    basis = torch.linalg.qr(torch.matmul(X, sketch))[0]
    basis = torch.linalg.qr(torch.bmm(X, torch.bmm(X.mT, basis)))[0]
    return torch.bmm(basis, leading_directions(torch.bmm(basis.mT, X), rank))


class LowRankMuon(RuleOptimizer):
    """Muon along the leading directions of the momentum alone (arXiv 2605.19282, LRMuon).

    The direction is U_k V_k^T, by an eigendecomposition per matrix and step: what Pion does with
    products alone and without a fixed number. The paper reports the cost as 16 times Muon's; use it
    to check what Pion's filter amounts to.

    Args:
        params: parameters, (name, parameter) pairs or group dicts; matrices as for `Pion`.
        lr: learning rate.
        momentum: decay of the averaged gradient, in [0, 1).
        nesterov: look one step ahead along the momentum.
        weight_decay: decoupled, per step and multiplied by lr.
        update_scale: 0.2 gives the update the root mean square of AdamW's.
        rank: directions kept; all of them where a matrix has fewer.
        method: "exact", or "sketch" for a randomised basis of rank + 8 columns, which is cheaper
            where the rank is far below the matrix' sides.
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
        rank: int = 128,
        method: Method = "exact",
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
            "rank": rank,
            "method": method,
            "num_heads": num_heads,
            "head_axis": head_axis,
            "head_size": head_size,
            "split_sizes": split_sizes,
        }
        super().__init__(params, defaults)

    def _rule(self, group: Group) -> UpdateRule:
        return LowRankMuonRule()
