"""A learning rate for every arm, chosen under one budget that is written down.

Each arm gets the same number of equally short runs. What decides is measured apart from the final
evaluation: on demonstrations that the short runs do not learn from, or on other initial states.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vla_opt.config import TrainConfig
from vla_opt.errors import ConfigError
from vla_opt.evaluation.config import EvalConfig
from vla_opt.evaluation.statistics import format_rate
from vla_opt.io import atomic_write_json


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """How the learning rate of each arm is chosen before a comparison.

    Attributes:
        factors: Rates tried, as multiples of the arm's own; one short run each.
        steps: Length of a short run, with the schedule of a run of that length.
        seed: Training seed of the short runs; none of the comparison's.
        by: "validation_loss" on held-out demonstrations, or "success" in simulation. The runs of
            the comparison itself learn from all demonstrations.
        hold_out: Every n-th demonstration is held out from the short runs; for "validation_loss".
        first_init_state: First of the initial states that decide by "success"; behind those of the
            final evaluation.
        episodes: How many of them, per task.

    Raises:
        ValueError: A number is out of range.
    """

    factors: tuple[float, ...] = (0.3, 1.0, 3.0)
    steps: int = 200
    seed: int = 1000
    by: Literal["validation_loss", "success"] = "validation_loss"
    hold_out: int = 10
    first_init_state: int = 40
    episodes: int = 10

    def __post_init__(self) -> None:
        """Check the values."""
        if len(self.factors) < 2 or len(set(self.factors)) < len(self.factors):
            raise ValueError(
                f"tune.factors={list(self.factors)}: expected two or more different ones."
            )
        if not all(0 < factor < math.inf for factor in self.factors):
            raise ValueError(f"tune.factors={list(self.factors)}: expected positive numbers.")
        for name, least in (("steps", 1), ("episodes", 1), ("hold_out", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"tune.{name}={getattr(self, name)}: expected {least} or more.")

    @property
    def budget(self) -> str:
        """What was spent on each arm, in a sentence."""
        measure = (
            f"the lowest loss on every {self.hold_out}th demonstration, which these runs did not "
            "learn from"
            if self.by == "validation_loss"
            else f"the most successes on the initial states {self.first_init_state} to "
            f"{self.first_init_state + self.episodes - 1}, which are in no result"
        )
        return (
            f"Each arm had {len(self.factors)} runs of {self.steps} steps with seed {self.seed}, "
            f"at {', '.join(f'{f:g}' for f in self.factors)} times its learning rate; "
            f"{measure} decided."
        )

    def short_run(self, train: TrainConfig, factor: float, folder: Path) -> TrainConfig:
        """Return the run of an arm at one rate."""
        held_out = self.hold_out if self.by == "validation_loss" else 0
        warmup = min(train.scheduler.warmup_steps, self.steps)
        return dataclasses.replace(
            train,
            optimizer=dataclasses.replace(train.optimizer, lr=train.optimizer.lr * factor),
            data=dataclasses.replace(train.data, hold_out=held_out or train.data.hold_out),
            scheduler=dataclasses.replace(train.scheduler, warmup_steps=warmup),
            steps=self.steps,
            seed=self.seed,
            output_dir=folder / f"times_{factor:g}" / "train",
            eval_every=0,
            spectra_every=0,
            save_every=0,
            keep_last=1,
            tensorboard=False,
        )

    def test(self, job: EvalConfig, checkpoint: Path, folder: Path) -> EvalConfig:
        """Return the evaluation of a short run, on states that the final one does not use."""
        return dataclasses.replace(
            job,
            checkpoint=checkpoint,
            first_init_state=self.first_init_state,
            episodes=self.episodes,
            trials=1,
            videos="none",
            output_dir=folder,
        )


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One short run.

    Attributes:
        factor: Its rate, as a multiple of the arm's.
        lr: Its rate.
        loss: On the held-out demonstrations; None if success decides, or if it diverged.
        successes: On the tuning states.
        scored: Episodes there; 0 if the loss decides.
        diverged: What it said, if it diverged.
    """

    factor: float
    lr: float
    loss: float | None = None
    successes: int = 0
    scored: int = 0
    diverged: str = ""

    @property
    def score(self) -> float:
        """The larger, the better; minus infinity for what cannot be chosen."""
        if self.loss is not None:
            return -self.loss if math.isfinite(self.loss) else -math.inf
        return self.successes / self.scored if self.scored else -math.inf

    def __str__(self) -> str:
        if self.diverged:
            return f"{self.lr:g}: diverged"
        if self.loss is not None:
            return f"{self.lr:g}: loss {self.loss:.4f}"
        return f"{self.lr:g}: {format_rate(self.successes, self.scored)}"


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """The trials of an arm.

    Attributes:
        arm: Which.
        trials: In the order of the rates.
    """

    arm: str
    trials: tuple[Trial, ...]

    @property
    def chosen(self) -> Trial | None:
        """The best; of equals the one nearest to the arm's own rate. None if all diverged."""
        able = [trial for trial in self.trials if trial.score > -math.inf]
        return max(able, key=lambda t: (t.score, -abs(math.log(t.factor)))) if able else None

    @property
    def note(self) -> str:
        """Says that the grid was too narrow, where it was."""
        chosen, rates = self.chosen, [trial.lr for trial in self.trials]
        if chosen is None or chosen.lr not in (min(rates), max(rates)):
            return ""
        end = "smallest" if chosen.lr == min(rates) else "largest"
        return (
            f"{self.arm}: the rate chosen, {chosen.lr:g}, is the {end} that was tried; one beyond "
            "may be better."
        )

    def describe(self) -> str:
        """All trials and the choice, on a line."""
        chosen = f"chosen {self.chosen.lr:g}" if self.chosen else "none chosen"
        return f"{self.arm}: {chosen} ({'; '.join(map(str, self.trials))})"

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able copy."""
        return {
            "arm": self.arm,
            "chosen_lr": self.chosen.lr if self.chosen else None,
            "trials": [dataclasses.asdict(trial) for trial in self.trials],
        }


def check_budget(folder: Path, tree: Mapping[str, Any]) -> None:
    """Write down the budget, or refuse to mix trials of two.

    Raises:
        ConfigError: The folder holds trials of another budget; names the differences.
    """
    file = folder / "budget.json"
    if not file.exists():
        atomic_write_json(file, tree)
        return
    earlier = json.loads(file.read_text(encoding="utf-8"))
    changed = [
        f"{name}: {earlier.get(name)} then, {tree.get(name)} now"
        for name in dict.fromkeys([*earlier, *tree])
        if earlier.get(name) != tree.get(name)
    ]
    if changed:
        raise ConfigError(
            f"{folder} holds trials under another budget:\n  " + "\n  ".join(changed) + "\n"
            "Every arm must have the same: give that budget, or another --output_dir."
        )


def read_trial(file: Path) -> Trial | None:
    """Return a trial that was measured before."""
    if not file.exists():
        return None
    return Trial(**json.loads(file.read_text(encoding="utf-8")))


def write_trial(file: Path, trial: Trial) -> Trial:
    """Keep a trial, so that it is not measured again."""
    atomic_write_json(file, dataclasses.asdict(trial))
    return trial


def tuning_notes(tuned: Sequence[Tuned]) -> list[str]:
    """What a reader must know of the choices."""
    return [one.note for one in tuned if one.note]
