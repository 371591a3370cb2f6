"""Subtracting small steps from weights of low precision without losing them."""

import torch
from torch import Tensor


def subtract_(weight: Tensor, step: Tensor, generator: torch.Generator) -> None:
    """weight -= step in place; float16 and bfloat16 weights are rounded up or down at random.

    With rounding to nearest, a step below half the spacing of the numbers around the weight would
    be lost every time; so rounded, the weight moves by the step on average, and no copy in higher
    precision is needed.

    Args:
        weight: any floating dtype.
        step: same shape, float32 or wider.
        generator: on the CPU; used only for low precision.
    """
    if weight.itemsize >= 4:
        weight.sub_(step)
        return
    exact = weight.to(step.dtype) - step
    dice = torch.rand(exact.shape, generator=generator, dtype=torch.float32).to(exact.device)
    weight.copy_(stochastic_round(exact, weight.dtype, dice))


def stochastic_round(exact: Tensor, dtype: torch.dtype, dice: Tensor) -> Tensor:
    """Round to one of the two neighbours in `dtype`, with the exact value as expectation.

    Args:
        exact: float32 or wider, finite.
        dtype: float16 or bfloat16.
        dice: uniform in [0, 1), same shape.
    """
    nearest = exact.to(dtype)
    error = exact - nearest.to(exact.dtype)
    other = _neighbour(nearest, error)
    gap = other.to(exact.dtype) - nearest.to(exact.dtype)
    crosses = dice * gap.abs() < error.abs()
    return torch.where(crosses & other.isfinite(), other, nearest)


def _neighbour(value: Tensor, towards: Tensor) -> Tensor:
    """The next number of the same dtype in the direction of the sign of `towards`."""
    away = (towards > 0) == (value > 0)  # from zero
    bits = value.contiguous().view(torch.int16)
    stepped = (bits + torch.where(away, 1, -1).to(torch.int16)).view(value.dtype)
    smallest = torch.ones_like(bits).view(value.dtype)  # the bit pattern 1: the least subnormal
    return torch.where(value == 0, torch.where(towards > 0, smallest, -smallest), stepped)
