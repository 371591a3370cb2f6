"""Mapped matrices as the product that both forms end with, not yet made.

Whoever adds them to something lets the product do it: that saves going over memory for the product,
for what it is added to and for the sum.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vla_opt.spectral._products import scaled_product


class Factors(NamedTuple):
    """A stack of `size` mapped matrices: Q X + a X, and zero for those that are not `kept`."""

    Q: Tensor  # (K, m, m), symmetric
    X: Tensor  # (K, m, n)
    a: float
    kept: Tensor | None  # (K,) places in the stack; None for all
    size: int


def product(factors: Factors) -> Tensor:
    """The stack, (count, m, n)."""
    Y = scaled_product(factors.Q, factors.X, factors.a)
    if factors.kept is None:
        return Y
    return Y.new_zeros(factors.size, *Y.shape[1:]).index_copy_(0, factors.kept, Y)


def add_product_(
    parts: Sequence[Tensor], factors: Factors, scales: Sequence[float], keep: float
) -> None:
    """W <- keep W + scale D, in place, for matrices D of the stack. Q is used up.

    Args:
        parts: stacks (k, p, q), one after the other as long as the stack; to each comes the upper
            left corner of its matrices D, which may be larger.
        factors: the stack.
        scales: one for each part.
        keep: one for all.
    """
    Q, X, a, kept, _ = factors
    if any(W.dtype != X.dtype for W in parts):
        stacks = torch.split(product(factors), [len(W) for W in parts])
        for W, D, scale in zip(parts, stacks, scales, strict=True):
            W.mul_(keep).add_(D[:, : W.shape[1], : W.shape[2]], alpha=scale)
        return
    if a:
        Q.diagonal(dim1=1, dim2=2).add_(a)
    places = None if kept is None else {place: i for i, place in enumerate(kept.tolist())}
    start = 0
    for W, scale in zip(parts, scales, strict=True):
        p, q = W.shape[1:]
        for some, chosen in _matched(W, start, places):
            if chosen is None:
                some.mul_(keep)
            else:
                some.baddbmm_(Q[chosen, :p], X[chosen, :, :q], beta=keep, alpha=scale)
        start += len(W)


def _matched(
    W: Tensor, start: int, places: dict[int, int] | None
) -> Iterator[tuple[Tensor, slice | None]]:
    """Parts of W (k, p, q), whose first matrix is number `start`, with where their factors are."""
    if places is None:
        yield W, slice(start, start + len(W))
        return
    for i in range(len(W)):
        place = places.get(start + i)
        yield W[i : i + 1], None if place is None else slice(place, place + 1)
