"""How a parameter is cut into the matrices that are mapped: heads, fused projections, experts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from vla_opt.optim._gradients import Group, parameter_names

LAYOUT_OPTIONS = ("num_heads", "head_axis", "head_size", "split_sizes")
LAYOUT_DEFAULTS: Mapping[str, Any] = MappingProxyType(dict.fromkeys(LAYOUT_OPTIONS))


@dataclass(frozen=True)
class Block:
    """Rows or columns of a parameter that make `heads` matrices of one shape."""

    length: int
    heads: int


@dataclass(frozen=True)
class Layout:
    """The cut of one parameter: blocks along `axis`; none for stacks and convolutions."""

    axis: int
    blocks: tuple[Block, ...]

    def cut(self, X: Tensor) -> list[Tensor]:
        """The matrices as stacks (count, m, n), one per block; views if X is contiguous."""
        if X.ndim > 3:
            return [X.reshape(1, X.shape[0], -1)]
        if X.ndim == 3:
            return [X]
        if len(self.blocks) == 1:  # the same as below in fewer calls: small policies have many
            return [_heads(X, self.axis, self.blocks[0].heads)]
        parts = torch.split(X, [block.length for block in self.blocks], self.axis)
        return [
            _heads(part, self.axis, block.heads)
            for part, block in zip(parts, self.blocks, strict=True)
        ]

    def shapes(self, shape: torch.Size) -> list[tuple[int, int, int]]:
        """(count, m, n) of each of the stacks that `cut` makes of a tensor of this shape."""
        if len(shape) > 3:
            return [(1, shape[0], shape[1:].numel())]
        if len(shape) == 3:
            return [(shape[0], shape[1], shape[2])]
        sides = [
            (block.heads, block.length // block.heads, shape[1 - self.axis])
            for block in self.blocks
        ]
        return sides if self.axis == 0 else [(count, n, m) for count, m, n in sides]


def _heads(X: Tensor, axis: int, heads: int) -> Tensor:
    """X (m, n) cut along one axis: (heads, m', n')."""
    if heads == 1:
        return X.unsqueeze(0)
    if axis == 0:
        return torch.unflatten(X, 0, (heads, -1))
    return torch.unflatten(X, 1, (heads, -1)).movedim(1, 0)


def layout_of(group: Mapping[str, Any], shape: torch.Size) -> Layout:
    """The cut of a parameter of `shape` under its group's options.

    Raises:
        ValueError: the options contradict each other, or do not fit the shape.
    """
    heads, axis, size, sizes = (group.get(key) for key in LAYOUT_OPTIONS)
    if len(shape) != 2 or (heads is None and size is None and sizes is None):
        _refuse_heads(shape, heads, size, sizes)
        return Layout(0, (Block(shape[0], 1),))
    along = axis if axis is not None else 0
    lengths = [shape[along]] if sizes is None else [int(length) for length in sizes]
    if sum(lengths) != shape[along] or min(lengths) < 1:
        raise ValueError(
            f"split_sizes {tuple(lengths)} do not add up to {shape[along]}, its length on axis "
            f"{along}"
        )
    counts = _counts(lengths, heads, size, along)
    return Layout(along, tuple(Block(*block) for block in zip(lengths, counts, strict=True)))


def check_layout(group: Group) -> None:
    """Raise ValueError, naming the parameter, if head or split options do not fit the group."""
    heads, axis, size, sizes = (group.get(key) for key in LAYOUT_OPTIONS)
    if heads is not None and size is not None:
        raise ValueError(f"num_heads={heads!r} with head_size={size!r}: give one of them")
    per_head = heads is not None or size is not None
    needs_axis = per_head != (axis is not None) and (per_head or sizes is None)
    if needs_axis or axis not in (None, 0, 1):
        raise ValueError(
            f"num_heads={heads!r}, head_size={size!r} with head_axis={axis!r}: heads need both a "
            "number (or size) and an axis; head_axis is 0 where heads are blocks of rows (query, "
            "key, value), 1 where of columns (output)"
        )
    for name, parameter in zip(parameter_names(group), group["params"], strict=True):
        try:
            layout_of(group, parameter.shape)
        except ValueError as error:
            raise ValueError(f"{name} has shape {tuple(parameter.shape)}: {error}") from None


def _refuse_heads(shape: torch.Size, heads: Any, size: Any, sizes: Any) -> None:
    if heads is None and size is None and sizes is None:
        return
    raise ValueError(
        f"heads and splits need 2-D parameters; num_heads {heads!r}, head_size {size!r} and "
        f"split_sizes {sizes!r} do not divide {len(shape)} dimensions"
    )


def _counts(lengths: Sequence[int], heads: Any, size: Any, axis: int) -> list[int]:
    """Heads in each of the lengths."""
    if size is not None:
        if int(size) < 1 or any(length % int(size) for length in lengths):
            raise ValueError(f"head_size {size!r} does not divide {tuple(lengths)} on axis {axis}")
        return [length // int(size) for length in lengths]
    if heads is None:
        return [1] * len(lengths)
    counts = [int(heads)] if isinstance(heads, int) else [int(count) for count in heads]
    if len(counts) != len(lengths):
        raise ValueError(
            f"num_heads {heads!r} for {len(lengths)} blocks: give one number for each of "
            "split_sizes, or head_size"
        )
    for length, count in zip(lengths, counts, strict=True):
        if count < 1 or length % count:
            raise ValueError(
                f"{count} heads on axis {axis} do not divide {length}: shape[head_axis] (or each "
                "of split_sizes) must be a multiple of num_heads. With grouped queries, key and "
                "value have their own, smaller num_heads; head_size fits all three"
            )
    return counts


def split_matrices(X: Tensor, num_heads: int | None, head_axis: int | None) -> Tensor:
    """A parameter-shaped tensor as a stack of the matrices that are mapped, (count, m, n).

    Args:
        X: (m, n); (count, m, n); or a convolution (out, in, ...), taken as (out, in * ...).
        num_heads: None for the whole matrix, else the number of attention heads.
        head_axis: 0 if heads are blocks of rows (query, key, value), 1 if of columns (output).
    """
    if X.ndim != 2 or num_heads is None:
        return Layout(0, (Block(X.shape[0], 1),)).cut(X)[0]
    axis = head_axis or 0
    return Layout(axis, (Block(X.shape[axis], num_heads),)).cut(X)[0]


def merge_matrices(
    stack: Tensor, shape: torch.Size, num_heads: int | None, head_axis: int | None
) -> Tensor:
    """The inverse of `split_matrices`: from (count, m, n) back to a parameter's shape."""
    if len(shape) == 2 and num_heads is not None and head_axis == 1:
        stack = stack.permute(1, 0, 2)
    return stack.reshape(shape)
