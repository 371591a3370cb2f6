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
_NEAR = 127  # differences that fit into 8 bits


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
        held = [self.near_at, self.near, self.far_at, self.far]
        return sum(t.nbytes for t in held if t is not None) + (
            0 if self.copy is None else self.copy.nbytes
        )


def displace_(weight: Tensor, delta: Tensor) -> Residue:
    """Add `delta` to `weight` in place.

    Args:
        weight: any floating dtype and strides.
        delta: same shape, float32 or wider.

    Returns:
        What `restore_` needs to undo it.
    """
    before = weight.clone(memory_format=torch.contiguous_format)
    weight.copy_(_rounded_sum(before, delta))
    off = _bits(before) - _bits(_rounded_sum(weight, -delta))
    return _pack(before, off)


def restore_(weight: Tensor, delta: Tensor, residue: Residue) -> None:
    """Undo `displace_(weight, delta)` exactly."""
    if residue.copy is not None:
        weight.copy_(residue.copy)
        return
    back = _rounded_sum(weight, -delta)
    bits = _bits(back)
    bits[_index(residue.near_at)] += residue.near.to(bits.dtype)
    bits[_index(residue.far_at)] += residue.far
    weight.copy_(back)


def _pack(before: Tensor, off: Tensor) -> Residue:
    near_mask = off.ne(0) & off.ge(-_NEAR) & off.le(_NEAR)
    far_mask = off.lt(-_NEAR) | off.gt(_NEAR)
    near_at, far_at = (_positions(mask) for mask in (near_mask, far_mask))
    residue = Residue(
        near_at=near_at,
        near=off[near_mask].to(torch.int8),
        far_at=far_at,
        far=off[far_mask],
    )
    if residue.nbytes < before.nbytes:
        return residue
    none = off[:0]
    return Residue(near_at=none, near=none, far_at=none, far=none, copy=before)


def _positions(mask: Tensor) -> Tensor:
    """Indices of the true entries; 16 bits where these suffice."""
    at = mask.nonzero().squeeze(1)
    return (at - (1 << 15)).to(torch.int16) if mask.numel() <= 1 << 16 else at


def _index(at: Tensor) -> Tensor:
    return at.long() + (1 << 15) if at.dtype == torch.int16 else at


def _rounded_sum(weight: Tensor, delta: Tensor) -> Tensor:
    """A new contiguous tensor."""
    return (weight.to(delta.dtype) + delta).to(weight.dtype).contiguous()


def _bits(tensor: Tensor) -> Tensor:
    """A contiguous tensor's memory as integers, flat."""
    return tensor.view(_INTEGERS[tensor.itemsize]).view(-1)
