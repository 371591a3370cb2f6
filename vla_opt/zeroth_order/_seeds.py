"""Seeds as a pure function of numbers, and the noise drawn from them."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15

# What a seed is for: two purposes never share a stream.
QUERY, NOISE, BASIS, ORDER, ROUNDING = range(1, 6)

SLAB = 1 << 16
"""Entries that are drawn and added at once; bounds the temporary memory of a step.

Part of the definition of a direction: another value gives other directions.
"""


def mix(*parts: int) -> int:
    """Return 63 bits that depend on every part and on their order (splitmix64, chained).

    >>> mix(0, 1) == mix(0, 1), mix(0, 1) == mix(1, 0)
    (True, False)
    """
    state = 0
    for part in parts:
        state = (state ^ (part & _MASK)) + _GOLDEN & _MASK
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB & _MASK
        state ^= state >> 31
    return state >> 1


def generator(*parts: int, device: str | torch.device = "cpu") -> torch.Generator:
    """Return a new generator seeded with `mix(*parts)`; the global one is not touched."""
    return torch.Generator(device).manual_seed(mix(*parts))


def slabs(tensor: Tensor) -> Iterator[Tensor]:
    """Yield views of at most `SLAB` entries (or one row) that make up the tensor."""
    rows = _rows(tuple(tensor.shape))
    if rows is None:
        yield tensor
    else:
        for first in range(0, len(tensor), rows):
            yield tensor[first : first + rows]


def slab_shapes(shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Yield the shapes of `slabs` of a tensor of this shape."""
    rows = _rows(shape)
    if rows is None:
        yield shape
        return
    for first in range(0, shape[0], rows):
        yield min(rows, shape[0] - first), *shape[1:]


def _rows(shape: tuple[int, ...]) -> int | None:
    """Rows of a slab; None if one slab is all."""
    size = math.prod(shape)
    if not shape or size <= SLAB:
        return None
    return max(1, SLAB * shape[0] // size)


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of computations on weights of `dtype`: float32, float64 for float64."""
    return torch.promote_types(dtype, torch.float32)
