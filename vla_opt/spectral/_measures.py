"""What a spectral map tells about the matrices it has mapped, from products it makes anyway."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class SpectralMeasures:
    """Figures of each matrix of a stack (..., m, n); every field has shape (...).

    Attributes:
        directions_passed: squared Frobenius norm of the mapped matrix: the number of directions
            that pass where the map takes singular values to zero or one.
        top_energy: share of the squared Frobenius norm that the leading direction holds.
        stable_rank: 1 / top_energy.

    Of a zero matrix all three are zero.
    """

    directions_passed: Tensor
    top_energy: Tensor
    stable_rank: Tensor


def measures(mapped: Tensor, top_energy: Tensor) -> SpectralMeasures:
    """From mapped matrices (..., m, n) and the leading directions' shares (...)."""
    wide = torch.promote_types(mapped.dtype, torch.float32)
    passed = torch.linalg.vector_norm(mapped, dim=(-2, -1), dtype=wide).square()
    rank = torch.where(top_energy > 0.0, 1.0 / top_energy, 0.0)
    return SpectralMeasures(directions_passed=passed, top_energy=top_energy, stable_rank=rank)
