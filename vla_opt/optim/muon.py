"""Muon: momentum with all singular values driven to one (Keller Jordan; arXiv 2502.16982)."""

from collections.abc import Mapping, Sequence
from typing import Any

from vla_opt.optim._base import Group, Params, RuleOptimizer, Slot, UpdateRule
from vla_opt.optim._matrix import (
    MAP_DEFAULTS,
    MATRIX_DEFAULTS,
    check_coefficients,
    check_map_options,
    check_matrix_group,
    update_by_map,
)
from vla_opt.spectral import NEWTON_SCHULZ, Coefficients, Normalize, Precision


class MuonRule:
    """One step along the spectrally mapped momentum for a group of matrices.

    Args:
        coefficients: the default list; another one makes another optimizer, such as Kaon.
    """

    def __init__(self, coefficients: Coefficients = NEWTON_SCHULZ) -> None:
        self._coefficients = coefficients

    @property
    def defaults(self) -> Mapping[str, Any]:
        """Options of a group beside lr and params."""
        return {**MATRIX_DEFAULTS, **MAP_DEFAULTS, "coefficients": self._coefficients}

    def check(self, group: Group) -> None:
        """Raise ValueError if an option or a parameter's shape does not fit."""
        check_matrix_group(group)
        check_map_options(group)
        check_coefficients(group["coefficients"])

    def update(self, group: Group, slots: Sequence[Slot]) -> None:
        """Momentum, spectral map, decoupled weight decay, step."""
        update_by_map(group, slots, group["coefficients"])


class Muon(RuleOptimizer):
    """Muon, scaled so that its updates have the root mean square of AdamW's.

    As `Pion`, with another map: all singular values end near one. The update is
    lr * update_scale * sqrt(max(m, n)) * spectral_map(momentum, coefficients), and
    update_scale=0.2 is the rule of "Muon is Scalable" (arXiv 2502.16982), by which a learning rate
    tuned for AdamW carries over.

    Args:
        params: parameters, (name, parameter) pairs or group dicts; matrices as for `Pion`.
        lr: learning rate.
        momentum: decay of the averaged gradient, in [0, 1).
        nesterov: look one step ahead along the momentum.
        weight_decay: decoupled, per step and multiplied by lr.
        update_scale: see above.
        coefficients: (a, b, c) per iteration, for example `vla_opt.spectral.POLAR_EXPRESS`, or
            `vla_opt.spectral.high_pass_at(0.1)`, a Pion that lets directions with a tenth of the
            energy pass.
        num_heads: map each attention head on its own; with head_axis, as for `Pion`.
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
        return MuonRule()
