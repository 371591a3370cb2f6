"""Tables as Markdown, CSV and LaTeX: what a README, a spreadsheet and a paper take."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vla_opt.evaluation.statistics import format_percent, wilson
from vla_opt.evaluation.tables import SuccessRow, SuccessTable

SUITE_TITLES = {
    "libero_spatial": "Spatial",
    "libero_object": "Object",
    "libero_goal": "Goal",
    "libero_10": "Long",
    "libero_90": "90",
}
"""Columns of LIBERO's tables in their usual order."""

_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A table of text.

    Attributes:
        title: What it shows.
        head: Column titles.
        rows: Cells, as many per row as there are titles.
        note: What a reader must know to read it.
    """

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.head):
                raise ValueError(f"{self.title}: {len(self.head)} columns, but a row of {row}.")


def markdown(grids: Iterable[Grid]) -> str:
    """Return tables for a README or an issue."""
    return "\n".join(_markdown(grid) for grid in grids)


def markdown_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table.

    Args:
        rows: Cells as they shall stand in Markdown, the head first.
    """
    ruled = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return [f"| {' | '.join(row)} |" for row in ruled]


def latex(grids: Iterable[Grid]) -> str:
    """Return tables for a paper; needs the package booktabs."""
    return "\n".join(_latex(grid) for grid in grids)


def success_grid(table: SuccessTable, title: str = "Success") -> Grid:
    """Return success per task, suite and in total; variants of tasks by suite alone."""
    rows: list[SuccessRow] = []
    for suite in table.suites:
        rows += [row for row in table.tasks if row.suite == suite.suite and not row.is_variant]
        rows.append(suite)
    if len(table.suites) > 1:
        rows.append(table.total)
    return Grid(
        title=title,
        head=("task", "instruction", "successes", "%", "95 % interval", "errors", "steps"),
        rows=tuple(_success_cells(row) for row in rows),
        note="Wilson intervals over scored episodes of one trained policy; errors of the "
        "machinery are in no rate; steps are means over successful episodes.",
    )


def success_csv(tables: Iterable[tuple[str, SuccessTable]]) -> str:
    """Return one line per run and task, suite and total, with every number on its own."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    counts = ("successes", "scored", "errors", "rate", "low", "high", "mean_steps")
    writer.writerow(("run", "row", "suite", "task_id", "language", *counts))
    for name, table in tables:
        rows = [("task", row) for row in table.tasks]
        rows += [("suite", row) for row in table.suites] + [("total", table.total)]
        for kind, row in rows:
            task = "" if row.task_id is None else row.task_id
            writer.writerow((name, kind, row.suite, task, row.language, *_numbers(row)))
    return stream.getvalue()


def suites_grid(tables: Sequence[tuple[str, SuccessTable]]) -> Grid:
    """Return one line per run in the columns of LIBERO's own tables."""
    present = [row.suite for _, table in tables for row in table.suites]
    order = [s for s in SUITE_TITLES if s in present]
    order += [s for s in dict.fromkeys(present) if s not in SUITE_TITLES]
    rows = []
    for name, table in tables:
        by_suite = {row.suite: row for row in table.suites}
        cells = [_suite_cell(by_suite.get(suite)) for suite in order]
        rows.append((name, *cells, _mean_cell(table, order), _total_cell(table.total)))
    titles = (SUITE_TITLES.get(suite, suite) for suite in order)
    return Grid(
        title="Success by suite",
        head=("run", *titles, "mean of suites", "all episodes (95 % interval)"),
        rows=tuple(rows),
        note="Per cent, and successes of scored episodes. The mean gives each suite the same "
        "weight; it is given only to runs with all suites shown.",
    )


def _success_cells(row: SuccessRow) -> tuple[str, ...]:
    percent = interval = ""
    if row.rate is not None:
        low, high = row.interval
        percent, interval = format_percent(row.rate), f"{low * 100:.1f}-{high * 100:.1f}"
    steps = "" if row.mean_steps is None else f"{row.mean_steps:.0f}"
    counts = f"{row.successes}/{row.scored}"
    return row.name, row.language, counts, percent, interval, str(row.errors), steps


def _numbers(row: SuccessRow) -> tuple[object, ...]:
    if row.rate is None:
        return row.successes, row.scored, row.errors, "", "", "", ""
    low, high = row.interval
    steps = "" if row.mean_steps is None else f"{row.mean_steps:.2f}"
    rates = (f"{value:.6f}" for value in (row.rate, low, high))
    return row.successes, row.scored, row.errors, *rates, steps


def _suite_cell(row: SuccessRow | None) -> str:
    if row is None or row.rate is None:
        return "-"
    return f"{format_percent(row.rate)} ({row.successes}/{row.scored})"


def _mean_cell(table: SuccessTable, order: Sequence[str]) -> str:
    measured = {row.suite for row in table.suites if row.rate is not None}
    if table.suite_mean is None or measured != set(order):
        return "-"
    return format_percent(table.suite_mean)


def _total_cell(row: SuccessRow) -> str:
    if row.rate is None:
        return "0/0"
    low, high = wilson(row.successes, row.scored)
    return (
        f"{row.successes}/{row.scored}, {format_percent(row.rate)} "
        f"({low * 100:.1f}-{high * 100:.1f})"
    )


def _markdown(grid: Grid) -> str:
    cells = [tuple(map(_markdown_cell, row)) for row in (grid.head, *grid.rows)]
    body = "\n".join(markdown_table(cells))
    note = f"\n{grid.note}\n" if grid.note else ""
    return f"**{grid.title}**\n\n{body}\n{note}"


def _markdown_cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def _latex(grid: Grid) -> str:
    columns = "l" + "r" * (len(grid.head) - 1) if len(grid.head) > 2 else "lp{0.7\\linewidth}"
    lines = [" & ".join(map(_latex_text, row)) + r" \\" for row in (grid.head, *grid.rows)]
    body = "\n".join([r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"])
    caption = _latex_text(f"{grid.title}. {grid.note}".strip())
    return (
        "\\begin{table}\n\\centering\n"
        f"\\begin{{tabular}}{{{columns}}}\n{body}\n\\end{{tabular}}\n"
        f"\\caption{{{caption}}}\n\\end{{table}}\n"
    )


def _latex_text(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)
