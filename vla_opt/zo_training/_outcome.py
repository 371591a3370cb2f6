"""What a comparison of zeroth-order methods came to: numbers, a table, charts."""

import dataclasses
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_opt.evaluation._charts import Band, Series, color_of, line_chart
from vla_opt.evaluation._html import Section, esc, page, paragraph, table
from vla_opt.evaluation.exports import markdown_table
from vla_opt.evaluation.records import EpisodeRecord
from vla_opt.evaluation.statistics import (
    PairedComparison,
    format_p,
    format_rate,
    holm,
    paired_comparison,
    pool_comparisons,
    wilson,
)
from vla_opt.io import atomic_write_json, atomic_write_text
from vla_opt.zo_training._compare_config import ZOCompareConfig

START = "start"

NOTE = (
    "Cost is counted in forward calls of one batch; a call with a derivative is 2, a step of AdamW "
    "with its backward pass 3. Pairs: same episodes as the start, McNemar's exact p after Holm's "
    "correction over the arms. Intervals and tests take episodes as independent draws for these "
    "weights; episodes of one seed share theirs."
)


@dataclass(frozen=True, kw_only=True)
class Point:
    """One measurement.

    Attributes:
        arm: Which; "start" for the weights that all begin with.
        seed: Of directions and data.
        cost: Forward calls.
        loss: On held-out demonstrations.
        records: Episodes, none where success was not measured.
        seconds: Of all steps of the run, None for the start.
    """

    arm: str
    seed: int
    cost: int
    loss: float
    records: tuple[EpisodeRecord, ...] = ()
    seconds: float | None = None

    @property
    def counts(self) -> tuple[int, int]:
        """The k and n of success."""
        return sum(r.success for r in self.records), sum(r.scored for r in self.records)

    def __str__(self) -> str:
        success = f", success {format_rate(*self.counts)}" if self.records else ""
        where = f"{self.arm} seed {self.seed} after {self.cost} forward calls"
        return f"{where}: held-out loss {self.loss:.4f}{success}"


@dataclass(frozen=True, kw_only=True)
class ArmTuning:
    """How an arm's learning rate was chosen.

    Attributes:
        arm: Which.
        factor: Chosen, as a multiple of the configured rate.
        lr: Chosen.
        losses: Rate -> held-out loss of the short run; empty if nothing was tried.
    """

    arm: str
    factor: float
    lr: float
    losses: dict[float, float]

    def __str__(self) -> str:
        tried = ", ".join(
            f"{lr:g}: {loss:.4f}" if math.isfinite(loss) else f"{lr:g}: diverged"
            for lr, loss in self.losses.items()
        )
        if not tried:
            return f"{self.arm}: {self.lr:g}"
        edge = self.lr in (min(self.losses), max(self.losses))
        return f"{self.arm}: {self.lr:g} ({tried}{'; at an edge' if edge else ''})"


@dataclass(frozen=True, kw_only=True)
class ZOComparison:
    """The outcome.

    Attributes:
        points: The start, then arm by arm, seed by seed, by cost.
        tuning: Per arm.
        config: What was asked for.
    """

    points: tuple[Point, ...]
    tuning: tuple[ArmTuning, ...]
    config: ZOCompareConfig

    def of(self, arm: str, cost: int) -> list[Point]:
        """The measurements of an arm at a cost, one per seed that came so far."""
        return [p for p in self.points if p.arm == arm and p.cost == cost]

    def pairs(self) -> dict[str, PairedComparison]:
        """Each arm's last success against the start's, on the same episodes; p after Holm."""
        if not self.config.measured:
            return {}
        start, last = self.points[0], self.config.measured[-1]
        found = {
            one.arm: pool_comparisons([paired_comparison(start.records, p.records) for p in points])
            for one in self.tuning
            if (points := [p for p in self.of(one.arm, last) if p.records])
        }
        corrected = holm([pair.p for pair in found.values()])
        return {
            arm: dataclasses.replace(pair, p=p)
            for (arm, pair), p in zip(found.items(), corrected, strict=True)
        }

    def rows(self) -> list[list[str]]:
        """The table: head first, then the start, then the arms."""
        config = self.config
        head = ["method", "learning rate"]
        head += [f"held-out loss at {mark}" for mark in (0, *config.marks)]
        head += [f"success at {mark}" for mark in (0, *config.measured)]
        head += ["against the start", "s per 100 calls"]
        start = self.points[0]
        first = [START, "", f"{start.loss:.4f}", *[""] * len(config.marks)]
        first += [format_rate(*start.counts), *[""] * len(config.measured), "", ""]
        return [head, first, *(self._row(one) for one in self.tuning)]

    def _row(self, one: ArmTuning) -> list[str]:
        config = self.config
        losses = [[p.loss for p in self.of(one.arm, mark)] for mark in config.marks]
        success = [self.of(one.arm, mark) for mark in config.measured]
        pair = self.pairs().get(one.arm)
        versus = "" if pair is None else f"{pair.only_b} : {pair.only_a}, {format_p(pair.p)}"
        last = self.of(one.arm, config.marks[-1])
        per = [100 * p.seconds / p.cost for p in last if p.seconds is not None]
        return [
            one.arm,
            f"{one.lr:g}",
            "",
            *(_mean(values) for values in losses),
            "",
            *(_rate(points) for points in success),
            versus,
            f"{statistics.fmean(per):.1f}" if per else "",
        ]

    def markdown(self) -> str:
        """The table for a document."""
        text = markdown_table(self.rows())
        text += ["", "Against the start: solved by the method alone : by the start alone, and p."]
        text += ["", "Learning rates, with the held-out losses of the short runs:", ""]
        text += [f"- {one}" for one in self.tuning]
        return "\n".join([*text, "", f"> {NOTE}", ""])

    def to_dict(self) -> dict[str, Any]:
        """The numbers, ready for JSON."""
        return {
            "points": [
                {
                    **{name: getattr(p, name) for name in ("arm", "seed", "cost", "loss")},
                    "seconds": p.seconds,
                    **_counts(p),
                }
                for p in self.points
            ],
            "tuning": [
                {
                    "arm": one.arm,
                    "lr": one.lr,
                    "losses": {f"{lr:g}": _finite(loss) for lr, loss in one.losses.items()},
                }
                for one in self.tuning
            ],
            "pairs": {arm: dataclasses.asdict(pair) for arm, pair in self.pairs().items()},
            "note": NOTE,
        }

    def html(self, name: str) -> str:
        """The same as a page, with charts over forward calls."""
        head, *rows = self.rows()
        cells = [[esc(cell) for cell in row] for row in rows]
        listing = table(head, cells, anchor="arms-table") + paragraph(NOTE, "soft small")
        sections = [
            Section(anchor="results", title="Results", body=listing),
            Section(anchor="curves", title="Over forward calls", body=self._charts()),
            Section(
                anchor="tuning",
                title="Learning rates",
                body="".join(paragraph(str(one), "small") for one in self.tuning),
            ),
        ]
        footer = "Derived from the records of the runs; no number here is typed by hand."
        return page(f"{name} - vla_opt", f"<h1>{esc(name)}</h1>", sections, footer)

    def _charts(self) -> str:
        losses, rates, bands = [], [], []
        start = self.points[0]
        for index, one in enumerate(self.tuning):
            color = color_of(index)
            loss = [(0.0, start.loss)]
            loss += [
                (float(m), statistics.fmean(p.loss for p in found))
                for m in self.config.marks
                if (found := self.of(one.arm, m))
            ]
            losses.append(Series(name=one.arm, points=loss, color=color))
            counts = [(0, start.counts)]
            counts += [(m, _pooled(self.of(one.arm, m))) for m in self.config.measured]
            known = [(x, k / n, *wilson(k, n)) for x, (k, n) in counts if n]
            points = [(float(x), rate) for x, rate, _, _ in known]
            rates.append(Series(name=one.arm, points=points, color=color))
            between = [(float(x), low, high) for x, _, low, high in known]
            bands.append(Band(points=between, color=color))
        drawn = [
            line_chart("Success", rates, x_label="forward calls", bands=bands),
            line_chart("Loss on held-out demonstrations", losses, x_label="forward calls"),
        ]
        return f'<div class="charts two">{"".join(drawn)}</div>'

    def write(self, folder: Path) -> None:
        """Write result.json, result.md and result.html."""
        atomic_write_json(folder / "result.json", self.to_dict())
        atomic_write_text(folder / "result.md", self.markdown())
        atomic_write_text(folder / "result.html", self.html(folder.name))


def _pooled(points: Sequence[Point]) -> tuple[int, int]:
    return sum(p.counts[0] for p in points), sum(p.counts[1] for p in points)


def _rate(points: Sequence[Point]) -> str:
    return format_rate(*_pooled(points)) if points else "diverged"


def _mean(losses: Sequence[float]) -> str:
    return f"{statistics.fmean(losses):.4f}" if losses else "diverged"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _counts(point: Point) -> dict[str, int]:
    return dict(zip(("successes", "scored"), point.counts, strict=True)) if point.records else {}
