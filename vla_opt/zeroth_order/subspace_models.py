"""Estimators that model the loss in the space of a step's directions: curvature, or belief."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from vla_opt.zeroth_order.records import Estimate, Memory, Query, Reading


@dataclass(frozen=True, kw_only=True)
class SubspaceNewton:
    """The Newton step within the span of s random directions U (Berglund et al., ICASSP 2022).

    Gradient g = U^T grad f and Hessian H = U^T (Hess f) U come from 1 + 2 s + s (s - 1) / 2
    queries; the estimate is U (|H| + damping max|eig H| I)^-1 g. Taking absolute eigenvalues, which
    the paper's convex problems do not need, makes it a descent direction on others. Its natural
    learning rate is one; second differences need a larger epsilon than first ones.

    Attributes:
        directions: s.
        damping: relative to the largest curvature found.
    """

    directions: int = 3
    damping: float = 0.1

    def __post_init__(self) -> None:
        """Check the values."""
        if self.directions < 1 or self.damping <= 0:
            raise ValueError(
                f"directions must be at least 1 and damping positive, got {self.directions} and "
                f"{self.damping}"
            )

    def queries(self, seeds: Sequence[int]) -> list[Query]:
        """The centre, both sides of each direction, the sum of each pair of directions."""
        sides = [Query(terms=((seed, side),)) for seed in seeds for side in (1.0, -1.0)]
        pairs = [Query(terms=((a, 1.0), (b, 1.0))) for a, b in combinations(seeds, 2)]
        return [Query(), *sides, *pairs]

    def conclude(
        self,
        seeds: Sequence[int],
        readings: Sequence[Reading],
        *,
        epsilon: float,
        scale: float,
        memory: Memory,
    ) -> Estimate:
        """Solve for the step; `scale` does not apply, a Newton step has its own length."""
        losses = torch.tensor([reading.loss for reading in readings], dtype=torch.float64)
        gradient, hessian = quadratic_model(losses, len(seeds), epsilon)
        solution = self._solve(gradient, hessian)
        return Estimate(
            loss=float(losses[0]),
            coefficients=tuple(zip(seeds, solution.tolist(), strict=True)),
        )

    def _solve(self, gradient: Tensor, hessian: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(hessian)
        strength = values.abs()
        largest = strength.max().clamp(min=torch.finfo(torch.float64).tiny)
        along = (vectors.mT @ gradient) / (strength + self.damping * largest)
        solution: Tensor = vectors @ along
        return solution


def quadratic_model(losses: Tensor, count: int, epsilon: float) -> tuple[Tensor, Tensor]:
    """Gradient (s,) and Hessian (s, s) from the losses of `SubspaceNewton.queries`.

    Args:
        losses: (1 + 2 s + s (s - 1) / 2,) float64.
        count: s.
        epsilon: length of a move.
    """
    centre, plus, minus = losses[0], losses[1 : 2 * count + 1 : 2], losses[2 : 2 * count + 1 : 2]
    hessian = torch.diag((plus + minus - 2 * centre) / epsilon**2)
    pairs = combinations(range(count), 2)
    for (i, j), both in zip(pairs, losses[2 * count + 1 :], strict=True):
        hessian[i, j] = hessian[j, i] = (both - plus[i] - plus[j] + centre) / epsilon**2
    return (plus - minus) / (2 * epsilon), hessian


@dataclass(frozen=True, kw_only=True)
class BayesianSubspace:
    """Posterior mean of the directional derivatives: BSZO (arXiv 2601.01452).

    Derivatives along the directions have the prior N(0, prior_variance); a forward difference is
    one of them plus noise, whose variance follows the squared surprises. Along independent
    directions the Kalman filter comes to a factor on each difference that is small while the
    differences look like noise. The paper's further queries along known directions are left out:
    with a pure loss they repeat what is known. The sum over directions is divided by their number,
    as for the other estimators.

    Attributes:
        directions: k, one query each and one for the centre.
        prior_variance: of a derivative.
        noise_variance: at the first step.
        adaptation: weight of a new squared surprise in the noise variance.
    """

    directions: int = 4
    prior_variance: float = 1.0
    noise_variance: float = 1.0
    adaptation: float = 0.1

    def __post_init__(self) -> None:
        """Check the values."""
        if self.directions < 1 or min(self.prior_variance, self.noise_variance) <= 0:
            raise ValueError(
                "directions must be at least 1 and variances positive, got "
                f"{self.directions}, {self.prior_variance} and {self.noise_variance}"
            )
        if not 0 <= self.adaptation <= 1:
            raise ValueError(f"adaptation must be in [0, 1], got {self.adaptation}")

    def queries(self, seeds: Sequence[int]) -> list[Query]:
        """The centre, then one side of each direction."""
        return [Query(), *(Query(terms=((seed, 1.0),)) for seed in seeds)]

    def conclude(
        self,
        seeds: Sequence[int],
        readings: Sequence[Reading],
        *,
        epsilon: float,
        scale: float,
        memory: Memory,
    ) -> Estimate:
        """Filter the differences in their order."""
        centre, *sides = (reading.loss for reading in readings)
        noise = float(memory.get("noise_variance", self.noise_variance))
        means = []
        for side in sides:
            surprise = (side - centre) / epsilon  # the prior mean is zero
            noise = (1 - self.adaptation) * noise + self.adaptation * surprise**2
            means.append(self.prior_variance / (self.prior_variance + noise) * surprise)
        return Estimate(
            loss=centre,
            coefficients=tuple(
                (seed, scale * mean) for seed, mean in zip(seeds, means, strict=True)
            ),
            memory={"noise_variance": noise},
        )
