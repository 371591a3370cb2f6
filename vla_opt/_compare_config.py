"""What is compared: the arms, their options, the seeds, and how learning rates are chosen."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vla_opt._arms import changed
from vla_opt._checks import require_at_least
from vla_opt._tuning import TuneConfig
from vla_opt.config import TrainConfig
from vla_opt.errors import UnknownNameError, nearest
from vla_opt.optim.config import OptimizerConfig

CONTROLS: dict[str, dict[str, Any]] = {
    "frozen_head": {"name": "adamw", "frozen_roles": ["action"]},
    "kaon": {"name": "kaon"},
}
"""Arms that are no proposal: what they reach, is reached without what is proposed."""


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """A comparison of optimizers.

    Attributes:
        train: What all runs have in common; its `eval` says which episodes are run at the end, and
            with `eval_every` which make the learning curves.
        optimizers: Names of the arms. A name is that of an optimizer, unless `options` gives the
            arm another: `optimizers: [pion, pion_k2]`, `options: {pion_k2: {name: pion,
            promotion_steps: 2}}`.
        options: Per arm, what differs from `train.optimizer`.
        controls: Arms that an effect must beat: "frozen_head" trains everything but the matrices of
            the action head, "kaon" steps with a chaotic spectrum (arXiv 2605.11181).
        tune: Choose each arm's learning rate first, under one budget; not at all if not given.
        seeds: Training seeds; each is run with every arm.
        parallel: Trainings at once, each a process with one thread; 1 = one after another here.
        output_dir: Folder of the comparison.

    Raises:
        ValueError: An arm or option does not exist (names the nearest), or occurs twice.
    """

    train: TrainConfig = field(default_factory=TrainConfig)
    optimizers: tuple[str, ...] = ("adamw", "muon", "pion")
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    controls: tuple[str, ...] = ()
    tune: TuneConfig | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    parallel: int = 1
    output_dir: Path = Path("runs/compare")

    def __post_init__(self) -> None:
        """Check the values."""
        for name, values in (("optimizers", self.names), ("seeds", self.seeds)):
            if not values or len(set(values)) != len(values):
                raise ValueError(f"{name}={list(values)}: expected at least one, none twice.")
        for name in self.controls:
            if name not in CONTROLS:
                raise UnknownNameError(f"controls: no {name!r}.{nearest(name, CONTROLS)}")
        self._check_tuning()
        require_at_least("parallel", self.parallel, 1)
        for label in self.options:
            if label not in self.names:
                raise UnknownNameError(f"options.{label}: no such arm.{nearest(label, self.names)}")
        self.arms()

    def _check_tuning(self) -> None:
        """What chooses a rate must not be what is reported."""
        tune, final = self.tune, self.train.eval
        if tune is None:
            return
        if tune.seed in self.seeds:
            raise ValueError(f"tune.seed={tune.seed} is one of the comparison's: give another.")
        end = final.first_init_state + final.episodes
        if tune.by == "success" and tune.first_init_state < end:
            raise ValueError(
                f"tune.first_init_state={tune.first_init_state}: the final evaluation uses the "
                f"states {final.first_init_state} to {end - 1}. Choose by others, from {end} on."
            )

    @property
    def names(self) -> tuple[str, ...]:
        """All arms, controls last."""
        return (*self.optimizers, *self.controls)

    def arms(self) -> dict[str, OptimizerConfig]:
        """Return the optimizer of each arm."""
        return {label: self._optimizer(label) for label in self.names}

    def with_rates(self, rates: Mapping[str, float]) -> "CompareConfig":
        """Return the comparison with other learning rates, by arm."""
        options = {
            label: {**self.options.get(label, {}), "lr": rates[label]} for label in self.names
        }
        return dataclasses.replace(self, options=options)

    def _optimizer(self, label: str) -> OptimizerConfig:
        given = {**CONTROLS.get(label, {}), **self.options.get(label, {})}
        changes = {"name": label, **given}
        known = [f.name for f in dataclasses.fields(OptimizerConfig)]
        for key in changes:
            if key not in known:
                raise UnknownNameError(
                    f"options.{label}.{key}: an optimizer has no such option.{nearest(key, known)}"
                )
        return changed(self.train.optimizer, changes, label)

    def run(self, label: str, seed: int) -> TrainConfig:
        """Return the training run of an arm and a seed."""
        threads = self.train.num_threads or (1 if self.parallel > 1 else 0)
        return dataclasses.replace(
            self.train,
            optimizer=self.arms()[label],
            seed=seed,
            num_threads=threads,
            output_dir=self.folder(label, seed) / "train",
            resume=True,
        )

    def folder(self, label: str, seed: int) -> Path:
        """Return the run folder of an arm and a seed."""
        return self.output_dir / label / f"seed{seed}"
