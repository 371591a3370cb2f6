"""Kaon, a control: Muon with chaos for a spectrum (arXiv 2605.11181)."""

from collections.abc import Sequence

from vla_opt.optim._base import Group, Params, RuleOptimizer, UpdateRule
from vla_opt.optim.muon import MuonRule
from vla_opt.spectral import KAON, Coefficients, Normalize, Precision


def kaon_rule() -> MuonRule:
    """Muon's rule with Kaon's list: nothing else differs."""
    return MuonRule(KAON)


class Kaon(RuleOptimizer):
    """Muon whose singular values end anywhere in [0, 1], chaotically (arXiv 2605.11181).

    A control: where it trains as well as Muon or Pion, the spectrum of the update is not the
    reason. `Muon` with the coefficients `vla_opt.spectral.KAON`.

    Args:
        params: parameters, (name, parameter) pairs or group dicts; matrices as for `Pion`.
        lr: learning rate.
        momentum: decay of the averaged gradient, in [0, 1).
        nesterov: look one step ahead along the momentum.
        weight_decay: decoupled, per step and multiplied by lr.
        update_scale: 0.2 gives the update the root mean square of AdamW's.
        coefficients: (a, b, c) per iteration of the map.
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
        coefficients: Coefficients = KAON,
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
        return kaon_rule()
