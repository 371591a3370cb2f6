"""Estimators: which queries a step makes, and what they say about the gradient.

Pure: a class holds options only; what is kept from step to step is the `memory` handed in and out.
`scale` is 1 / (number of directions) for Gaussian directions, whose mean is unbiased, and 1 for
coordinates, which add up.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from vla_opt.zeroth_order.records import Estimate, Memory, Query, Reading

type Seeds = Sequence[int]
type Readings = Sequence[Reading]


class Estimator(Protocol):
    """What is queried, and what is concluded."""

    @property
    def directions(self) -> int:
        """New directions per step."""

    def queries(self, seeds: Seeds) -> list[Query]:
        """The queries of a step along these directions."""

    def conclude(
        self, seeds: Seeds, readings: Readings, *, epsilon: float, scale: float, memory: Memory
    ) -> Estimate:
        """The estimate from the readings of `queries(seeds)`, in the same order."""


@dataclass(frozen=True, kw_only=True)
class TwoPoint:
    """(f(x + eps u) - f(x - eps u)) / (2 eps) u: SPSA, as in MeZO (arXiv 2305.17333).

    Attributes:
        directions: averaged directions, two queries each.
    """

    directions: int = 1

    def __post_init__(self) -> None:
        """Check the value."""
        _at_least(1, self.directions)

    def queries(self, seeds: Seeds) -> list[Query]:
        """Both sides of each direction."""
        return [Query(terms=((seed, side),)) for seed in seeds for side in (1.0, -1.0)]

    def conclude(
        self, seeds: Seeds, readings: Readings, *, epsilon: float, scale: float, memory: Memory
    ) -> Estimate:
        """Central differences; the loss is the mean of all queries."""
        pairs = zip(seeds, readings[::2], readings[1::2], strict=True)
        return Estimate(
            loss=_mean(readings),
            coefficients=tuple(
                (seed, scale * (plus.loss - minus.loss) / (2 * epsilon))
                for seed, plus, minus in pairs
            ),
        )


@dataclass(frozen=True, kw_only=True)
class OneSided:
    """(f(x + eps u) - f(x)) / eps u with one f(x) for all directions, as in ZO-Muon (2602.17155).

    Attributes:
        directions: averaged directions, one query each and one for the centre.
    """

    directions: int = 4

    def __post_init__(self) -> None:
        """Check the value."""
        _at_least(1, self.directions)

    def queries(self, seeds: Seeds) -> list[Query]:
        """The centre, then one side of each direction."""
        return [Query(), *(Query(terms=((seed, 1.0),)) for seed in seeds)]

    def conclude(
        self, seeds: Seeds, readings: Readings, *, epsilon: float, scale: float, memory: Memory
    ) -> Estimate:
        """Forward differences; the loss is that of the centre."""
        centre, *sides = readings
        return Estimate(
            loss=centre.loss,
            coefficients=tuple(
                (seed, scale * (side.loss - centre.loss) / epsilon)
                for seed, side in zip(seeds, sides, strict=True)
            ),
        )


@dataclass(frozen=True, kw_only=True)
class AveragedBaseline:
    """1 / (eps (M - 1)) sum_j (F_j - mean F) u_j over M queries: ZoAR (arXiv 2506.14460).

    The mean of the queries replaces f(x), which saves its query; dividing by M - 1 makes this the
    leave-one-out baseline. Queries of earlier steps may be used again; as their losses belong to
    other weights and other batches, that lowers variance and adds bias.

    Attributes:
        directions: new directions per step, one query each.
        reuse: earlier steps whose queries are used again.
    """

    directions: int = 4
    reuse: int = 0

    def __post_init__(self) -> None:
        """Check the values."""
        _at_least(2, self.directions)
        if self.reuse < 0:
            raise ValueError(f"reuse must be at least 0, got {self.reuse}")

    def queries(self, seeds: Seeds) -> list[Query]:
        """One side of each direction."""
        return [Query(terms=((seed, 1.0),)) for seed in seeds]

    def conclude(
        self, seeds: Seeds, readings: Readings, *, epsilon: float, scale: float, memory: Memory
    ) -> Estimate:
        """Differences to the mean of all queries that count; the loss is the mean of the new."""
        fresh = [[seed, reading.loss] for seed, reading in zip(seeds, readings, strict=True)]
        used = [*memory.get("history", []), *fresh]
        mean = math.fsum(loss for _, loss in used) / len(used)
        kept = used[max(0, len(used) - self.reuse * self.directions) :] if self.reuse else []
        return Estimate(
            loss=_mean(readings),
            coefficients=tuple(
                (int(seed), (loss - mean) / (epsilon * (len(used) - 1))) for seed, loss in used
            ),
            memory={"history": kept} if self.reuse else {},
        )


@dataclass(frozen=True, kw_only=True)
class ForwardGradient:
    """(grad f . u) u by forward-mode differentiation: what finite differences tend to.

    No difference, hence neither its bias nor its rounding: the reference that tells a hard task
    from a bad estimator (arXiv 2605.15622). It needs a differentiable loss and the memory of a
    second copy of the weights.

    Attributes:
        directions: averaged directions, one call each.
    """

    directions: int = 1

    def __post_init__(self) -> None:
        """Check the value."""
        _at_least(1, self.directions)

    def queries(self, seeds: Seeds) -> list[Query]:
        """One derivative per direction."""
        return [Query(terms=((seed, 1.0),), derivative=True) for seed in seeds]

    def conclude(
        self, seeds: Seeds, readings: Readings, *, epsilon: float, scale: float, memory: Memory
    ) -> Estimate:
        """Slopes as they are."""
        pairs = zip(seeds, readings, strict=True)
        return Estimate(
            loss=readings[0].loss,
            coefficients=tuple((seed, scale * reading.slope) for seed, reading in pairs),
        )


def _mean(readings: Readings) -> float:
    return math.fsum(reading.loss for reading in readings) / len(readings)


def _at_least(least: int, directions: int) -> None:
    if directions < least:
        raise ValueError(f"directions must be at least {least}, got {directions}")
