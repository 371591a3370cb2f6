"""Momentum, a map of matrices and a step, for the matrices in a group of parameters."""

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from vla_opt.optim._base import Group, Slot, parameter_names
from vla_opt.optim._batches import Batch, advance, batches
from vla_opt.optim._layout import (
    LAYOUT_DEFAULTS,
    check_layout,
    layout_of,
    merge_matrices,
    split_matrices,
)
from vla_opt.spectral import (
    Coefficients,
    add_spectral_map_,
    measured_spectral_map,
    spectral_map,
)

__all__ = [
    "MAP_DEFAULTS",
    "MATRIX_DEFAULTS",
    "Direction",
    "check_coefficients",
    "check_map_options",
    "check_matrix_group",
    "directions",
    "mapped",
    "matrices_of",
    "merge_matrices",
    "split_matrices",
    "update_by_map",
    "update_matrices",
]

# What a rule makes of the stack of momenta: directions, in the same places of the same stack shape.
type Direction = Callable[[Batch, Tensor], Tensor]

MATRIX_DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        "momentum": 0.95,
        "nesterov": True,
        "weight_decay": 0.01,
        "update_scale": 0.2,
        **LAYOUT_DEFAULTS,
    }
)

MAP_DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {"eps": 1e-7, "precision": "auto", "normalize": "frobenius"}
)


def check_matrix_group(group: Group) -> None:
    """Raise ValueError for options or shapes that a matrix rule cannot work with."""
    if not 0.0 <= group["momentum"] < 1.0:
        raise ValueError(f"momentum must lie in [0, 1), got {group['momentum']!r}")
    if "eps" in group and not group["eps"] > 0.0:
        raise ValueError(f"eps must be above 0, got {group['eps']!r}")
    if not 0.0 <= group["update_scale"] < math.inf:
        raise ValueError(f"update_scale must be finite and >= 0, got {group['update_scale']!r}")
    for name, parameter in zip(parameter_names(group), group["params"], strict=True):
        if parameter.ndim < 2:
            raise ValueError(
                f"{name} has shape {tuple(parameter.shape)}: this optimizer updates matrices (2 or "
                "more dimensions). Give biases and norms to AdamW, for example through "
                "build_optimizer."
            )
    check_layout(group)


def check_map_options(group: Group) -> None:
    """Raise ValueError for options of the spectral map that do not exist."""
    nothing = torch.empty(0, 1, 1)
    options = {key: group[key] for key in MAP_DEFAULTS}
    spectral_map(nothing, ((1.0, 0.0, 0.0),), **options)


def check_coefficients(coefficients: Any) -> None:
    """Raise ValueError unless these are (a, b, c) triples, at least one."""
    if not coefficients or any(len(step) != 3 for step in coefficients):
        raise ValueError(
            f"coefficients must be a non-empty sequence of (a, b, c), got {coefficients!r}"
        )


def matrices_of(group: Mapping[str, Any], X: Tensor) -> list[Tensor]:
    """What the map sees of a parameter-shaped tensor: stacks (count, m, n), one per block."""
    return layout_of(group, X.shape).cut(X)


def directions(group: Group, coefficients: Coefficients) -> Direction:
    """The spectral map with a group's options; figures go to the slots that ask for them."""
    options = {key: group[key] for key in MAP_DEFAULTS}
    return lambda batch, stack: mapped(batch, stack, coefficients, options)


def mapped(
    batch: Batch, stack: Tensor, coefficients: Coefficients, options: Mapping[str, Any]
) -> Tensor:
    """The map of a batch' stack; its figures cost no product, and are left out if unwanted."""
    if not batch.measured:
        return spectral_map(stack, coefficients, **options)
    result, figures = measured_spectral_map(stack, coefficients, **options)
    batch.note(figures)
    return result


def update_matrices(
    group: Group, slots: Sequence[Slot], direction: Direction, *, pad: bool = False
) -> None:
    """One step in place: momentum, direction D, decoupled weight decay, and

    W <- W - lr * update_scale * sqrt(max(m, n)) * D.

    Args:
        group: the options.
        slots: the parameters to update.
        direction: what makes D of the momentum.
        pad: whether zeros around a matrix leave its direction as it is.
    """

    def move(batch: Batch, stack: Tensor, weights: list[Tensor]) -> None:
        D = direction(batch, stack)
        if _kept(group) != 1.0:
            torch._foreach_mul_(weights, _kept(group))
        for W, part, scale in zip(weights, batch.windows(D), _scales(group, batch), strict=True):
            W.add_(part, alpha=scale)

    _each_batch(group, slots, move, pad=pad)


def update_by_map(group: Group, slots: Sequence[Slot], coefficients: Coefficients) -> None:
    """`update_matrices` along the spectral map, whose last product goes straight into weights."""
    options = {key: group[key] for key in MAP_DEFAULTS}

    def move(batch: Batch, stack: Tensor, weights: list[Tensor]) -> None:
        parts = [
            W.mT if piece.transposed else W for piece, W in zip(batch.pieces, weights, strict=True)
        ]
        figures = add_spectral_map_(
            parts,
            stack,
            coefficients,
            scales=_scales(group, batch),
            keep=_kept(group),
            measure=batch.measured,
            **options,
        )
        if figures is not None:
            batch.note(figures)

    _each_batch(group, slots, move, pad=True)


def _each_batch(
    group: Group,
    slots: Sequence[Slot],
    move: Callable[[Batch, Tensor, list[Tensor]], None],
    *,
    pad: bool,
) -> None:
    """Let `move` change the weights of each batch, given the stack of its momenta."""
    laid_out = {id(slot): slot.weight.contiguous() for slot in slots}  # the weight itself, mostly
    memory = None  # one for all stacks: asking the system for new memory costs more than a map
    for batch in batches(group, slots, pad=pad):
        stack = batch.stack_in(memory)
        if memory is None or stack.numel() > memory.numel():
            memory = stack.view(-1)
        advance(batch, stack, momentum=float(group["momentum"]), nesterov=group["nesterov"])
        move(batch, stack, [piece.of(laid_out[id(piece.slot)]) for piece in batch.pieces])
    for slot in slots:
        if laid_out[id(slot)] is not slot.weight:
            slot.weight.copy_(laid_out[id(slot)])
    torch._foreach_add_([slot.step() for slot in slots], 1.0)


def _kept(group: Group) -> float:
    return 1.0 - float(group["lr"]) * float(group["weight_decay"])


def _scales(group: Group, batch: Batch) -> list[float]:
    scale = -float(group["lr"]) * float(group["update_scale"])
    return [scale * math.sqrt(max(piece.shape)) for piece in batch.pieces]
