"""Tensors between the ranks that hold their parts and the one rank that works on the whole.

Everything travels in one collective per dtype and direction, whatever the number of tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """A process group, seen from one of its ranks."""

    group: Any
    rank: int
    world: int

    @classmethod
    def of(cls, group: Any = None) -> Ranks:
        """The ranks of a process group, or of the default one.

        Raises:
            RuntimeError: torch.distributed is not available or not initialised.
        """
        if not (dist.is_available() and dist.is_initialized()):
            raise RuntimeError(
                "work can be shared after torch.distributed.init_process_group(); a single "
                "process needs neither"
            )
        return cls(group=group, rank=dist.get_rank(group), world=dist.get_world_size(group))


@dataclass(frozen=True, kw_only=True)
class Item:
    """One tensor that travels.

    Attributes:
        owner: the rank that works on the whole.
        shape: of the whole.
        dim: the dimension that is cut among the ranks; None if every rank holds the whole.
        dtype: of the tensor.
        tensor: this rank's part on the way to the owner, the whole on the way back (owner only).
    """

    owner: int
    shape: tuple[int, ...]
    dim: int | None
    dtype: torch.dtype
    tensor: Tensor | None

    def part(self, world: int, rank: int) -> tuple[int, int]:
        """Start and length of a rank's part along `dim`, as torch.chunk cuts."""
        assert self.dim is not None
        size = self.shape[self.dim]
        step = -(-size // world)
        start = min(rank * step, size)
        return start, min(step, size - start)

    def part_shape(self, world: int, rank: int) -> tuple[int, ...]:
        """Shape of a rank's part."""
        if self.dim is None:
            return self.shape
        length = self.part(world, rank)[1]
        return (*self.shape[: self.dim], length, *self.shape[self.dim + 1 :])

    def cut(self, world: int, rank: int) -> Tensor:
        """A rank's part of the whole, flat."""
        assert self.tensor is not None
        if self.dim is None:
            return self.tensor.reshape(-1)
        return self.tensor.narrow(self.dim, *self.part(world, rank)).reshape(-1)


def balanced_owners(costs: Sequence[float], world: int) -> list[int]:
    """A rank for each tensor: the costliest first, each to the rank with the least so far.

    >>> balanced_owners([5, 1, 4, 2], 2)
    [0, 0, 1, 1]
    """
    load, owners = [0.0] * world, [0] * len(costs)
    for i in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        owners[i] = min(range(world), key=lambda rank: (load[rank], rank))
        load[owners[i]] += costs[i]
    return owners


def to_owners(items: Sequence[Item], ranks: Ranks, device: torch.device) -> list[Tensor | None]:
    """Send every rank's part to the owner; the whole tensors this rank owns, None elsewhere."""

    def outgoing(item: Item, rank: int) -> Tensor | None:
        assert item.tensor is not None
        return item.tensor.reshape(-1) if item.owner == rank else None

    def incoming(item: Item, rank: int) -> tuple[int, ...] | None:
        return item.part_shape(ranks.world, rank) if item.owner == ranks.rank else None

    found: list[Tensor | None] = [None] * len(items)
    for i, parts in _all_to_all(items, ranks, device, outgoing, incoming).items():
        dim = items[i].dim
        found[i] = parts[0] if dim is None else torch.cat(parts, dim=dim)
    return found


def from_owners(items: Sequence[Item], ranks: Ranks, device: torch.device) -> list[Tensor]:
    """Send from the owner to every rank its part; the parts that this rank receives."""

    def outgoing(item: Item, rank: int) -> Tensor | None:
        return item.cut(ranks.world, rank) if item.owner == ranks.rank else None

    def incoming(item: Item, rank: int) -> tuple[int, ...] | None:
        return item.part_shape(ranks.world, ranks.rank) if item.owner == rank else None

    received = _all_to_all(items, ranks, device, outgoing, incoming)
    return [received[i][0] for i in range(len(items))]


def _all_to_all(
    items: Sequence[Item],
    ranks: Ranks,
    device: torch.device,
    outgoing: Callable[[Item, int], Tensor | None],
    incoming: Callable[[Item, int], tuple[int, ...] | None],
) -> dict[int, list[Tensor]]:
    """What each rank sent of each item, in the order of the ranks; one collective per dtype."""
    received: dict[int, list[Tensor]] = {}
    for dtype in sorted({item.dtype for item in items}, key=str):
        members = [i for i, item in enumerate(items) if item.dtype == dtype]
        out: list[list[Tensor]] = []
        expected: list[list[tuple[int, tuple[int, ...]]]] = []
        for rank in range(ranks.world):
            pieces = [outgoing(items[i], rank) for i in members]
            out.append([piece for piece in pieces if piece is not None])
            shapes = [(i, incoming(items[i], rank)) for i in members]
            expected.append([(i, shape) for i, shape in shapes if shape is not None])
        sent_sizes = [sum(piece.numel() for piece in pieces) for pieces in out]
        sizes = [sum(_numel(shape) for _, shape in shapes) for shapes in expected]
        flat = [piece for pieces in out for piece in pieces]
        buffer = torch.empty(sum(sizes), dtype=dtype, device=device)
        sent = torch.cat(flat) if flat else buffer.new_empty(0)
        dist.all_to_all_single(buffer, sent, sizes, sent_sizes, group=ranks.group)
        position = 0
        for i, shape in (entry for shapes in expected for entry in shapes):
            piece = buffer[position : position + _numel(shape)]
            received.setdefault(i, []).append(piece.view(shape))
            position += _numel(shape)
    return received


def to_all(items: Sequence[Item], ranks: Ranks, device: torch.device) -> list[Tensor]:
    """Send whole tensors from their owners to all ranks; views of what arrived."""
    found: dict[int, Tensor] = {}
    for dtype in sorted({item.dtype for item in items}, key=str):
        members = [i for i, item in enumerate(items) if item.dtype == dtype]
        owned = [[i for i in members if items[i].owner == rank] for rank in range(ranks.world)]
        sizes = [sum(_numel(items[i].shape) for i in part) for part in owned]
        mine = torch.zeros(max(sizes), dtype=dtype, device=device)
        flat = [items[i].cut(ranks.world, ranks.rank) for i in owned[ranks.rank]]
        if flat:
            torch.cat(flat, out=mine[: sizes[ranks.rank]])
        everything = mine.new_empty(ranks.world * max(sizes))
        dist.all_gather_into_tensor(everything, mine, group=ranks.group)
        for rank, part in enumerate(owned):
            position = rank * max(sizes)
            for i in part:
                size = _numel(items[i].shape)
                found[i] = everything[position : position + size].view(items[i].shape)
                position += size
    return [found[i] for i in range(len(items))]


def shared_objects(mine: Any, ranks: Ranks) -> list[Any]:
    """A picklable object of every rank, in the order of the ranks."""
    objects: list[Any] = [None] * ranks.world
    dist.all_gather_object(objects, mine, group=ranks.group)
    return objects


def _numel(shape: Sequence[int]) -> int:
    return int(torch.Size(shape).numel())
