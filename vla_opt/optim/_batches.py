"""Which matrices go through the map together, and how they get into one stack and out again.

On small policies the number of calls costs more than the arithmetic. Matrices of one shape share a
stack; where it costs less than another call they also share one with a larger shape, padded with
zeros (an odd map keeps zero singular values, and zeros do not change a norm) or transposed. Which
shapes share depends on the group's parameters alone, never on who has a gradient or which rank
works on which: rounding then is the same everywhere.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from vla_opt.optim._gradients import Group
from vla_opt.optim._layout import Layout, layout_of
from vla_opt.optim._slot import Slot
from vla_opt.spectral import SpectralMeasures

# 64 MiB of float32: far above what pays for batching, far below what hurts beside a model. On a
# CPU what fits its cache: temporary results then are neither fetched from memory nor paged in.
MAX_BATCH_ELEMENTS = 1 << 24
_MAX_CPU_ELEMENTS = 1 << 21

# Multiplications that take as long as the calls for one more stack (about 30 of them).
_CALLS_ON_CPU, _CALLS_ELSEWHERE = 3e6, 3e8
# The same for moving one number against the grain of memory.
_TRANSPOSED = 20

type Shape = tuple[int, int]


@dataclass(frozen=True)
class Place:
    """Where matrices of one shape go: a stack of at least that shape, transposed or not."""

    shape: Shape
    transposed: bool = False


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Matrices `start` to `stop` of one block of one parameter."""

    slot: Slot
    layout: Layout
    block: int
    start: int
    stop: int
    shape: Shape
    transposed: bool

    def of(self, X: Tensor) -> Tensor:
        """These matrices in a tensor of the parameter's shape: (count, m, n)."""
        stack = self.layout.cut(X)[self.block]
        return stack if self.count == stack.shape[0] else stack[self.start : self.stop]

    @property
    def count(self) -> int:
        """How many matrices."""
        return self.stop - self.start


@dataclass(frozen=True)
class Batch:
    """Pieces that share a stack of matrices of `shape`."""

    pieces: Sequence[Piece]
    shape: Shape

    def stack_in(self, memory: Tensor | None) -> Tensor:
        """(total count, M, N), zero where padded, in the flat `memory` if it is large enough."""
        like = self.pieces[0].slot.weight
        size = torch.Size((sum(piece.count for piece in self.pieces), *self.shape))
        fits = memory is not None and (memory.dtype, memory.device) == (like.dtype, like.device)
        if memory is None or not fits or memory.numel() < size.numel():
            memory = like.new_empty(size.numel())
        stack = memory[: size.numel()].view(size)
        exact = all(piece.shape in (self.shape, self.shape[::-1]) for piece in self.pieces)
        return stack if exact else stack.zero_()

    def windows(self, stack: Tensor) -> Iterator[Tensor]:
        """Each piece's part of the stack, (count, m, n) as in its parameter."""
        start = 0
        for piece in self.pieces:
            m, n = piece.shape
            part = stack[start : start + piece.count]
            start += piece.count
            yield part[:, :n, :m].mT if piece.transposed else part[:, :m, :n]

    @property
    def measured(self) -> bool:
        """Whether somebody wants the figures of these matrices."""
        return any(piece.slot.measures is not None for piece in self.pieces)

    def note(self, figures: SpectralMeasures) -> None:
        """Give each piece's slot the figures of its matrices."""
        counts = [piece.count for piece in self.pieces]
        for piece, own in zip(self.pieces, figures.split(counts), strict=True):
            if piece.slot.measures is not None:
                piece.slot.measures.append(own)


def batches(group: Group, slots: Sequence[Slot], *, pad: bool) -> Iterator[Batch]:
    """All matrices of the slots, in stacks below the memory cap (or of a single matrix).

    Args:
        group: options and all parameters.
        slots: those to be updated.
        pad: whether zeros around a matrix leave its update as it is.
    """
    if not slots:
        return
    places = _group_places(group, slots, pad=pad)
    buckets: dict[tuple[object, ...], list[Piece]] = {}
    for slot in slots:
        layout = layout_of(group, slot.weight.shape)
        for block, (count, m, n) in enumerate(layout.shapes(slot.weight.shape)):
            place = places[m, n]
            key = (place.shape, slot.weight.dtype, slot.weight.device)
            piece = Piece(slot=slot, layout=layout, block=block, start=0, stop=count,
                          shape=(m, n), transposed=place.transposed)  # fmt: skip
            buckets.setdefault(key, []).append(piece)
    for bucket in buckets.values():
        place = places[bucket[0].shape]
        for pieces in _capped(bucket, place.shape):
            yield Batch(pieces, place.shape)


def _capped(pieces: Sequence[Piece], shape: Shape) -> Iterator[list[Piece]]:
    """The pieces, cut where needed, in lists of at most the cap (or of one matrix)."""
    on_cpu = pieces[0].slot.weight.device.type == "cpu"
    cap = min(MAX_BATCH_ELEMENTS, _MAX_CPU_ELEMENTS) if on_cpu else MAX_BATCH_ELEMENTS
    room = most = max(1, cap // (shape[0] * shape[1]))
    batch: list[Piece] = []
    for piece in pieces:
        start = piece.start
        while start < piece.stop:
            stop = min(piece.stop, start + room)
            batch.append(_narrowed(piece, start, stop))
            room -= stop - start
            start = stop
            if room == 0:
                yield batch
                batch, room = [], most
    if batch:
        yield batch


def _narrowed(piece: Piece, start: int, stop: int) -> Piece:
    return Piece(slot=piece.slot, layout=piece.layout, block=piece.block, start=start, stop=stop,
                 shape=piece.shape, transposed=piece.transposed)  # fmt: skip


# Which shapes share a stack ---------------------------------------------------------------------


def _group_places(group: Group, slots: Sequence[Slot], *, pad: bool) -> dict[Shape, Place]:
    counts: Counter[Shape] = Counter()
    for parameter in group["params"]:
        for count, m, n in layout_of(group, parameter.shape).shapes(parameter.shape):
            counts[m, n] += count
    on_cpu = slots[0].weight.device.type == "cpu"
    calls = _CALLS_ON_CPU if on_cpu else _CALLS_ELSEWHERE
    return places(tuple(sorted(counts.items())), calls, pad)


@cache
def places(counts: tuple[tuple[Shape, int], ...], calls: float, pad: bool) -> dict[Shape, Place]:
    """Where matrices of each shape go.

    Args:
        counts: (shape, how many) each.
        calls: multiplications that take as long as one more stack.
        pad: whether a stack may be larger than its matrices.

    >>> places((((4, 8), 3), ((4, 9), 50), ((64, 64), 2)), 1e5, True)[4, 8]
    Place(shape=(4, 9), transposed=False)
    """
    found: dict[Shape, Place] = {}
    hosts: list[Shape] = []
    for shape, count in sorted(counts, key=lambda item: (-item[0][0] * item[0][1], item[0])):
        options = [o for host in hosts for o in _fits(shape, count, host, pad=pad)]
        cost, place = min(options, key=lambda o: o[0], default=(calls, Place(shape)))
        if cost >= calls:
            place = Place(shape)
            hosts.append(shape)
        found[shape] = place
    return found


def _fits(shape: Shape, count: int, host: Shape, *, pad: bool) -> Iterator[tuple[float, Place]]:
    """What it costs beyond a stack of their own to put `count` matrices into `host`'s."""
    m, n = shape
    for transposed in (False, True):
        a, b = (n, m) if transposed else (m, n)
        if (a, b) == host or (pad and a <= host[0] and b <= host[1]):
            extra = count * (_multiplications(*host) - _multiplications(m, n))
            yield extra + transposed * _TRANSPOSED * count * m * n, Place(host, transposed)


def _multiplications(m: int, n: int) -> float:
    """Of five quintics on an (m, n) matrix, in the cheaper form."""
    m, n = min(m, n), max(m, n)
    return m * m * min(10.0 * n + 5.0 * m, 2.0 * n + 17.0 * m)


# Momentum in, update out ------------------------------------------------------------------------


def advance(batch: Batch, stack: Tensor, *, momentum: float, nesterov: bool) -> None:
    """M <- mu M + (1 - mu) G; into the stack goes M, or (1 - mu) G + mu M with Nesterov."""
    momenta = [piece.of(piece.slot.buffer("momentum")) for piece in batch.pieces]
    gradients = [piece.of(piece.slot.grad).to(stack.dtype) for piece in batch.pieces]
    torch._foreach_lerp_(momenta, gradients, 1.0 - momentum)
    for M, G, seen in zip(momenta, gradients, batch.windows(stack), strict=True):
        if nesterov:
            torch.lerp(G, M, momentum, out=seen)
        else:
            seen.copy_(M)
