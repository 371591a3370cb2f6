"""What a spectral map tells about the matrices it has mapped, from products it makes anyway."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

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

    def split(self, counts: Sequence[int]) -> list[Self]:
        """Those of the first matrices of a stack, of the next ones, and so on."""
        parts = zip(*(torch.split(field, list(counts)) for field in self._fields()), strict=True)
        return [self._made(*part) for part in parts]

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Those of several stacks as one."""
        return cls._made(*map(torch.cat, zip(*(part._fields() for part in parts), strict=True)))

    def _fields(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.directions_passed, self.top_energy, self.stable_rank

    @classmethod
    def _made(cls, passed: Tensor, energy: Tensor, rank: Tensor) -> Self:
        return cls(directions_passed=passed, top_energy=energy, stable_rank=rank)


def measures(mapped: Tensor, top_energy: Tensor) -> SpectralMeasures:
    """From mapped matrices (..., m, n) and the leading directions' shares (...)."""
    wide = torch.promote_types(mapped.dtype, torch.float32)
    passed = torch.linalg.vector_norm(mapped, dim=(-2, -1), dtype=wide).square()
    rank = torch.where(top_energy > 0.0, 1.0 / top_energy, 0.0)
    return SpectralMeasures(directions_passed=passed, top_energy=top_energy, stable_rank=rank)
