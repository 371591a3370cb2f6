"""Success per dimension of perturbation: seven columns, a Total and a mean, each labelled.

A cell is the rate over the tasks of a dimension that can run here, every task with the same weight,
also where only a sample of them was run. The two summaries differ: the Total weighs every task the
same, the mean every dimension.
"""

import csv
import io
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from envs._suite_names import PLUS, STYLE
from vla_opt.evaluation._html import esc, paragraph, table
from vla_opt.evaluation.records import EpisodeRecord
from vla_opt.evaluation.statistics import format_percent
from vla_opt.evaluation.stratified import Estimate, StratumCount, estimate
from vla_opt.evaluation.variants import Stratum
from vla_opt.io import atomic_write_text

TITLES = {
    PLUS: {
        "camera": "Camera",
        "robot": "Robot",
        "language": "Language",
        "light": "Light",
        "background": "Background",
        "noise": "Noise",
        "layout": "Layout",
    },
    STYLE: {"light": "Light", "background": "Background", "objects": "Objects"},
}
"""Columns in the order of the benchmark's own tables."""

TOTAL = "Total (every task the same)"
MEAN = "Mean (every dimension the same)"


@dataclass(frozen=True, kw_only=True)
class DimensionRow:
    """One dimension, or a summary over several.

    Attributes:
        title: As shown.
        successes: Scored episodes that succeeded.
        scored: Episodes with an outcome.
        errors: Episodes the machinery lost; in no rate.
        tasks: Tasks asked for.
        runnable: Those of them that can run here: what the estimate stands for.
        estimate: The weighted rate; None if nothing was scored.
    """

    title: str
    successes: int
    scored: int
    errors: int
    tasks: int
    runnable: int
    estimate: Estimate | None

    @property
    def note(self) -> str:
        """What the estimate does not stand for."""
        if self.runnable == self.tasks:
            return ""
        if not self.runnable:
            return f"not run: all {self.tasks} tasks need the benchmark's assets"
        return f"{self.tasks - self.runnable} of {self.tasks} tasks need the benchmark's assets"


@dataclass(frozen=True, kw_only=True)
class DimensionTable:
    """Success by dimension.

    Attributes:
        family: "libero_plus" or "libero_style".
        rows: One per dimension that was asked for, in the benchmark's order.
        total: Every task with the same weight.
        mean: Every dimension with the same weight.
        levels: (dimension, level) -> row, where levels are known.
    """

    family: str
    rows: tuple[DimensionRow, ...]
    total: DimensionRow
    mean: DimensionRow
    levels: dict[tuple[str, int], DimensionRow]

    @property
    def shown(self) -> tuple[DimensionRow, ...]:
        """The dimensions, then the summaries."""
        return (*self.rows, self.total, self.mean)


def dimension_tables(
    records: Iterable[EpisodeRecord], strata: Iterable[Stratum]
) -> list[DimensionTable]:
    """Make one table per family of variants; none where no variants were run.

    Args:
        records: Rows of the evaluation.
        strata: What was asked for, see `variants.VariantPlan`.
    """
    records, strata = list(records), list(strata)
    tables = []
    for family in TITLES:
        own = [r for r in records if r.dimension and r.suite.startswith(f"{family}/")]
        asked = [s for s in strata if s.family == family]
        if own and asked:
            tables.append(_table(family, own, asked))
    return tables


def dimension_text(shown: DimensionTable) -> str:
    """Return a table for a terminal."""
    lines = [(row.title, _counts(row), _percent(row), row.note) for row in shown.shown]
    widths = [max(len(line[i]) for line in lines) for i in range(3)]
    body = (
        "  ".join([*(c.ljust(w) for c, w in zip(line, widths, strict=False)), line[3]]).rstrip()
        for line in lines
    )
    return "\n".join([f"{shown.family}: {_coverage(shown)}", *body])


def dimension_markdown(shown: DimensionTable) -> str:
    """Return a table with one column per dimension, to paste into a paper or an issue."""
    rows = shown.shown
    lines = [
        [shown.family, *(row.title for row in rows)],
        ["---", *("---:" for _ in rows)],
        ["success %", *(_rate(row) for row in rows)],
        ["95 % interval", *(_interval(row) for row in rows)],
        ["successes / episodes", *(f"{row.successes}/{row.scored}" for row in rows)],
        ["tasks stood for / in the benchmark", *(f"{r.runnable}/{r.tasks}" for r in rows)],
    ]
    body = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return f"{body}\n\n{_coverage(shown)} {_method()}\n"


def dimension_csv(tables: Iterable[DimensionTable]) -> str:
    """Return the tables as CSV, one line per dimension, summary and level."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    columns = ("family", "row", "level", "successes", "scored", "errors", "tasks", "runnable")
    writer.writerow([*columns, "rate", "low", "high"])
    for shown in tables:
        titles = TITLES[shown.family]
        rows = [(row.title, "", row) for row in shown.shown]
        rows += [(titles[name], str(level), row) for (name, level), row in shown.levels.items()]
        for title, level, row in rows:
            numbers = (row.successes, row.scored, row.errors, row.tasks, row.runnable)
            found = row.estimate
            rates = (found.rate, found.low, found.high) if found else ()
            cells = [f"{value:.6f}" for value in rates] or ["", "", ""]
            writer.writerow([shown.family, title, level, *numbers, *cells])
    return stream.getvalue()


def write_dimensions(
    folder: Path, records: Iterable[EpisodeRecord], strata: Iterable[Stratum]
) -> None:
    """Write dimensions.md and dimensions.csv into a folder, where variants were run."""
    tables = dimension_tables(records, strata)
    if tables:
        text = "\n".join(dimension_markdown(shown) for shown in tables)
        atomic_write_text(folder / "dimensions.md", text)
        atomic_write_text(folder / "dimensions.csv", dimension_csv(tables))


def dimension_html(shown: DimensionTable) -> str:
    """Return a table and, where levels are known, a heat map of dimension by level."""
    rows = [
        (
            f"<b>{esc(row.title)}</b>" if row in (shown.total, shown.mean) else esc(row.title),
            _rate(row),
            _interval(row),
            f"{row.successes}/{row.scored}",
            f"{row.runnable}/{row.tasks}",
            str(row.errors),
            esc(row.note),
        )
        for row in shown.shown
    ]
    head = ("Dimension", "%", "95 % interval", "Success", "Tasks", "Errors", "")
    parts = [
        paragraph(_coverage(shown)),
        table(head, rows, numeric=range(1, 6), anchor=f"dimensions-{shown.family}"),
        _heat_map(shown) if shown.levels else "",
        paragraph(_method(), "soft small"),
    ]
    return "\n".join(parts)


# -- counting -------------------------------------------------------------------------------------


def _table(
    family: str, records: Sequence[EpisodeRecord], strata: Sequence[Stratum]
) -> DimensionTable:
    titles = TITLES[family]
    asked = [name for name in titles if any(s.dimension == name for s in strata)]
    cells = {name: _cells(name, records, strata) for name in asked}
    parts = {name: _of(name, records, strata) for name in asked}
    rows = tuple(_row(titles[name], cells[name], *parts[name]) for name in asked)
    measured = [name for name in asked if any(cell.scored for cell in cells[name])]
    every = [cell for name in measured for cell in cells[name]]
    equal = [
        StratumCount(
            weight=cell.weight / sum(other.weight for other in cells[name]),
            successes=cell.successes,
            scored=cell.scored,
            group=cell.group,
        )
        for name in measured
        for cell in cells[name]
    ]
    missing = len(asked) - len(measured)
    of = f", over {len(measured)} of {len(asked)}" if missing else ""
    return DimensionTable(
        family=family,
        rows=rows,
        total=_row(TOTAL, every, records, strata),
        mean=_row(f"{MEAN}{of}", equal, records, strata),
        levels=_levels(asked, records, strata),
    )


def _levels(
    dimensions: Sequence[str], records: Sequence[EpisodeRecord], strata: Sequence[Stratum]
) -> dict[tuple[str, int], DimensionRow]:
    known = sorted({s.level for s in strata if s.level is not None})
    rows = {}
    for name in dimensions:
        own, asked = _of(name, records, strata)
        for level in known:
            part = [record for record in own if record.level == level]
            of_level = [stratum for stratum in asked if stratum.level == level]
            if of_level:
                cells = _cells(name, part, of_level)
                rows[name, level] = _row(f"{name} {level}", cells, part, of_level)
    return rows


def _of(
    dimension: str, records: Sequence[EpisodeRecord], strata: Sequence[Stratum]
) -> tuple[list[EpisodeRecord], list[Stratum]]:
    return (
        [record for record in records if record.dimension == dimension],
        [stratum for stratum in strata if stratum.dimension == dimension],
    )


def _cells(
    dimension: str, records: Sequence[EpisodeRecord], strata: Sequence[Stratum]
) -> list[StratumCount]:
    """Counts by the finest strata of which each has an outcome, so that no task is left out."""
    own, asked = _of(dimension, records, strata)
    keys: list[Callable[[EpisodeRecord | Stratum], Hashable]] = [
        lambda item: (item.suite, item.level),
        lambda item: item.suite,
        lambda item: None,
    ]
    for key in keys:
        cells = _counted(dimension, own, asked, key)
        if all(cell.scored for cell in cells):
            return cells
    return []


def _counted(
    dimension: str,
    records: Sequence[EpisodeRecord],
    strata: Sequence[Stratum],
    key: Callable[[EpisodeRecord | Stratum], Hashable],
) -> list[StratumCount]:
    weights: dict[Hashable, int] = {}
    for stratum in strata:
        weights[key(stratum)] = weights.get(key(stratum), 0) + stratum.runnable
    outcomes: dict[Hashable, list[bool]] = {name: [] for name in weights}
    for record in records:
        if record.scored:
            outcomes.setdefault(key(record), []).append(record.success)
    return [
        StratumCount(
            weight=weight,
            successes=sum(outcomes[name]),
            scored=len(outcomes[name]),
            group=dimension,
        )
        for name, weight in weights.items()
        if weight
    ]


def _row(
    title: str,
    cells: Sequence[StratumCount],
    records: Sequence[EpisodeRecord],
    strata: Sequence[Stratum],
) -> DimensionRow:
    return DimensionRow(
        title=title,
        successes=sum(record.success for record in records),
        scored=sum(record.scored for record in records),
        errors=sum(not record.scored for record in records),
        tasks=sum(stratum.tasks for stratum in strata),
        runnable=sum(stratum.runnable for stratum in strata),
        estimate=estimate(cells),
    )


# -- showing --------------------------------------------------------------------------------------


def _coverage(shown: DimensionTable) -> str:
    total = shown.total
    text = f"{total.scored} episodes, for {total.runnable} of {total.tasks} tasks asked for."
    if shown.family == STYLE:
        text += " Generated from LIBERO's assets; not LIBERO-Plus."
    return text


def _method() -> str:
    return (
        "Rates weigh each outcome with the number of tasks it stands for (strata of dimension, "
        "level and suite); intervals are Wilson's at the effective sample size. Tasks that cannot "
        "run here are in no rate."
    )


def _counts(row: DimensionRow) -> str:
    errors = f" + {row.errors} errors" if row.errors else ""
    return f"{row.successes}/{row.scored}{errors}"


def _percent(row: DimensionRow) -> str:
    return str(row.estimate) if row.estimate else "not measured"


def _rate(row: DimensionRow) -> str:
    return format_percent(row.estimate.rate) if row.estimate else "n/a"


def _interval(row: DimensionRow) -> str:
    found = row.estimate
    return f"{found.low * 100:.1f}-{found.high * 100:.1f}" if found else "n/a"


def _heat_map(shown: DimensionTable) -> str:
    """Dimension by level; the deeper the green, the more succeeded."""
    levels = sorted({level for _, level in shown.levels})
    rows = []
    for name in dict.fromkeys(name for name, _ in shown.levels):
        cells = [_heat(shown.levels.get((name, level))) for level in levels]
        rows.append((esc(TITLES[shown.family][name]), *cells))
    head = ("Level", *(str(level) for level in levels))
    return table(head, rows, numeric=range(1, len(head)), anchor=f"levels-{shown.family}")


def _heat(row: DimensionRow | None) -> str:
    if row is None or row.estimate is None:
        return '<span class="soft">&ndash;</span>'
    shade = f"background:rgba(74,168,119,{row.estimate.rate:.2f})"
    counts = f"{row.successes}/{row.scored}"
    return f'<span style="padding:2px 8px;{shade}" title="{counts}">{_rate(row)}</span>'
