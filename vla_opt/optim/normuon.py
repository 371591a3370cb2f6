"""NorMuon: Muon with rows brought to one size by a second moment each (arXiv 2510.05491)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vla_opt.optim._base import Group, Params, RuleOptimizer, Slot, UpdateRule
from vla_opt.optim._batches import Batch, Piece
from vla_opt.optim._matrix import (
    MAP_DEFAULTS,
    MATRIX_DEFAULTS,
    check_coefficients,
    check_map_options,
    check_matrix_group,
    directions,
    update_matrices,
)
from vla_opt.spectral import NEWTON_SCHULZ, Coefficients, Normalize, Precision


class NorMuonRule:
    """One NorMuon step for a group of matrices."""

    @property
    def defaults(self) -> Mapping[str, Any]:
        """Options of a group beside lr and params."""
        own = {"coefficients": NEWTON_SCHULZ, "beta2": 0.95, "row_eps": 1e-10}
        return {**MATRIX_DEFAULTS, **MAP_DEFAULTS, **own}

    def check(self, group: Group) -> None:
        """Raise ValueError if an option or a parameter's shape does not fit."""
        check_matrix_group(group)
        check_map_options(group)
        check_coefficients(group["coefficients"])
        if not 0.0 <= group["beta2"] < 1.0:
            raise ValueError(f"beta2 must lie in [0, 1), got {group['beta2']!r}")
        if not group["row_eps"] > 0.0:
            raise ValueError(f"row_eps must be above 0, got {group['row_eps']!r}")

    def update(self, group: Group, slots: Sequence[Slot]) -> None:
        """Momentum, orthogonalisation, rows to one size, decoupled weight decay, step."""
        mapped = directions(group, group["coefficients"])

        def direction(batch: Batch, stack: Tensor) -> Tensor:
            orthogonal = mapped(batch, stack)
            for piece, D in zip(batch.pieces, batch.windows(orthogonal), strict=True):
                _level_rows_(D, _row_moments(piece), group["beta2"], group["row_eps"])
            return orthogonal

        update_matrices(group, slots, direction, pad=True)


def _level_rows_(D: Tensor, moments: Tensor, beta2: float, eps: float) -> None:
    """v <- b2 v + (1 - b2) mean D^2 per row; D <- D / (sqrt v + eps), then to sqrt(min(m, n)).

    Rows are output neurons. The Frobenius norm ends as that of an orthogonal matrix.

    Args:
        D: (count, m, n), changed.
        moments: v, (count, m, 1), changed.
        beta2: decay of v.
        eps: added to its square root.
    """
    m, n = D.shape[1:]
    squares = torch.linalg.vector_norm(D, dim=2, keepdim=True).square()
    moments.lerp_(squares / n, 1.0 - beta2)
    factor = 1.0 / (moments.sqrt() + eps)
    norm = (squares * factor.square()).sum(1, keepdim=True).sqrt()
    D.mul_(factor * torch.where(norm > 0.0, math.sqrt(min(m, n)) / norm, 0.0))


def _row_moments(piece: Piece) -> Tensor:
    """The second moments of a piece's rows, (count, m, 1): part of one vector per parameter."""
    state, weight = piece.slot.state, piece.slot.weight
    shapes = piece.layout.shapes(weight.shape)
    rows = [count * m for count, m, _ in shapes]
    if "row_moments" not in state:
        state["row_moments"] = weight.new_zeros(sum(rows), requires_grad=False)
    block = torch.split(state["row_moments"], rows)[piece.block]
    return block.view(shapes[piece.block][0], -1, 1)[piece.start : piece.stop]


class NorMuon(RuleOptimizer):
    """Muon whose update has rows of about one size (arXiv 2510.05491).

    With O the orthogonalised momentum of a matrix (m, n) and v a number per row:

        v <- beta2 v + (1 - beta2) mean over columns of O^2
        N <- O / (sqrt(v) + row_eps)
        W <- (1 - lr * weight_decay) W - lr * update_scale * sqrt(m n) / |N| * N

    so that the update's root mean square is update_scale, exactly. Rows are output neurons (of
    each head, where heads are treated on their own). State: the momentum and one number per row.

    Args:
        params: parameters, (name, parameter) pairs or group dicts; matrices as for `Pion`.
        lr: learning rate.
        momentum: decay of the averaged gradient, in [0, 1).
        nesterov: look one step ahead along the momentum.
        weight_decay: decoupled, per step and multiplied by lr.
        update_scale: 0.2 gives the update the root mean square of AdamW's.
        coefficients: (a, b, c) per iteration of the map.
        beta2: decay of the rows' second moment, in [0, 1).
        row_eps: added to its square root.
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
        beta2: float = 0.95,
        row_eps: float = 1e-10,
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
            "beta2": beta2,
            "row_eps": row_eps,
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
        return NorMuonRule()
