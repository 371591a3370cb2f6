"""Any number of runs next to each other: rates, paired tests, curves, and how the protocols differ.

Runs are compared on the episodes they share. Where they were not run under the same protocol, that
stands above the numbers.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from vla_opt.errors import ConfigError
from vla_opt.evaluation._html import esc, page
from vla_opt.evaluation._side_by_side_html import (
    curves_section,
    dimensions_section,
    pairs_section,
    protocol_section,
    success_section,
)
from vla_opt.evaluation.card import PROTOCOL, card, protocol_differences
from vla_opt.evaluation.dimensions import DimensionTable, dimension_tables
from vla_opt.evaluation.exports import Grid, latex, markdown, success_csv, suites_grid
from vla_opt.evaluation.run_folder import RunFolder, read_run_folder
from vla_opt.evaluation.statistics import (
    PairedComparison,
    format_p,
    format_percent,
    holm,
    paired_comparison,
)
from vla_opt.evaluation.tables import SuccessTable, success_table
from vla_opt.io import atomic_write_text
from vla_opt.provenance import utc_now

COMPARISON = "comparison.html"


@dataclass(frozen=True, kw_only=True)
class ShownRun:
    """One run of a comparison.

    Attributes:
        name: Unique among the runs.
        run: What its folder holds.
        table: Its success.
        card: Its protocol.
        dimensions: Its success by dimension of perturbation, where variants were run.
    """

    name: str
    run: RunFolder
    table: SuccessTable
    card: dict[str, str]
    dimensions: tuple[DimensionTable, ...]


@dataclass(frozen=True, kw_only=True)
class RunPair:
    """Two runs on the episodes they share.

    Attributes:
        a: Name of the first.
        b: Name of the second.
        paired: The outcome; None where they cannot be compared.
        p_holm: Its p-value, corrected for the number of pairs.
        refused: Why they cannot be compared.
    """

    a: str
    b: str
    paired: PairedComparison | None = None
    p_holm: float = 1.0
    refused: str = ""


def write_comparison(
    run_dirs: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str] | None = None
) -> Path:
    """Write a comparison of runs: HTML, and beside it .md, .tex and .csv.

    Args:
        run_dirs: Two run folders or more.
        out: The HTML file; `comparison.html` in the folder that all runs lie in by default.

    Returns:
        The path of the HTML file.

    Raises:
        ConfigError: Fewer than two, a folder that holds no run, or one without episodes.
        OSError: A file could not be stored.
    """
    shown = read_runs([Path(folder) for folder in run_dirs])
    pairs = compare_runs(shown)
    common = Path(os.path.commonpath([run.run.root.resolve().parent for run in shown]))
    path = Path(out) if out is not None else common / COMPARISON
    different = protocol_differences([run.card for run in shown])
    sections = [
        success_section(shown),
        pairs_section(pairs),
        *dimensions_section(shown),
        *curves_section(shown),
        protocol_section(shown, different),
    ]
    footer = "Derived from the run folders' records; no number here is typed by hand."
    title = f"{len(shown)} runs - vla_opt comparison"
    atomic_write_text(path, page(title, _header(shown, different), sections, footer))
    grids = [suites_grid([(s.name, s.table) for s in shown]), *_dimension_grids(shown)]
    grids += [pairs_grid(pairs), protocol_grid(shown)]
    atomic_write_text(path.with_suffix(".md"), markdown(grids))
    atomic_write_text(path.with_suffix(".tex"), latex(grids))
    atomic_write_text(path.with_suffix(".csv"), success_csv((s.name, s.table) for s in shown))
    return path


def read_runs(folders: Sequence[Path]) -> list[ShownRun]:
    """Read runs that are to be compared.

    Raises:
        ConfigError: Fewer than two, one twice, one that holds no run or no episode.
    """
    places = {folder.resolve() for folder in folders}
    if len(folders) < 2 or len(places) < len(folders):
        raise ConfigError(
            f"A comparison needs two different run folders or more, got "
            f"{', '.join(map(str, folders)) or 'none'}."
        )
    runs = [read_run_folder(folder) for folder in folders]
    for run in runs:
        if not run.records:
            raise ConfigError(
                f"{run.root}: no episode has been evaluated there, so there is nothing to compare."
            )
    return [
        ShownRun(
            name=name,
            run=run,
            table=success_table(run.records),
            card=card(run),
            dimensions=tuple(dimension_tables(run.records, run.strata)),
        )
        for name, run in zip(_names(runs), runs, strict=True)
    ]


def compare_runs(shown: Sequence[ShownRun]) -> list[RunPair]:
    """Compare every two runs, with p-values corrected for their number."""
    pairs = [_pair(a, b) for a, b in combinations(shown, 2)]
    tested = [pair.paired.p for pair in pairs if pair.paired is not None]
    corrected = iter(holm(tested))
    return [
        pair
        if pair.paired is None
        else RunPair(a=pair.a, b=pair.b, paired=pair.paired, p_holm=next(corrected))
        for pair in pairs
    ]


def pairs_grid(pairs: Sequence[RunPair]) -> Grid:
    """Return the paired comparisons as a table."""
    return Grid(
        title="Pairs on the same episodes",
        head=("runs", "a", "b", "a alone", "b alone", "difference", "p", "p (Holm)"),
        rows=tuple(_pair_cells(pair) for pair in pairs),
        note="McNemar's exact test on the episodes scored in both; Holm's correction for the "
        f"{sum(pair.paired is not None for pair in pairs)} tests of this table.",
    )


def protocol_grid(shown: Sequence[ShownRun]) -> Grid:
    """Return the cards next to each other; lines that must agree and do not are marked."""
    different = protocol_differences([run.card for run in shown])
    rows = []
    for name in shown[0].card:
        mark = " (differs)" if name in different else ""
        rows.append((f"{name}{mark}", *(run.card[name] for run in shown)))
    return Grid(title="Protocol", head=("what", *(run.name for run in shown)), rows=tuple(rows))


def _names(runs: Sequence[RunFolder]) -> list[str]:
    """The shortest ends of the paths that tell the runs apart."""
    paths = [run.root.resolve().parts for run in runs]
    for length in range(1, max(map(len, paths)) + 1):
        names = ["/".join(path[-length:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    raise AssertionError("the runs are different folders")


def _pair(a: ShownRun, b: ShownRun) -> RunPair:
    try:
        return RunPair(a=a.name, b=b.name, paired=paired_comparison(a.run.records, b.run.records))
    except ValueError as error:
        return RunPair(a=a.name, b=b.name, refused=str(error))


def _pair_cells(pair: RunPair) -> tuple[str, ...]:
    found = pair.paired
    runs = f"a: {pair.a}, b: {pair.b}"
    if found is None:
        return (runs, "-", "-", "-", "-", "-", "-", f"not comparable: {pair.refused}")
    return (
        runs,
        f"{found.both + found.only_a}/{found.n}",
        f"{found.both + found.only_b}/{found.n}",
        str(found.only_a),
        str(found.only_b),
        f"{100 * found.difference:+.1f}",
        format_p(found.p).removeprefix("p ").removeprefix("= "),
        format_p(pair.p_holm).removeprefix("p ").removeprefix("= "),
    )


def _dimension_grids(shown: Sequence[ShownRun]) -> list[Grid]:
    """Success by dimension, a line per run; one table per family of variants."""
    grids = []
    families = dict.fromkeys(table.family for run in shown for table in run.dimensions)
    for family in families:
        tables = {run.name: t for run in shown for t in run.dimensions if t.family == family}
        titles = list(dict.fromkeys(row.title for t in tables.values() for row in t.shown))
        rows = []
        for name, table in tables.items():
            cells = {row.title: row for row in table.shown}
            found = (cells[title].estimate if title in cells else None for title in titles)
            rows.append((name, *(format_percent(e.rate) if e else "-" for e in found)))
        note = "Per cent; each outcome with the number of tasks it stands for."
        head = ("run", *titles)
        grids.append(Grid(title=f"{family} by dimension", head=head, rows=tuple(rows), note=note))
    return grids


def _header(shown: Sequence[ShownRun], different: Sequence[str]) -> str:
    chips = [f'<span class="chip">{len(shown)} runs</span>']
    notes = [
        f"The runs differ in their protocol ({', '.join(different)}): see there before reading "
        "the rates."
    ] * bool(different)
    notes += [f"{run.name}: {note}" for run in shown for note in run.run.notes]
    agreed = f"the same in all {len(PROTOCOL)} lines of the protocol"
    chips.append(
        f'<span class="chip warn">{len(different)} lines of the protocol differ</span>'
        if different
        else f'<span class="chip good">{agreed}</span>'
    )
    listed = "".join(f"<li>{esc(note)}</li>" for note in notes)
    box = f'<div class="note" id="notes"><ul>{listed}</ul></div>' if notes else ""
    names = ", ".join(run.name for run in shown)
    return (
        f"<h1>{esc(names)}</h1><p class='soft'>comparison of {utc_now()}</p>"
        f"<div>{' '.join(chips)}</div>{box}"
    )
