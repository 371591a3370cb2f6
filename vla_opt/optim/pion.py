"""Pion: Muon with a high-pass filter on the momentum's singular values (arXiv 2605.19282)."""

from collections.abc import Mapping, Sequence
from typing import Any

from vla_opt.optim._base import Group, Params, RuleOptimizer, Slot, UpdateRule
from vla_opt.optim._matrix import (
    MAP_DEFAULTS,
    MATRIX_DEFAULTS,
    check_map_options,
    check_matrix_group,
    update_by_map,
)
from vla_opt.spectral import Normalize, Precision, high_pass


class PionRule:
    """One Pion step for a group of matrices."""

    @property
    def defaults(self) -> Mapping[str, Any]:
        """Options of a group beside lr and params."""
        steps = {"promotion_steps": 1, "suppression_steps": 4}
        return {**MATRIX_DEFAULTS, **MAP_DEFAULTS, **steps}

    def check(self, group: Group) -> None:
        """Raise ValueError if an option or a parameter's shape does not fit."""
        check_matrix_group(group)
        check_map_options(group)
        high_pass(group["promotion_steps"], group["suppression_steps"])

    def update(self, group: Group, slots: Sequence[Slot]) -> None:
        """Momentum, high-pass map, decoupled weight decay, step."""
        coefficients = high_pass(group["promotion_steps"], group["suppression_steps"])
        update_by_map(group, slots, coefficients)


class Pion(RuleOptimizer):
    """The high-pass Pion of "Rethinking Muon Beyond Pretraining" (arXiv 2605.19282).

    Not the spectrum-preserving optimizer of the same name (arXiv 2605.12492, "PionOET").

    Each step, for every matrix W (m, n) with gradient G and momentum M:

        M <- mu M + (1 - mu) G
        X <- mu M + (1 - mu) G with Nesterov, else M
        W <- (1 - lr * weight_decay) W
        W <- W - lr * update_scale * sqrt(max(m, n)) * spectral_map(X, high_pass(...))

    The map keeps the directions that hold a large share of the momentum's squared norm and drops
    the rest: about 24 % each for 1 + 4 steps (so at most four directions pass), 7 % for 2 + 3,
    2 % for 3 + 2. With promotion_steps=0, the default of the published code, a direction must
    hold about 64 %: one passes or none, and a layer whose momentum has no such direction does
    not move at all. Hence the default of 1.

    Parameters must be matrices, (count, m, n) stacks of them or convolutions, taken as
    (out, in * ...). Biases, norms, embeddings and output layers belong to AdamW: see
    `build_optimizer`. Options can differ per parameter group, num_heads and head_axis too.

    Args:
        params: parameters, (name, parameter) pairs or group dicts, as for any torch optimizer.
        lr: learning rate.
        momentum: decay mu of the averaged gradient, in [0, 1).
        nesterov: look one step ahead along the momentum.
        weight_decay: decoupled, per step and multiplied by lr.
        promotion_steps: steps that lift singular values, before suppression.
        suppression_steps: steps that separate them into zeros and ones.
        update_scale: 0.2 makes the root mean square of a full-rank update that of AdamW's.
        num_heads: map each attention head on its own; with head_axis. For grouped queries, key and
            value have fewer heads than query and output: use separate groups, or head_size. With
            split_sizes one number for each of them.
        head_axis: 0 for query, key, value weights (heads are rows), 1 for the output projection.
        head_size: instead of num_heads: rows (columns) of a head. One group then fits query, key
            and value, fused or not, whatever their numbers of heads.
        split_sizes: rows of each matrix in a fused projection, such as (query, key, value) or
            (gate, up): each is mapped on its own. Columns with head_axis=1.
        eps: added to the norm a matrix is divided by.
        precision: dtype of the map, see `vla_opt.spectral.spectral_map`.
        normalize: "frobenius" is the paper's. "spectral" is ours: singular values are divided by
            the largest (times 1.02), so that the top direction always passes and no layer stands
            still; others pass if they come near it (above 0.81, 0.50, 0.27 of it for 0, 1, 2
            promotion steps of five).

    Raises:
        ValueError: an option is out of range, or a parameter is not a matrix.

    >>> import torch
    >>> layer = torch.nn.Linear(8, 4, bias=False)
    >>> optimizer = Pion(layer.named_parameters(), lr=1e-3)
    >>> layer(torch.ones(2, 8)).square().mean().backward()
    >>> optimizer.step()
    """

    def __init__(
        self,
        params: Params,
        lr: float,
        *,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.01,
        promotion_steps: int = 1,
        suppression_steps: int = 4,
        update_scale: float = 0.2,
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
            "promotion_steps": promotion_steps,
            "suppression_steps": suppression_steps,
            "update_scale": update_scale,
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
        return PionRule()
