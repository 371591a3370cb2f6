"""What is compared: the arms, how their learning rates are chosen, and when they are measured."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vla_opt._arms import changed, merged
from vla_opt._checks import require_at_least
from vla_opt.config import to_tree
from vla_opt.evaluation.config import EvalConfig
from vla_opt.zo_training.backward import CALLS_PER_STEP
from vla_opt.zo_training.config import ZOTrainConfig

ADAMW = "adamw"
DERIVATIVE = 2
"""Forward calls that one with a derivative along a direction costs about."""


@dataclass(frozen=True, kw_only=True)
class ZOCompareConfig:
    """Zeroth-order methods against each other and against backward passes, at equal cost.

    Cost is counted in forward calls of one batch: a call with a derivative (forward_gradient) is 2,
    a step of AdamW with its backward pass 3.

    Attributes:
        run: What all arms have in common; its objective is "supervised", and its `data.hold_out`
            says which demonstrations measure the loss. Its `eval` says which episodes are run.
        arms: Per arm, what differs from `run`: `{mezo: {method: {name: mezo, lr: 1.0e-6}}}`.
        adamw_lr: Learning rate of AdamW with backward passes; 0 = without it.
        factors: Learning rates tried, as multiples of each arm's own; the lowest loss on the
            held-out demonstrations decides. One factor: nothing is tried.
        growth: Further rates that may be tried while the best one lies at an edge.
        tune_calls: Cost of each such short run, which has the seed `tune_seed`.
        tune_seed: None of the comparison's.
        marks: Costs at which the held-out loss and success are measured, ascending.
        success_marks: Those of them at which success is measured; the last if not given, none if
            empty: the same command with some then measures them, and trains nothing again.
        seeds: Of directions and order of samples; each is run with every arm.
        parallel: Arms at once; above 1 each is a process that simulates its episodes itself, one
            after another: the same episodes, on one core per arm.
        output_dir: Folder of the comparison.

    Raises:
        ValueError: A number is out of range, or an arm does not exist.
    """

    run: ZOTrainConfig
    arms: dict[str, dict[str, Any]] = field(default_factory=dict)
    adamw_lr: float = 1e-4
    factors: tuple[float, ...] = (0.3, 1.0, 3.0)
    growth: int = 2
    tune_calls: int = 200
    tune_seed: int = 1000
    marks: tuple[int, ...] = (300, 600)
    success_marks: tuple[int, ...] | None = None
    seeds: tuple[int, ...] = (0,)
    parallel: int = 1
    output_dir: Path = Path("runs/zo_compare")

    def __post_init__(self) -> None:
        """Check the values."""
        require_at_least("tune_calls", self.tune_calls, CALLS_PER_STEP)
        require_at_least("parallel", self.parallel, 1)
        for name in ("factors", "marks", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name}={list(values)}: expected at least one, none twice.")
        if list(self.marks) != sorted(self.marks) or self.marks[0] < CALLS_PER_STEP:
            raise ValueError(
                f"marks={list(self.marks)}: expected ascending numbers from {CALLS_PER_STEP} on."
            )
        if not all(factor > 0 for factor in self.factors):
            raise ValueError(f"factors={list(self.factors)}: expected positive numbers.")
        if self.tune_seed in self.seeds:
            raise ValueError(f"tune_seed={self.tune_seed} is one of `seeds`: give another.")
        if self.run.data.hold_out < 2 or self.run.objective != "supervised":
            raise ValueError(
                "run.data.hold_out must be 2 or more and run.objective supervised: the loss on "
                "held-out demonstrations chooses learning rates."
            )
        if ADAMW in self.arms or not self.names:
            raise ValueError("arms: give at least one; AdamW's rate is adamw_lr, not an arm.")
        if not set(self.measured) <= set(self.marks):
            raise ValueError(f"success_marks={list(self.measured)}: expected some of the marks.")
        for arm in self.arms:
            self.of(arm)

    @property
    def names(self) -> tuple[str, ...]:
        """All arms, AdamW last."""
        return (*self.arms, *([ADAMW] if self.adamw_lr else []))

    @property
    def eval(self) -> EvalConfig:
        """How success is measured; checkpoint and folder are still to be set."""
        if self.parallel == 1:
            return self.run.eval
        return dataclasses.replace(self.run.eval, backend="serial")

    @property
    def measured(self) -> tuple[int, ...]:
        """Costs at which success is measured."""
        return (self.marks[-1],) if self.success_marks is None else self.success_marks

    def of(self, arm: str, seed: int = 0, factor: float = 1.0) -> ZOTrainConfig:
        """Return the run of an arm; its budget and folder are still to be set.

        Raises:
            ValueError: what the arm changes does not exist or does not fit.
        """
        run = changed(self.run, merged(to_tree(self.run), self.arms.get(arm, {})), arm)
        method = dataclasses.replace(run.method, lr=run.method.lr * factor)
        return dataclasses.replace(
            run, method=method, seed=seed, save_every=0, keep_last=0, eval_every=0
        )

    def rate(self, arm: str, factor: float) -> float:
        """Return the learning rate of an arm times a factor."""
        return self.adamw_lr * factor if arm == ADAMW else self.of(arm, factor=factor).method.lr

    def beyond(self, losses: Mapping[float, float]) -> list[float]:
        """Return the factor beyond the edge at which the lowest loss lies; none if inside."""
        tried = sorted(losses)
        best = min(tried, key=lambda factor: losses[factor])
        if best == tried[-1]:
            return [best * tried[1] / tried[0]]
        return [best * tried[0] / tried[1]] if best == tried[0] else []

    def units(self, arm: str, cost: int) -> int:
        """Return how many forward calls of the arm's own count, AdamW's steps, have this cost."""
        if arm == ADAMW:
            return cost // CALLS_PER_STEP
        return cost // (DERIVATIVE if self.of(arm).method.name == "forward_gradient" else 1)
