"""How much of a policy gradient is signal."""

from collections.abc import Sequence

import torch
from torch import Tensor


class GradientNoise:
    """Signal-to-noise ratio of a gradient, from independent samples of it.

    SNR(G) = |E G|^2 / E |G - E G|^2 (arXiv 2605.19282). The squared norm of a mean of k samples
    overestimates the signal by 1/k of the noise, which is taken off here: pure noise gives 0, not
    1. A published value near 1 may therefore be no signal at all, if it was not taken off.
    """

    def __init__(self) -> None:
        self._sum: list[Tensor] = []
        self._squares = 0.0
        self._count = 0

    def add(self, gradients: Sequence[Tensor | None]) -> None:
        """Add one sample: the gradients of the same parameters each time; None counts as zero."""
        self._count += 1
        self._squares += sum(float(g.double().square().sum()) for g in gradients if g is not None)
        if not self._sum:
            self._sum = [torch.zeros((), dtype=torch.float64) for _ in gradients]
        self._sum = [
            total if g is None else total.to(g.device) + g.detach().float()
            for total, g in zip(self._sum, gradients, strict=True)
        ]

    def ratio(self, samples: float = 1.0) -> float | None:
        """The ratio for a gradient that is the mean of so many samples.

        None with fewer than two samples, and where all are equal (no noise to compare with).
        """
        if self._count < 2:
            return None
        mean = sum(float(t.double().square().sum()) for t in self._sum) / self._count**2
        noise = (self._squares / self._count - mean) * self._count / (self._count - 1)
        if noise <= 1e-12 * self._squares / self._count:
            return None
        return max(0.0, mean - noise / self._count) / noise * samples
