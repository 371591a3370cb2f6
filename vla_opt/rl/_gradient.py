"""Gradients of sums over decisions, piece by piece."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vla_opt.rl.actors import Actor
from vla_opt.rl.batch import Rows, in_slices
from vla_opt.rl.diagnostics import squared_norm

Gradient = list[Tensor | None]


def accumulate(
    actor: Actor,
    parameters: Sequence[Tensor],
    rows: Rows,
    coefficients: Tensor,
    *,
    parts: int,
    max_rows: int,
) -> list[float]:
    """Add the gradient of sum(coefficients log_prob) to the parameters.

    Args:
        actor: gives log-probabilities.
        parameters: that get the gradient.
        rows: decisions.
        coefficients: (R, U); rows of zeros cost nothing.
        parts: of whole episodes that the rows are divided into.
        max_rows: decisions per forward pass.

    Returns:
        The squared norm of each part's gradient.
    """
    squares = []
    for part in torch.arange(rows.episodes).tensor_split(min(parts, rows.episodes)):
        mine = torch.isin(rows.episode, part.to(rows.episode.device))
        moves = (mine & (coefficients != 0).any(1)).nonzero().flatten()
        gradient = _gradient(actor, parameters, rows, coefficients, moves, max_rows)
        squares.append(float(squared_norm(gradient)))
        add(parameters, gradient)
    return squares


def add(parameters: Sequence[Tensor], gradient: Sequence[Tensor | None]) -> None:
    """Add a gradient to what the parameters have."""
    for parameter, g in zip(parameters, gradient, strict=True):
        if g is not None:
            parameter.grad = g if parameter.grad is None else parameter.grad + g


def _gradient(
    actor: Actor,
    parameters: Sequence[Tensor],
    rows: Rows,
    coefficients: Tensor,
    index: Tensor,
    max_rows: int,
) -> Gradient:
    total: Gradient = [None] * len(parameters)
    for piece in in_slices(index, max_rows):
        batch, latents = rows.pick(piece)
        surrogate = (actor.log_prob(batch, latents) * coefficients[piece]).sum()
        found = torch.autograd.grad(surrogate, parameters, allow_unused=True)
        total = [_sum(t, g) for t, g in zip(total, found, strict=True)]
    return total


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return b if a is None else a
    return a + b
