"""Shortening an update that went too far."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

_TRIES = 10


@torch.no_grad()
def shorten(
    parameters: Sequence[Tensor],
    before: Sequence[Tensor],
    distance: Callable[[], float],
    limit: float,
) -> float:
    """Move parameters back towards where they were until a distance is within its limit.

    Near its start a divergence grows with the square of the step, so each try is that much
    shorter; TRPO (arXiv 1502.05477, appendix C) halves instead.

    Args:
        parameters: changed in place.
        before: where they were.
        distance: of the present parameters; 0 at `before`.
        limit: positive.

    Returns:
        The share of the update that was kept, 0 if no try was short enough.
    """
    after = [p.detach().clone() for p in parameters]
    kept = 1.0
    for _ in range(_TRIES):
        found = distance()
        if found <= limit:
            return kept
        kept *= min(0.9, max(0.1, 0.95 * math.sqrt(limit / found)))
        _place(parameters, before, after, kept)
    _place(parameters, before, after, 0.0)
    return 0.0


def _place(
    parameters: Sequence[Tensor], before: Sequence[Tensor], after: Sequence[Tensor], kept: float
) -> None:
    for p, b, a in zip(parameters, before, after, strict=True):
        p.copy_(torch.lerp(b, a, kept))
