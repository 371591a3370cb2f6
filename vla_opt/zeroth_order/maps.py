"""What is done to the singular values of a matrix-shaped estimate."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vla_opt.spectral import NEWTON_SCHULZ, high_pass, scalar_map, spectral_map

_PASSED = 0.9  # of the leading singular value
_MOST_PROMOTION = 12  # cuts off at about 1e-5 of the norm: any matrix passes


class Map(Protocol):
    """A function of a matrix."""

    def __call__(self, matrix: Tensor) -> Tensor:
        """Map (m, n) to the same shape and dtype."""


@dataclass(frozen=True, kw_only=True)
class NewtonSchulz:
    """All singular values towards one: Muon's map, as in ZO-Muon."""

    def __call__(self, matrix: Tensor) -> Tensor:
        """Map (m, n) to the same shape."""
        return spectral_map(matrix, NEWTON_SCHULZ)


@dataclass(frozen=True, kw_only=True)
class HighPass:
    """The leading singular values to one, the others to zero (high-pass Pion, arXiv 2605.19282).

    An estimate from few queries is mostly noise, spread over all directions; Newton-Schulz lifts
    this noise to the level of the signal, the high-pass removes it.

    Attributes:
        promotion_steps: lets directions pass, see `vla_opt.spectral.high_pass`. None: for each
            matrix the fewest steps with which its leading direction passes. A fixed number that is
            too small passes nothing, since the share of that direction in a noisy estimate is small
            and falls with the size of the matrix.
        suppression_steps: see there.
    """

    promotion_steps: int | None = None
    suppression_steps: int = 4

    def __post_init__(self) -> None:
        """Check the values."""
        high_pass(self.promotion_steps or 0, self.suppression_steps)

    def __call__(self, matrix: Tensor) -> Tensor:
        """Map (m, n) to the same shape."""
        steps = self.promotion_steps
        if steps is None:
            steps = promotion_that_passes(matrix, self.suppression_steps)
        return spectral_map(matrix, high_pass(steps, self.suppression_steps))


def promotion_that_passes(matrix: Tensor, suppression_steps: int = 4) -> int:
    """Return the fewest promotion steps with which the leading direction of (m, n) passes.

    >>> promotion_that_passes(torch.diag(torch.tensor([1.0, 0.1])))
    0
    """
    wide = matrix.float()
    norm = torch.linalg.vector_norm(wide)
    share = torch.linalg.matrix_norm(wide, ord=2) / norm if norm > 0 else torch.ones(())
    for steps in range(_MOST_PROMOTION):
        if scalar_map(share.cpu(), high_pass(steps, suppression_steps)) >= _PASSED:
            return steps
    return _MOST_PROMOTION
