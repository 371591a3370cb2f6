"""Blocks: the directions of one parameter at one step, in coordinates and as displacements."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vla_opt.zeroth_order._seeds import slabs, wide
from vla_opt.zeroth_order._sites import Site

type Move = tuple[Tensor, Tensor]
"""A view of the weight, and the direction of the same shape."""

type Coefficients = Sequence[tuple[int, float]]


class Block(Protocol):
    """The directions of one parameter."""

    @property
    def site(self) -> Site:
        """The parameter."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the coordinates."""

    @property
    def visits(self) -> int:
        """How often these entries have been updated by the end of the step."""

    def moves(self, seed: int) -> Iterator[Move]:
        """The direction of a seed, piece by piece."""

    def combine(self, coefficients: Coefficients) -> Iterator[Tensor]:
        """Coordinates of sum_j c_j u_j, in `slabs`."""

    def lift(self, pieces: Iterable[Tensor]) -> Iterator[Move]:
        """The displacement with these coordinates, which come in `slabs`."""

    def state_shape(self) -> tuple[int, ...]:
        """Of a rule's buffer."""

    def window(self, buffer: Tensor) -> Tensor:
        """The view of a rule's buffer that belongs to the coordinates."""


@dataclass(frozen=True, kw_only=True)
class DirectBlock:
    """Coordinates are the entries of `target`, a view of the weight.

    Attributes:
        site: the parameter.
        target: what moves.
        visits: see `Block`.
        select: (axis, position) of target in the parameter, if it is a row or column of it.
    """

    site: Site
    target: Tensor
    visits: int
    select: tuple[int, int] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the target."""
        return tuple(self.target.shape)

    def moves(self, seed: int) -> Iterator[Move]:
        """Gaussian noise."""
        yield from zip(slabs(self.target), self.site.gaussian(seed, self.shape), strict=True)

    def combine(self, coefficients: Coefficients) -> Iterator[Tensor]:
        """One slab at a time, so that no whole direction is ever held."""
        return weighted_sums(self.site, coefficients, self.shape)

    def lift(self, pieces: Iterable[Tensor]) -> Iterator[Move]:
        """As they are."""
        yield from zip(slabs(self.target), pieces, strict=True)

    def state_shape(self) -> tuple[int, ...]:
        """Of the parameter, if the target is a part of it."""
        return self.shape if self.select is None else tuple(self.site.weight.shape)

    def window(self, buffer: Tensor) -> Tensor:
        """The same part of the buffer."""
        return buffer if self.select is None else buffer.select(*self.select)


@dataclass(frozen=True, kw_only=True)
class ProjectedBlock:
    """Coordinates (r, n) of displacements P @ coordinates.

    Attributes:
        site: the parameter.
        target: (m, n), what moves.
        basis: P (m, r).
        visits: see `Block`.
    """

    site: Site
    target: Tensor
    basis: Tensor
    visits: int

    @property
    def shape(self) -> tuple[int, ...]:
        """(r, n)."""
        return self.basis.shape[1], self.target.shape[1]

    def moves(self, seed: int) -> Iterator[Move]:
        """P times Gaussian noise."""
        return self.lift(self.site.gaussian(seed, self.shape))

    def combine(self, coefficients: Coefficients) -> Iterator[Tensor]:
        """One slab at a time."""
        return weighted_sums(self.site, coefficients, self.shape)

    def lift(self, pieces: Iterable[Tensor]) -> Iterator[Move]:
        """P times the coordinates, in slabs of rows of the target."""
        coordinates = assemble(pieces)
        row = 0
        for view in slabs(self.target):
            rows = self.basis[row : row + len(view)].to(coordinates.dtype)
            yield view, rows @ coordinates
            row += len(view)

    def state_shape(self) -> tuple[int, ...]:
        """Of the coordinates."""
        return self.shape

    def window(self, buffer: Tensor) -> Tensor:
        """All of it."""
        return buffer


@dataclass(frozen=True, kw_only=True)
class CoordinateBlock:
    """Coordinates are the entries of `target`; a seed is the position of one entry.

    Attributes:
        site: the parameter.
        target: what moves.
        visits: see `Block`.
    """

    site: Site
    target: Tensor
    visits: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the target."""
        return tuple(self.target.shape)

    def moves(self, seed: int) -> Iterator[Move]:
        """One step along one entry, if it is one of this parameter."""
        if (place := self._place(seed)) is not None:
            entry = self.target[place]
            yield entry, torch.ones((), dtype=wide(entry.dtype), device=entry.device)

    def combine(self, coefficients: Coefficients) -> Iterator[Tensor]:
        """The estimate is zero where nothing was measured."""
        total = torch.zeros(self.shape, dtype=wide(self.target.dtype), device=self.target.device)
        for seed, value in coefficients:
            if (place := self._place(seed)) is not None:
                total[place] = value
        yield from slabs(total)

    def lift(self, pieces: Iterable[Tensor]) -> Iterator[Move]:
        """As they are."""
        yield from zip(slabs(self.target), pieces, strict=True)

    def state_shape(self) -> tuple[int, ...]:
        """Of the target."""
        return self.shape

    def window(self, buffer: Tensor) -> Tensor:
        """All of it."""
        return buffer

    def _place(self, position: int) -> tuple[int, ...] | None:
        place = position - self.site.offset
        if not 0 <= place < self.target.numel():
            return None
        indices: list[int] = []
        for size in reversed(self.shape):
            place, index = divmod(place, size)
            indices.insert(0, index)
        return tuple(indices)


def weighted_sums(
    site: Site, coefficients: Coefficients, shape: tuple[int, ...]
) -> Iterator[Tensor]:
    """Yield the slabs of sum_j c_j z_j, with z_j Gaussian noise regenerated from its seed."""
    if not coefficients:
        dtype, device = wide(site.weight.dtype), site.weight.device
        yield from slabs(torch.zeros(shape, dtype=dtype, device=device))
        return
    streams = [site.gaussian(seed, shape) for seed, _ in coefficients]
    for parts in zip(*streams, strict=True):
        total = coefficients[0][1] * parts[0]
        for (_, value), part in zip(coefficients[1:], parts[1:], strict=True):
            total.add_(part, alpha=value)
        yield total


def assemble(pieces: Iterable[Tensor]) -> Tensor:
    """Put slabs together again."""
    parts = list(pieces)
    return parts[0] if len(parts) == 1 else torch.cat(parts)
