"""Success per task, per suite and in total, computed from episode records.

Errors of the machinery are counted beside the outcomes, never among them: a rate is successes over
scored episodes, and both numbers are always shown.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass

from vla_opt.evaluation._charts import interval_bar
from vla_opt.evaluation._html import esc
from vla_opt.evaluation.records import EpisodeRecord
from vla_opt.evaluation.statistics import format_percent, format_rate, wilson

_COLUMNS = (
    # (class in the style sheet, title)
    ("task", "Task"),
    ("num rate", "Success"),
    ("num share", "%"),
    ("num range", "95 % interval"),
    ("interval", ""),
    ("num errors", "Errors"),
    ("num steps", "Steps"),
    ("episodes", "Episodes"),
)


@dataclass(frozen=True, kw_only=True)
class SuccessRow:
    """Outcomes of a set of episodes.

    Attributes:
        suite: The suite, or "" when the row spans several.
        task_id: The task, or None when the row spans several.
        language: The task's instruction, "" when the row spans several tasks or instructions.
        successes: Scored episodes that succeeded.
        scored: Episodes with an outcome: the denominator.
        errors: Episodes the machinery lost; in no rate.
        mean_steps: Mean control steps of the successful episodes, None if there are none.
        records: The episodes themselves.
    """

    suite: str = ""
    task_id: int | None = None
    language: str = ""
    successes: int
    scored: int
    errors: int
    mean_steps: float | None
    records: tuple[EpisodeRecord, ...]

    @property
    def rate(self) -> float | None:
        """Successes over scored episodes, None if nothing was scored."""
        return self.successes / self.scored if self.scored else None

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of the rate."""
        return wilson(self.successes, self.scored)

    @property
    def is_variant(self) -> bool:
        """Whether it is about variants of LIBERO's tasks, see `dimensions`."""
        return any(record.dimension for record in self.records)

    @property
    def name(self) -> str:
        """The task, the suite, or "total"."""
        if self.task_id is not None:
            return f"{self.suite} {self.task_id}"
        return self.suite or "total"


@dataclass(frozen=True, kw_only=True)
class SuccessTable:
    """Rows per task and per suite, and the total.

    `total.rate` gives every episode the same weight, `task_mean` every task; they agree where all
    tasks have the same number of scored episodes.
    """

    tasks: tuple[SuccessRow, ...]
    suites: tuple[SuccessRow, ...]
    total: SuccessRow

    @property
    def task_mean(self) -> float | None:
        """Mean of the tasks' rates, over the tasks with a scored episode."""
        rates = [row.rate for row in self.tasks if row.rate is not None]
        return sum(rates) / len(rates) if rates else None

    @property
    def suite_mean(self) -> float | None:
        """Mean of the suites' rates, over the suites with a scored episode."""
        rates = [row.rate for row in self.suites if row.rate is not None]
        return sum(rates) / len(rates) if rates else None

    @property
    def is_balanced(self) -> bool:
        """Whether all tasks have the same number of scored episodes."""
        return len({row.scored for row in self.tasks}) <= 1


def success_table(records: Iterable[EpisodeRecord]) -> SuccessTable:
    """Group records by task and suite and count their outcomes."""
    ordered = sorted(records, key=lambda record: record.key)
    tasks = _groups(ordered, lambda record: (record.suite, record.task_id))
    suites = _groups(ordered, lambda record: record.suite)
    return SuccessTable(
        tasks=tuple(_row(g, suite=g[0].suite, task_id=g[0].task_id) for g in tasks),
        suites=tuple(_row(g, suite=g[0].suite) for g in suites),
        total=_row(ordered),
    )


def text_table(table: SuccessTable) -> str:
    """Return the table for a terminal, one line per task, suite and the total."""
    lines = [
        (row.name, format_rate(row.successes, row.scored), _errors(row.errors), row.language)
        for row in _shown_rows(table)
    ]
    widths = [max(len(line[i]) for line in lines) for i in range(3)]
    return "\n".join(
        "  ".join([*(c.ljust(w) for c, w in zip(line, widths, strict=False)), line[3]]).rstrip()
        for line in lines
    )


def html_table(table: SuccessTable, strip: Callable[[SuccessRow], str] | None = None) -> str:
    """Return the table as HTML, with an interval bar in each row.

    Args:
        table: What to show.
        strip: Makes the HTML of a column that shows each episode of a task; left out if None.
    """
    columns = [column for column in _COLUMNS if strip or column[0] != "episodes"]
    top = "".join(f'<th class="{kind}">{title}</th>' for kind, title in columns)
    body = "\n".join(_html_row(row, columns, strip) for row in _shown_rows(table))
    return (
        f'<div class="scroll"><table id="success-table"><thead><tr>{top}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _html_row(
    row: SuccessRow,
    columns: Sequence[tuple[str, str]],
    strip: Callable[[SuccessRow], str] | None,
) -> str:
    contents = _html_cells(row)
    if strip and row.task_id is not None:
        contents["episodes"] = strip(row)
    cells = "".join(f'<td class="{kind}">{contents.get(kind, "")}</td>' for kind, _ in columns)
    total = "" if row.task_id is not None else ' class="sum"'
    return (
        f'<tr{total} data-row="{esc(row.name)}" data-successes="{row.successes}" '
        f'data-scored="{row.scored}" data-errors="{row.errors}">{cells}</tr>'
    )


def _html_cells(row: SuccessRow) -> dict[str, str]:
    """Contents of the row's cells by the kind of column."""
    language = f'<br><span class="soft">{esc(row.language)}</span>' if row.language else ""
    cells = {
        "task": f"<div>{esc(row.name)}{language}</div>",
        "num rate": f"{row.successes}/{row.scored}",
        "num range": "not measured",
        "num errors": str(row.errors),
        "num steps": f"{row.mean_steps:.0f}" if row.mean_steps is not None else "",
    }
    if row.rate is not None:
        low, high = row.interval
        cells["num share"] = format_percent(row.rate)
        cells["num range"] = f"{low * 100:.1f}&ndash;{high * 100:.1f}"
        cells["interval"] = interval_bar(row.rate, low, high)
    return cells


def _shown_rows(table: SuccessTable) -> Sequence[SuccessRow]:
    """Tasks, each suite after its tasks, the total last unless one suite is all there is.

    Variants are not listed: there are thousands, and each has one episode.
    """
    rows: list[SuccessRow] = []
    for suite in table.suites:
        rows += [row for row in table.tasks if row.suite == suite.suite and not row.is_variant]
        rows.append(suite)
    return rows if len(table.suites) == 1 else [*rows, table.total]


def _groups[K: Hashable](
    records: Sequence[EpisodeRecord], key: Callable[[EpisodeRecord], K]
) -> list[list[EpisodeRecord]]:
    groups: dict[K, list[EpisodeRecord]] = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    return list(groups.values())


def _row(
    records: Sequence[EpisodeRecord], *, suite: str = "", task_id: int | None = None
) -> SuccessRow:
    won = [record for record in records if record.success]
    languages = {record.language for record in records if record.language}
    return SuccessRow(
        suite=suite,
        task_id=task_id,
        language=languages.pop() if task_id is not None and len(languages) == 1 else "",
        successes=len(won),
        scored=sum(record.scored for record in records),
        errors=sum(not record.scored for record in records),
        mean_steps=sum(record.steps for record in won) / len(won) if won else None,
        records=tuple(records),
    )


def _errors(count: int) -> str:
    return f"+ {count} error{'s' if count != 1 else ''}" if count else ""
