"""Moving all weights along the direction of a query, and back."""

import contextlib
from collections.abc import Callable, Iterable, Iterator

from torch import Tensor

from vla_opt.zeroth_order._blocks import Block, Move
from vla_opt.zeroth_order._exact import Residue, displace_, restore_
from vla_opt.zeroth_order.records import Query


def displacement(query: Query, blocks: Iterable[Block], epsilon: float) -> Iterator[Move]:
    """Yield the moves of a query, piece by piece; none for one at the centre."""
    terms = [(seed, side * epsilon) for seed, side in query.terms]
    for block in blocks:
        if len(terms) == 1:
            ((seed, length),) = terms
            for view, direction in block.moves(seed):
                yield view, direction.mul_(length)
        elif terms:  # one move along the sum
            yield from block.lift(block.combine(terms))


def tangents(query: Query, shadows: Iterable[Block]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (parameter, direction) for a query that asks for a derivative.

    Args:
        query: with one term.
        shadows: blocks whose targets are zeros, one at a time, since they are filled.
    """
    ((seed, _),) = query.terms
    for shadow in shadows:
        for view, direction in shadow.moves(seed):
            view.copy_(direction)
        yield shadow.site.parameter, shadow.site.weight


@contextlib.contextmanager
def displaced(moves: Callable[[], Iterator[Move]]) -> Iterator[None]:
    """Weights are moved inside the `with` block, and after it exactly what they were.

    Args:
        moves: gives the same moves each time it is called.
    """
    residues: list[Residue] = []
    try:
        for view, delta in moves():
            residues.append(displace_(view, delta))
        yield
    finally:
        for (view, delta), residue in zip(moves(), residues, strict=False):
            restore_(view, delta, residue)
