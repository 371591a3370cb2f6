"""The outcome of a comparison: numbers first, then the same as text, Markdown and JSON."""

import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from vla_opt._curves import Curve
from vla_opt._suite_rates import NOTHING, suite_rows
from vla_opt._tuning import Tuned, tuning_notes
from vla_opt.evaluation.bootstrap import bootstrap_mean, sign_flip
from vla_opt.evaluation.exports import markdown_table
from vla_opt.evaluation.records import EpisodeRecord
from vla_opt.evaluation.statistics import (
    PairedComparison,
    format_p,
    format_percent,
    format_rate,
    holm,
    paired_comparison,
    pool_comparisons,
    wilson,
)
from vla_opt.evaluation.tables import success_table

CAVEAT = (
    "Intervals and tests take the episodes as independent draws for these trained policies. "
    "Episodes of one training seed share their weights: look at the seeds one by one too."
)
SEED_CAVEAT = (
    "Over seeds each trained policy is one observation: the mean of the seeds' rates with its "
    "bootstrap interval, and for pairs an exact sign-flip test, whose p cannot be below "
    "2/2^n for n seeds. With few seeds the intervals are too narrow (84 % coverage with 5, 75 % "
    "with 3, for a nominal 95 %)."
)
CONTROL_NOTE = (
    "is a control: where it does as well as an optimizer, these episodes do not show what that "
    "optimizer is for."
)


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """One training with its evaluation.

    Attributes:
        arm: Which optimizer.
        seed: Training seed.
        records: Evaluated episodes.
        loss: Mean training loss over the last window of the log, None without one.
        train_s: Seconds of training.
        diverged: What a training said that ended in a loss that is not finite; then there are no
            episodes.
        curve: Loss and success while it trained.
    """

    arm: str
    seed: int
    records: tuple[EpisodeRecord, ...] = ()
    loss: float | None = None
    train_s: float | None = None
    diverged: str = ""
    curve: Curve | None = None

    @property
    def successes(self) -> int:
        """The k of k/n."""
        return sum(record.success for record in self.records)

    @property
    def scored(self) -> int:
        """The n of k/n: episodes that measured the policy."""
        return sum(record.scored for record in self.records)


@dataclass(frozen=True, kw_only=True)
class Arm:
    """All seeds of one optimizer.

    Attributes:
        name: The arm.
        runs: One per seed.
    """

    name: str
    runs: tuple[RunResult, ...]

    @property
    def successes(self) -> int:
        """Over all seeds."""
        return sum(run.successes for run in self.runs)

    @property
    def scored(self) -> int:
        """Over all seeds."""
        return sum(run.scored for run in self.runs)

    @property
    def errors(self) -> int:
        """Episodes that the machinery failed to run."""
        return len(self.records) - self.scored

    @property
    def rate(self) -> str:
        """k/n with its interval; "diverged" where no seed came to an evaluation."""
        return format_rate(self.successes, self.scored) if self.scored else NOTHING

    @property
    def by_seed(self) -> str:
        """k/n of each seed."""
        parts = [
            f"{run.seed}: {'diverged' if run.diverged else f'{run.successes}/{run.scored}'}"
            for run in self.runs
        ]
        return ", ".join(parts)

    @property
    def records(self) -> tuple[EpisodeRecord, ...]:
        """Episodes of all seeds."""
        return tuple(record for run in self.runs for record in run.records)

    @property
    def rates(self) -> list[float]:
        """Success rate of each seed that came to an evaluation; a diverged one solved nothing."""
        return [
            run.successes / run.scored if run.scored else 0.0
            for run in self.runs
            if run.scored or run.diverged
        ]

    @property
    def over_seeds(self) -> str:
        """Mean of the seeds' rates with its bootstrap interval."""
        if not self.rates:
            return ""
        low, high = bootstrap_mean(self.rates)
        mean = format_percent(statistics.fmean(self.rates))
        return f"{mean} % ({low * 100:.1f}-{high * 100:.1f}), n = {len(self.rates)}"

    @property
    def loss(self) -> str:
        """Mean of the last training losses."""
        losses = [run.loss for run in self.runs if run.loss is not None]
        return f"{statistics.fmean(losses):.4f}" if losses else ""

    @property
    def train_time(self) -> str:
        """Mean seconds of a training."""
        times = [run.train_s for run in self.runs if run.train_s is not None]
        return f"{statistics.fmean(times):.0f} s" if times else ""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two arms on the same seeds and episodes.

    Attributes:
        a: First arm.
        b: Second arm.
        pooled: Episodes of all seeds that both came to an evaluation with.
        p_holm: Its p-value, corrected for the number of pairs.
        by_seed: The same seed by seed.
    """

    a: str
    b: str
    pooled: PairedComparison
    p_holm: float
    by_seed: dict[int, PairedComparison]

    @property
    def differences(self) -> list[float]:
        """Rate of a minus rate of b, seed by seed."""
        return [paired.difference for paired in self.by_seed.values()]

    @property
    def p_seeds(self) -> float:
        """Sign-flip p over the seeds, not corrected."""
        return sign_flip(self.differences)

    def describe(self) -> str:
        """What was found, in a sentence; "better" stands only where the corrected p is small."""
        corrected = dataclasses.replace(self.pooled, p=self.p_holm)
        low, high = bootstrap_mean(self.differences)
        return (
            f"{corrected.describe(self.a, self.b)}; uncorrected {format_p(self.pooled.p)}; "
            f"over {len(self.differences)} seeds {100 * statistics.fmean(self.differences):+.1f} "
            f"points ({100 * low:+.1f} to {100 * high:+.1f}), sign-flip {format_p(self.p_seeds)}"
        )


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What a comparison came to.

    Attributes:
        arms: In the order asked for.
        pairs: Every two arms that have episodes in common.
        notes: What a reader must know beside it.
        budget: What was spent on each arm's learning rate, "" if nothing was.
        tuned: The learning rates tried and chosen.
        controls: Names of the arms that are controls.
    """

    arms: tuple[Arm, ...]
    pairs: tuple[Pair, ...]
    notes: tuple[str, ...]
    budget: str = ""
    tuned: tuple[Tuned, ...] = ()
    controls: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        runs: Sequence[RunResult],
        *,
        budget: str = "",
        tuned: Sequence[Tuned] = (),
        controls: Sequence[str] = (),
    ) -> "Comparison":
        """Compute the table from the runs.

        Args:
            runs: One per arm and seed.
            budget: What was spent on each arm's learning rate.
            tuned: The learning rates tried and chosen.
            controls: Names of the arms that are controls.

        Raises:
            ValueError: Two runs of one seed were evaluated under different settings.
        """
        names = list(dict.fromkeys(run.arm for run in runs))
        arms = tuple(
            Arm(name=name, runs=tuple(run for run in runs if run.arm == name)) for name in names
        )
        notes = [CAVEAT, SEED_CAVEAT]
        notes += [f"{name} {CONTROL_NOTE}" for name in controls]
        notes += [budget, *tuning_notes(tuned)] if budget else []
        notes += [f"{r.arm}, seed {r.seed} diverged: {r.diverged}" for r in runs if r.diverged]
        notes += [
            f"{arm.name}: {arm.errors} episodes could not be run and count neither way."
            for arm in arms
            if arm.errors
        ]
        return cls(
            arms=arms,
            pairs=_pairs(arms),
            notes=tuple(notes),
            budget=budget,
            tuned=tuple(tuned),
            controls=tuple(controls),
        )

    @property
    def complete(self) -> bool:
        """Whether every episode of every run was measured."""
        return all(not run.diverged and run.scored == len(run.records) for run in self._runs())

    @property
    def suites(self) -> list[tuple[str, ...]]:
        """Arms by suite as a table with its head; empty if there is one suite."""
        return suite_rows([(arm.name, arm.records) for arm in self.arms])

    @property
    def curves(self) -> list[Curve]:
        """Of every run that has one."""
        return [run.curve for run in self._runs() if run.curve is not None]

    def _runs(self) -> list[RunResult]:
        return [run for arm in self.arms for run in arm.runs]

    def text(self) -> str:
        """The table for a terminal."""
        lines = _aligned([_HEAD, *map(_cells, self.arms)])
        if suites := self.suites:
            lines += ["", *_aligned(suites)]
        if self.pairs:
            lines += ["", f"Pairs, {_PAIRED}:"]
            lines += [f"  {pair.describe()}" for pair in self.pairs]
        if self.tuned:
            lines += ["", "Learning rates:"]
            lines += [f"  {one.describe()}" for one in self.tuned]
        return "\n".join([*lines, "", *(f"Note: {note}" for note in self.notes)])

    def markdown(self) -> str:
        """The table for a document."""
        lines = markdown_table([_HEAD, *map(_cells, self.arms)])
        if suites := self.suites:
            lines += ["", *markdown_table(suites)]
        if self.pairs:
            lines += ["", f"Pairs, {_PAIRED}:", ""]
            lines += [f"- {pair.describe()}" for pair in self.pairs]
        if self.tuned:
            lines += ["", "Learning rates:", ""]
            lines += [f"- {one.describe()}" for one in self.tuned]
        return "\n".join([*lines, "", *(f"> {note}" for note in self.notes), ""])

    def to_dict(self) -> dict[str, Any]:
        """The numbers, ready for JSON."""
        return {
            "arms": [_arm_dict(arm) for arm in self.arms],
            "pairs": [
                {
                    "a": pair.a,
                    "b": pair.b,
                    "p_holm": pair.p_holm,
                    "p_seeds": pair.p_seeds,
                    "difference_by_seed": pair.differences,
                    "difference_bootstrap_95": list(bootstrap_mean(pair.differences)),
                    "pooled": dataclasses.asdict(pair.pooled),
                    "by_seed": {s: dataclasses.asdict(c) for s, c in pair.by_seed.items()},
                }
                for pair in self.pairs
            ],
            "budget": self.budget,
            "tuning": [one.to_dict() for one in self.tuned],
            "controls": list(self.controls),
            "notes": list(self.notes),
            "complete": self.complete,
        }


_HEAD = ("optimizer", "success", "by seed", "mean over seeds", "last loss", "training")
_PAIRED = "same training seeds and same episodes, McNemar's exact p after Holm's correction"


def _cells(arm: Arm) -> tuple[str, ...]:
    return (arm.name, arm.rate, arm.by_seed, arm.over_seeds, arm.loss, arm.train_time)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _pairs(arms: Sequence[Arm]) -> tuple[Pair, ...]:
    found = []
    for a, b in combinations(arms, 2):
        others = {run.seed: run for run in b.runs if run.scored}
        by_seed = {
            run.seed: paired_comparison(run.records, others[run.seed].records)
            for run in a.runs
            if run.scored and run.seed in others
        }
        if by_seed:
            found.append((a.name, b.name, pool_comparisons(list(by_seed.values())), by_seed))
    corrected = holm([pooled.p for _, _, pooled, _ in found])
    return tuple(
        Pair(a=a, b=b, pooled=pooled, p_holm=p, by_seed=by_seed)
        for (a, b, pooled, by_seed), p in zip(found, corrected, strict=True)
    )


def _arm_dict(arm: Arm) -> dict[str, Any]:
    return {
        "name": arm.name,
        "successes": arm.successes,
        "scored": arm.scored,
        "errors": arm.errors,
        "wilson_95": list(wilson(arm.successes, arm.scored)),
        "bootstrap_95": list(bootstrap_mean(arm.rates)) if arm.rates else None,
        "suites": {
            row.suite: {"successes": row.successes, "scored": row.scored}
            for row in success_table(arm.records).suites
        },
        "seeds": [
            {
                "seed": run.seed,
                "successes": run.successes,
                "scored": run.scored,
                "loss": run.loss,
                "train_s": run.train_s,
                "diverged": run.diverged or None,
            }
            for run in arm.runs
        ],
    }
