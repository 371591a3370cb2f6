"""Lists of steps: what they cost in either form, and where the Gram form starts again."""

from collections.abc import Sequence
from functools import cache

import torch

from vla_opt.spectral._products import symmetric_share

type Steps = tuple[tuple[float, float, float], ...]

# Tensor cores multiply bfloat16 about 16 times faster than float32 (A100, H100 data sheets).
_FLOAT32_PRICE = 16


def as_steps(coefficients: Sequence[Sequence[float]]) -> Steps:
    """The same, hashable."""
    return tuple((float(a), float(b), float(c)) for a, b, c in coefficients)


def cheaper_form(m: int, n: int, steps: Steps, compute: torch.dtype, device: torch.device) -> str:
    """Whichever of "direct" and "gram" takes less time for (m, n), m <= n, by multiplications.

    For five quintics without a restart the two are equal at n = 1.5 m, where symmetric products
    cost as much as others; a little below where they do not.
    """
    gram = gram_cost(m, n, steps, compute, device)
    return "gram" if gram < direct_cost(m, n, steps, device) else "direct"


def direct_cost(m: int, n: int, steps: Steps, device: torch.device) -> float:
    """Multiplications of the direct form, symmetry taken into account."""
    half, long = symmetric_share(m, m, device), symmetric_share(m, n, device)
    squares = sum(step[2] != 0.0 for step in steps)
    return len(steps) * (long + 1) * m * m * n + squares * half * m**3


def gram_cost(m: int, n: int, steps: Steps, compute: torch.dtype, device: torch.device) -> float:
    """Multiplications of the Gram form, restarts included; float32 ones at their price."""
    half, long = symmetric_share(m, m, device), symmetric_share(m, n, device)
    price, exact = 1.0, compute
    if compute == torch.bfloat16:
        price, exact = _FLOAT32_PRICE, torch.float32
    cost = 0.0
    for segment in segments(steps, torch.finfo(exact).eps):
        squares = sum(step[2] != 0.0 for step in segment)
        cost += (long + 1) * m * m * n + price * half * (squares + 3 * (len(segment) - 1)) * m**3
    return cost


@cache
def segments(steps: Steps, eps: float) -> tuple[Steps, ...]:
    """Cut the steps where the Gram form must start again from X.

    Rounding gives R eigenvalues of about -eps. Muon's steps multiply those by a^2 each time (12 to
    70), Pion's contract them. A new segment begins before they would reach 1 %.
    """
    parts: list[list[tuple[float, float, float]]] = [[]]
    noise = 4 * eps
    for a, b, c in steps:
        if noise > 1e-2 and parts[-1]:
            parts.append([])
            noise = 4 * eps
        parts[-1].append((a, b, c))
        noise *= (a + b * -noise + c * noise * noise) ** 2
    return tuple(tuple(part) for part in parts if part)
