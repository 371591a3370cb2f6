"""Momentum, spectral map and step for the matrices in a group of parameters.

Matrices of one shape (up to transposition) go through the map as one batch: on small policies the
number of calls costs more than the arithmetic.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from vla_opt.optim._base import Group, Slot, parameter_names
from vla_opt.spectral import Coefficients, spectral_map

# 64 MiB of float32: far above what pays for batching, far below what hurts beside a model.
_MAX_BATCH_ELEMENTS = 1 << 24

MATRIX_DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        "momentum": 0.95,
        "nesterov": True,
        "weight_decay": 0.01,
        "update_scale": 0.2,
        "num_heads": None,
        "head_axis": None,
        "eps": 1e-7,
        "precision": "auto",
    }
)


def split_matrices(X: Tensor, num_heads: int | None, head_axis: int | None) -> Tensor:
    """A parameter-shaped tensor as a stack of the matrices that are mapped, (count, m, n).

    Args:
        X: (m, n); (count, m, n); or a convolution (out, in, ...), taken as (out, in * ...).
        num_heads: None for the whole matrix, else the number of attention heads.
        head_axis: 0 if heads are blocks of rows (query, key, value), 1 if of columns (output).
    """
    if X.ndim > 3:
        return X.reshape(1, X.shape[0], -1)
    if X.ndim == 3:
        return X
    if num_heads is None:
        return X.unsqueeze(0)
    if head_axis == 0:
        return X.reshape(num_heads, -1, X.shape[1])
    return X.reshape(X.shape[0], num_heads, -1).permute(1, 0, 2)


def merge_matrices(
    stack: Tensor, shape: torch.Size, num_heads: int | None, head_axis: int | None
) -> Tensor:
    """The inverse of `split_matrices`: from (count, m, n) back to a parameter's shape."""
    if len(shape) == 2 and num_heads is not None and head_axis == 1:
        stack = stack.permute(1, 0, 2)
    return stack.reshape(shape)


def check_matrix_group(group: Group) -> None:
    """Raise ValueError for options or shapes that a matrix rule cannot work with."""
    if not 0.0 <= group["momentum"] < 1.0:
        raise ValueError(f"momentum must lie in [0, 1), got {group['momentum']!r}")
    if not group["eps"] > 0.0:
        raise ValueError(f"eps must be above 0, got {group['eps']!r}")
    if not 0.0 <= group["update_scale"] < math.inf:
        raise ValueError(f"update_scale must be finite and >= 0, got {group['update_scale']!r}")
    heads, axis = group["num_heads"], group["head_axis"]
    if (heads is None) != (axis is None) or axis not in (None, 0, 1):
        raise ValueError(
            f"num_heads={heads!r} with head_axis={axis!r}: give both or neither; head_axis is 0 "
            "where heads are blocks of rows (query, key, value), 1 where of columns (output)"
        )
    for name, parameter in zip(parameter_names(group), group["params"], strict=True):
        _check_shape(name, parameter.shape, heads, axis)


def _check_shape(name: str, shape: torch.Size, heads: int | None, axis: int | None) -> None:
    if len(shape) < 2:
        raise ValueError(
            f"{name} has shape {tuple(shape)}: Pion and Muon update matrices (2 or more "
            "dimensions). Give biases and norms to AdamW, for example through build_optimizer."
        )
    if heads is None or axis is None:
        return
    if len(shape) != 2 or heads < 1 or shape[axis] % heads:
        raise ValueError(
            f"{name} has shape {tuple(shape)}, which {heads} heads on axis {axis} do not divide: "
            "per-head groups need 2-D parameters with shape[head_axis] a multiple of num_heads. "
            "With grouped queries, key and value have their own, smaller num_heads."
        )


def update_matrices(group: Group, slots: Sequence[Slot], coefficients: Coefficients) -> None:
    """One step of momentum, spectral map, decoupled weight decay and update, in place."""
    for batch in _batches(group, slots):
        stack = _gather(group, batch)
        options = {"eps": group["eps"], "precision": group["precision"]}
        _apply(group, batch, spectral_map(stack, coefficients, **options))
    torch._foreach_add_([slot.step() for slot in slots], 1.0)


def _batches(group: Group, slots: Sequence[Slot]) -> Iterator[list[Slot]]:
    """Slots whose matrices have one shape (up to transposition), dtype and device."""
    buckets: dict[tuple[Any, ...], list[Slot]] = {}
    for slot in slots:
        m, n = _split(group, slot.weight).shape[1:]
        key = (min(m, n), max(m, n), slot.weight.dtype, slot.weight.device)
        buckets.setdefault(key, []).append(slot)
    for bucket in buckets.values():
        batch: list[Slot] = []
        for slot in bucket:
            if batch and sum(s.grad.numel() for s in [*batch, slot]) > _MAX_BATCH_ELEMENTS:
                yield batch
                batch = []
            batch.append(slot)
        yield batch


def _gather(group: Group, batch: Sequence[Slot]) -> Tensor:
    """Advance the momenta; what the map sees, as one wide stack (total count, m, n), m <= n."""
    views = [_wide(_split(group, slot.weight)) for slot in batch]
    total = sum(view.shape[0] for view in views)
    stack = views[0].new_empty(total, *views[0].shape[1:])
    mu = float(group["momentum"])
    for slot, out in zip(batch, torch.split(stack, [v.shape[0] for v in views]), strict=True):
        momentum = slot.buffer("momentum")
        gradient = slot.grad.to(momentum.dtype)
        momentum.lerp_(gradient, 1.0 - mu)
        seen = _wide(_split(group, momentum))
        if group["nesterov"]:  # (1 - mu) g + mu m
            torch.lerp(_wide(_split(group, gradient)), seen, mu, out=out)
        else:
            out.copy_(seen)
    return stack


def _apply(group: Group, batch: Sequence[Slot], mapped: Tensor) -> None:
    lr, decay = float(group["lr"]), float(group["weight_decay"])
    alpha = -lr * float(group["update_scale"]) * math.sqrt(mapped.shape[2])  # max(m, n)
    counts = [_split(group, slot.weight).shape[0] for slot in batch]
    for slot, update in zip(batch, torch.split(mapped, counts), strict=True):
        m, n = _split(group, slot.weight).shape[1:]
        merged = _merge(group, update.mT if m > n else update, slot.weight.shape)
        if decay:
            slot.weight.mul_(1.0 - lr * decay)
        slot.weight.add_(merged, alpha=alpha)


def _split(group: Group, X: Tensor) -> Tensor:
    return split_matrices(X, group["num_heads"], group["head_axis"])


def _merge(group: Group, stack: Tensor, shape: torch.Size) -> Tensor:
    return merge_matrices(stack, shape, group["num_heads"], group["head_axis"])


def _wide(stack: Tensor) -> Tensor:
    return stack.mT if stack.shape[1] > stack.shape[2] else stack
