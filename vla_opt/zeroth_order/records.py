"""What travels between workers and into the log: seeds and scalars."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

type Memory = dict[str, Any]
"""What an estimator keeps from step to step: numbers and lists of them."""


class NonFiniteLossError(FloatingPointError):
    """A query gave NaN or infinity; the weights are as they were before the step."""


@dataclass(frozen=True, kw_only=True)
class Query:
    """One evaluation of the loss.

    Attributes:
        terms: (seed, multiple of epsilon) of each direction that is added to the weights; empty
            for the weights as they are.
        derivative: ask for the derivative along the (one) direction instead of moving along it.
    """

    terms: tuple[tuple[int, float], ...] = ()
    derivative: bool = False


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The answer to a query.

    Attributes:
        loss: value of the loss.
        slope: its directional derivative, NaN if not asked for.
    """

    loss: float
    slope: float = math.nan


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A gradient estimate, sum of c_j times the direction of seed j.

    Attributes:
        loss: what the step reports.
        coefficients: (seed j, c_j).
        memory: the estimator's memory after the step.
    """

    loss: float
    coefficients: tuple[tuple[int, float], ...]
    memory: Memory = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """All that is needed to repeat the update of a step, without evaluating the loss.

    Attributes:
        step: number of the step, from 0.
        loss: what the step reported.
        coefficients: (seed, coefficient) per direction.
        lrs: learning rate of each parameter group.
        queries: forward calls of the step.
        memory: the estimator's memory after the step.
    """

    step: int
    loss: float
    coefficients: tuple[tuple[int, float], ...]
    lrs: tuple[float, ...]
    queries: int
    memory: Memory = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON takes it; floats survive JSON exactly."""
        return asdict(self)

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Self:
        """Undo `to_dict`; further keys are ignored.

        Raises:
            ValueError: a key is missing.
        """
        missing = {"step", "loss", "coefficients", "lrs", "queries"} - row.keys()
        if missing:
            raise ValueError(f"no record of a step: {sorted(missing)} missing in {sorted(row)}")
        return cls(
            step=int(row["step"]),
            loss=float(row["loss"]),
            coefficients=tuple((int(seed), float(value)) for seed, value in row["coefficients"]),
            lrs=tuple(map(float, row["lrs"])),
            queries=int(row["queries"]),
            memory=dict(row.get("memory", {})),
        )
