"""Adding a displacement to a weight in place, and taking it away again to the last bit.

fl(fl(w + d) - d) is not always w: where the sum has a larger exponent than w, low bits are gone.
What differs is kept as a residue, a few percent of the weight's memory while the displacement is
small beside the weight: a 16-bit position and an 8-bit difference, counted in units in the last
place, for each entry concerned.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

_INTEGERS = {8: torch.int64, 4: torch.int32, 2: torch.int16}


@dataclass(frozen=True, kw_only=True)
class Residue:
    """What `restore_` needs beside the displacement.

    Attributes:
        near_at: positions of small differences, near: these, in units in the last place.
        far_at: positions of large differences, far: these.
        copy: the weight itself, where that is smaller than the lists; the others are then empty.
    """

    near_at: Tensor
    near: Tensor
    far_at: Tensor
    far: Tensor
    copy: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Memory held."""
        lists = (self.near_at, self.near, self.far_at, self.far)
        return sum(t.nbytes for t in lists) + (0 if self.copy is None else self.copy.nbytes)


def displace_(weight: Tensor, delta: Tensor) -> Residue:
    """Add `delta` to `weight` in place.

    Args:
        weight: any floating dtype and strides.
        delta: same shape, float32 or wider.

    Returns:
        What `restore_` needs to undo it.
    """
    before = weight.clone(memory_format=torch.contiguous_format)
    weight.copy_(_rounded_sum(before, delta, 1))
    off = _bits(before) - _bits(_rounded_sum(weight, delta, -1))
    return _pack(before, off)


def restore_(weight: Tensor, delta: Tensor, residue: Residue) -> None:
    """Undo `displace_(weight, delta)` exactly."""
    if residue.copy is not None:
        weight.copy_(residue.copy)
        return
    back = _rounded_sum(weight, delta, -1)
    bits = _bits(back)
    for at, off in ((residue.near_at, residue.near), (residue.far_at, residue.far)):
        if len(at):
            bits[_index(at)] += off.to(bits.dtype)
    weight.copy_(back)


def _pack(before: Tensor, off: Tensor) -> Residue:
    at = off.nonzero().squeeze(1)
    values, none, small = off[at], off[:0], off.numel() <= 1 << 16
    near = values == values.to(torch.int8)
    residue = Residue(
        near_at=_narrow(at[near], small),
        near=values[near].to(torch.int8),
        far_at=_narrow(at[~near], small),
        far=values[~near],
    )
    if residue.nbytes < before.nbytes:
        return residue
    return Residue(near_at=none, near=none, far_at=none, far=none, copy=before)


def _narrow(at: Tensor, small: bool) -> Tensor:
    """Positions in 16 bits where these suffice."""
    return (at - (1 << 15)).to(torch.int16) if small else at


def _index(at: Tensor) -> Tensor:
    return at.long() + (1 << 15) if at.dtype == torch.int16 else at


def _rounded_sum(weight: Tensor, delta: Tensor, sign: int) -> Tensor:
    """weight + sign * delta, rounded to the weight's dtype; new and contiguous."""
    if weight.dtype == delta.dtype:
        return torch.add(weight, delta, alpha=sign).contiguous()
    return torch.add(weight.to(delta.dtype), delta, alpha=sign).to(weight.dtype).contiguous()


def _bits(tensor: Tensor) -> Tensor:
    """A contiguous tensor's memory as integers, flat."""
    return tensor.view(_INTEGERS[tensor.itemsize]).view(-1)
