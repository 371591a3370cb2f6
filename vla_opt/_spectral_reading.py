"""What a measurement of an optimizer says: figures of a matrix, of a group, of all groups."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from vla_opt._singular_values import LayerReading, singular_values
from vla_opt.spectral import SPECTRAL_MARGIN, Coefficients, Normalize, scalar_map


@dataclass(frozen=True, kw_only=True)
class Spectrum:
    """Figures of one matrix' singular values.

    Attributes:
        stable_rank: squared Frobenius norm over squared spectral norm.
        effective_rank: exp of the entropy of the singular values' shares (arXiv 2605.19282).
        top_energy: share of the squared norm held by the first direction.
        directions_passed: squared norm of the mapped matrix, about the number of directions that
            the map lets through; None without a map.
    """

    stable_rank: float
    effective_rank: float
    top_energy: float
    directions_passed: float | None


@dataclass(frozen=True, kw_only=True)
class GroupReading:
    """Figures of one parameter group, means over its matrices.

    Of all matrices where the algorithm is a spectral map, which gives three of the four spectral
    figures away with its products; otherwise of those that were looked at.

    Attributes:
        algorithm: what updates the group.
        stable_rank: of the momentum, see `Spectrum`; None if the group has no matrix with momentum.
        effective_rank: of the momentum; of the matrices that were looked at.
        top_energy: of the momentum.
        directions_passed: of the momentum under the group's map; None without one.
        update_rms: root mean square of the change made by the last step, weight decay taken out.
        weight_rms: root mean square of the weights before it.
        update_to_weight: ratio of the two; None if the weights are zero.
        zero_updates: matrices that practically did not move.
        tensors: tensors of the group that got a gradient.
        matrices: those with two or more dimensions.
    """

    algorithm: str
    stable_rank: float | None
    effective_rank: float | None
    top_energy: float | None
    directions_passed: float | None
    update_rms: float
    weight_rms: float
    update_to_weight: float | None
    zero_updates: int
    tensors: int
    matrices: int


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One measurement of all groups.

    Attributes:
        step: the step it belongs to.
        groups: figures by group name.
        dead_layers: names of matrices that have now stood still for several readings in a row,
            each named once until it moves again.
        layers: singular values of the matrices that were looked at.
    """

    step: int
    groups: Mapping[str, GroupReading]
    dead_layers: tuple[str, ...] = ()
    layers: tuple[LayerReading, ...] = ()

    def row(self) -> dict[str, Any]:
        """The figures as a JSON-able log row."""
        groups = {name: asdict(group) for name, group in self.groups.items()}
        layers = [layer.row() for layer in self.layers]
        return {"kind": "spectra", "step": self.step, "groups": groups, "layers": layers}

    def warning(self) -> dict[str, Any] | None:
        """A JSON-able log row that names dead layers, or None."""
        if not self.dead_layers:
            return None
        message = f"{len(self.dead_layers)} layers stand still: {', '.join(self.dead_layers)}. "
        message += _ADVICE
        layers = list(self.dead_layers)
        return {"kind": "warning", "step": self.step, "layers": layers, "message": message}


_ADVICE = (
    "Under Pion this happens when no direction of the momentum holds enough of its squared norm: "
    "more promotion_steps lower that threshold. Otherwise look for gradients that are zero."
)


def spectrum(
    matrix: Tensor,
    coefficients: Coefficients | None = None,
    normalize: Normalize = "frobenius",
) -> Spectrum | None:
    """Figures of a matrix (m, n); None if it is zero or not finite.

    Args:
        matrix: any real matrix.
        coefficients: the map whose directions are counted.
        normalize: what the map divides singular values by, see `vla_opt.spectral.spectral_map`.

    >>> from vla_opt.spectral import high_pass
    >>> spectrum(torch.eye(4), high_pass(5, 0)).effective_rank
    4.0
    """
    found = singular_values(matrix.to(torch.float64).unsqueeze(0))
    return None if found is None else spectrum_of(found[0], coefficients, normalize)


def spectrum_of(sigma: Tensor, coefficients: Coefficients | None, normalize: Normalize) -> Spectrum:
    """Figures of singular values (k,), descending, whose squares sum to one."""
    share = sigma / sigma.sum()
    entropy = -torch.special.xlogy(share, share).sum()
    top = sigma[0].square().item()
    passed = None
    if coefficients is not None:
        passed = mapped_values(sigma, coefficients, normalize).square().sum().item()
    return Spectrum(
        stable_rank=1.0 / top,
        effective_rank=round(math.exp(entropy.item()), 9),
        top_energy=top,
        directions_passed=passed,
    )


def mapped_values(sigma: Tensor, coefficients: Coefficients, normalize: Normalize) -> Tensor:
    """What a spectral map makes of the singular values (..., k) of matrices, at any scale.

    >>> from vla_opt.spectral import high_pass
    >>> mapped_values(torch.tensor([3.0, 0.0]), high_pass(1, 4), "frobenius")
    tensor([1., 0.])
    """
    if normalize == "spectral":
        norm = SPECTRAL_MARGIN * sigma.amax(dim=-1, keepdim=True)
    else:
        norm = torch.linalg.vector_norm(sigma, dim=-1, keepdim=True)
    return scalar_map(sigma / norm, coefficients)
