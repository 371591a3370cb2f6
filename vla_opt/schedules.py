"""Learning-rate schedules as pure functions of the step.

A schedule is a factor in [0, 1] that multiplies the base learning rate of every parameter group, so
groups keep their own rates. Factors depend on nothing but the step: resuming needs no state.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from vla_opt.errors import UnknownNameError, nearest


def constant(progress: float, min_ratio: float, decay_fraction: float) -> float:
    """Stay at the base rate."""
    return 1.0


def cosine(progress: float, min_ratio: float, decay_fraction: float) -> float:
    """Fall along half a cosine from 1 to `min_ratio` (Loshchilov & Hutter, arXiv 1608.03983)."""
    return min_ratio + (1.0 - min_ratio) * 0.5 * (1.0 + math.cos(math.pi * progress))


def warmup_stable_decay(progress: float, min_ratio: float, decay_fraction: float) -> float:
    """Stay at 1, then fall linearly to `min_ratio` over the last `decay_fraction` of the run.

    Warm-up-stable-decay of arXiv 2404.06395, with the linear decay of arXiv 2405.18392.
    """
    if decay_fraction <= 0.0 or progress <= 1.0 - decay_fraction:
        return 1.0
    # A short decay_fraction loses digits above: without the bounds the rate could end below zero.
    decayed = min(1.0, max(0.0, (progress - (1.0 - decay_fraction)) / decay_fraction))
    return 1.0 - (1.0 - min_ratio) * decayed


SCHEDULES: dict[str, Callable[[float, float, float], float]] = {
    "constant": constant,
    "cosine": cosine,
    "wsd": warmup_stable_decay,
}


@dataclass(frozen=True, kw_only=True)
class SchedulerConfig:
    """How the learning rate moves during a run.

    Attributes:
        name: "constant", "cosine" or "wsd" (warm-up, stable, decay).
        warmup_steps: Steps over which the rate rises linearly to its base value; 0 = none.
        min_ratio: Where "cosine" and "wsd" end, as a share of the base rate.
        decay_fraction: Share of the steps after warm-up over which "wsd" decays.

    Raises:
        UnknownNameError: No schedule has that name.
        ValueError: A number is outside its range.
    """

    name: str = "cosine"
    warmup_steps: int = 0
    min_ratio: float = 0.0
    decay_fraction: float = 0.2

    def __post_init__(self) -> None:
        """Check the values."""
        if self.name not in SCHEDULES:
            raise UnknownNameError(f"No schedule {self.name!r}.{nearest(self.name, SCHEDULES)}")
        if self.warmup_steps < 0:
            raise ValueError(f"scheduler.warmup_steps: expected >= 0, got {self.warmup_steps}.")
        for key in ("min_ratio", "decay_fraction"):
            if not 0.0 <= getattr(self, key) <= 1.0:
                raise ValueError(f"scheduler.{key}: expected 0 to 1, got {getattr(self, key)}.")

    def factor(self, step: int, total_steps: int) -> float:
        """Return the factor of the update from `step` to `step + 1`; the first step is 0.

        The first update of a warm-up has 1 / warmup_steps, not 0: an update at rate 0 is wasted.

        >>> config = SchedulerConfig(name="cosine", warmup_steps=2)
        >>> [round(config.factor(step, 6), 3) for step in range(6)]
        [0.5, 1.0, 1.0, 0.854, 0.5, 0.146]
        """
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        rest = max(1, total_steps - self.warmup_steps)
        progress = min(1.0, (step - self.warmup_steps) / rest)
        return SCHEDULES[self.name](progress, self.min_ratio, self.decay_fraction)

    def build(
        self, optimizer: torch.optim.Optimizer, total_steps: int
    ) -> torch.optim.lr_scheduler.LambdaLR:
        """Return the torch scheduler; call its `step()` after every `optimizer.step()`."""
        return torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: self.factor(step, total_steps)
        )
