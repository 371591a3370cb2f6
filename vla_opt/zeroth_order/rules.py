"""Inner rules: what is made of the gradient estimate before it is mapped and applied.

A rule works entry by entry on buffers that it names, so a tensor may be updated in pieces.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Rule(Protocol):
    """How estimates of several steps are combined."""

    @property
    def buffers(self) -> tuple[str, ...]:
        """Names of the buffers, each of the shape of the estimate; "square" for second moments."""

    def update(self, grad: Tensor, buffers: Mapping[str, Tensor], visits: int) -> Tensor:
        """Return what replaces the estimate; buffers change in place.

        Args:
            grad: the estimate, or a piece of it.
            buffers: the same piece of each buffer, zeros at first.
            visits: how often these entries have been updated, this time included.
        """


def _in_unit_interval(name: str, value: float) -> None:
    if not 0.0 <= value < 1.0:
        raise ValueError(f"{name} must be in [0, 1), got {value!r}")


@dataclass(frozen=True, kw_only=True)
class Sgd:
    """The estimate as it is."""

    @property
    def buffers(self) -> tuple[str, ...]:
        """None."""
        return ()

    def update(self, grad: Tensor, buffers: Mapping[str, Tensor], visits: int) -> Tensor:
        """Return `grad`."""
        return grad


@dataclass(frozen=True, kw_only=True)
class Momentum:
    """The mean of the estimates, m <- beta m + (1 - beta) g.

    Attributes:
        beta: weight of the past.
        nesterov: look ahead, beta m + (1 - beta) g, as Muon does.
    """

    beta: float = 0.9
    nesterov: bool = False

    def __post_init__(self) -> None:
        """Check the value."""
        _in_unit_interval("beta", self.beta)

    @property
    def buffers(self) -> tuple[str, ...]:
        """The mean."""
        return ("momentum",)

    def update(self, grad: Tensor, buffers: Mapping[str, Tensor], visits: int) -> Tensor:
        """Return the mean, not corrected for its start at zero."""
        mean = buffers["momentum"].lerp_(grad, 1 - self.beta)
        return grad.lerp(mean, self.beta) if self.nesterov else mean


@dataclass(frozen=True, kw_only=True)
class Adam:
    """Adam (arXiv 1412.6980), or the variant of ZoAR's authors.

    Attributes:
        betas: weights of the past in the two means.
        eps: added to the root.
        of_momentum: square the first mean rather than the estimate, without bias corrections:
            their R-AdaZO, whose second moment does not grow with the variance of the estimate.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    of_momentum: bool = False

    def __post_init__(self) -> None:
        """Check the values."""
        for beta in self.betas:
            _in_unit_interval("betas", beta)

    @property
    def buffers(self) -> tuple[str, ...]:
        """Mean and mean square."""
        return ("momentum", "square")

    def update(self, grad: Tensor, buffers: Mapping[str, Tensor], visits: int) -> Tensor:
        """Return the mean over the root of the mean square."""
        first, second = self.betas
        mean = buffers["momentum"].lerp_(grad, 1 - first)
        squared = mean if self.of_momentum else grad
        square = buffers["square"].mul_(second).addcmul_(squared, squared, value=1 - second)
        if self.of_momentum:
            return mean / (square.sqrt() + self.eps)
        root = torch.sqrt(square / (1 - second**visits))
        return mean / (1 - first**visits) / (root + self.eps)
