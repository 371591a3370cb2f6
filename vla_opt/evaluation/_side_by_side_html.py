"""The sections of a comparison of runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vla_opt.evaluation._charts import Point, Series, color_of, interval_bar, line_chart, smooth
from vla_opt.evaluation._html import Section, esc, paragraph, table
from vla_opt.evaluation._report_training import clock
from vla_opt.evaluation.dimensions import dimension_html
from vla_opt.evaluation.statistics import format_p, format_percent
from vla_opt.evaluation.tables import SuccessRow

if TYPE_CHECKING:
    from vla_opt.evaluation.run_folder import Row, RunFolder
    from vla_opt.evaluation.side_by_side import RunPair, ShownRun


def success_section(shown: Sequence[ShownRun]) -> Section:
    """Return success in total, by suite and by task."""
    rows = []
    for index, run in enumerate(shown):
        total = run.table.total
        rows.append(
            (
                f'<b style="color:{color_of(index)}">&#9632;</b> {esc(run.name)}',
                f"{total.successes}/{total.scored}",
                *_rate_cells(total),
                str(total.errors),
                _length(total),
            )
        )
    head = ("Run", "Success", "%", "95 % interval", "", "Errors", "Steps")
    body = table(head, rows, numeric=(1, 2, 3, 5, 6), anchor="runs-table") + _by_task(shown)
    return Section(anchor="success", title="Success", body=body)


def pairs_section(pairs: Sequence[RunPair]) -> Section:
    """Return what the paired tests found; a winner is named where the corrected p is small."""
    rows = []
    for pair in pairs:
        if pair.paired is None:
            cells = ("", "", "", "", "", esc(pair.refused))
        else:
            found = pair.paired
            cells = (
                f"{found.both + found.only_a}/{found.n}",
                f"{found.both + found.only_b}/{found.n}",
                f"{found.only_a} : {found.only_b}",
                f"{100 * found.difference:+.1f}",
                esc(format_p(pair.p_holm)),
                esc(_finding(pair)),
            )
        rows.append((esc(pair.a), esc(pair.b), *cells))
    head = ("A", "B", "A", "B", "A alone : B alone", "A - B, points", "p (Holm)", "")
    note = (
        "On the episodes scored in both runs: McNemar's exact test, p after Holm's correction for "
        "all tests shown. Each is about these trained policies; another training seed is another "
        "policy."
    )
    body = table(head, rows, numeric=range(2, 6), anchor="pairs-table")
    return Section(anchor="pairs", title="Pairs", body=body + paragraph(note, "soft small"))


def dimensions_section(shown: Sequence[ShownRun]) -> list[Section]:
    """Return success by dimension, run after run; nothing where no variants were run."""
    parts = [
        f"<h3>{esc(run.name)}</h3>{dimension_html(one)}" for run in shown for one in run.dimensions
    ]
    if not parts:
        return []
    return [Section(anchor="dimensions", title="Perturbations", body="\n".join(parts))]


def curves_section(shown: Sequence[ShownRun]) -> list[Section]:
    """Return the trainings' curves in one picture each; nothing where none was logged."""
    trained = [(i, run) for i, run in enumerate(shown) if run.run.rows("train")]
    if not trained:
        return []
    charts = [
        line_chart("Training loss over steps", _lines(trained, "loss", "step"), log_y=True),
        line_chart(
            "Training loss over minutes",
            _lines(trained, "loss", "wall_s"),
            x_label="minutes",
            log_y=True,
        ),
    ]
    if any(run.run.rows("eval") for _, run in trained):
        charts.append(line_chart("Success during training", _evaluations(trained)))
    body = f'<div class="charts two">{"".join(charts)}</div>{_training_table(shown)}'
    return [Section(anchor="training", title="Training", body=body)]


def protocol_section(shown: Sequence[ShownRun], different: Sequence[str]) -> Section:
    """Return the cards next to each other, differences marked."""
    rows = []
    for name in shown[0].card:
        mark = ' <span class="chip warn">differs</span>' if name in different else ""
        rows.append((f"{esc(name)}{mark}", *(esc(run.card[name]) for run in shown)))
    head = ("", *(run.name for run in shown))
    return Section(anchor="protocol", title="Protocol", body=table(head, rows, anchor="protocol"))


def _rate_cells(row: SuccessRow) -> tuple[str, str, str]:
    if row.rate is None:
        return "", "not measured", ""
    low, high = row.interval
    bounds = f"{low * 100:.1f}&ndash;{high * 100:.1f}"
    return format_percent(row.rate), bounds, interval_bar(row.rate, low, high)


def _length(row: SuccessRow) -> str:
    return "" if row.mean_steps is None else f"{row.mean_steps:.0f}"


def _by_task(shown: Sequence[ShownRun]) -> str:
    """Tasks down, runs across; the suites below their tasks."""
    found: dict[tuple[str, float], dict[str, SuccessRow]] = {}
    languages: dict[tuple[str, float], str] = {}
    for run in shown:
        plain = [row for row in run.table.tasks if not row.is_variant]
        for row in [*plain, *run.table.suites]:
            key = (row.suite, math.inf if row.task_id is None else row.task_id)
            found.setdefault(key, {})[run.name] = row
            languages.setdefault(key, row.language)
    rows = []
    for key in sorted(found):
        name = esc(next(iter(found[key].values())).name)
        cells = [_count(found[key].get(run.name)) for run in shown]
        rows.append((name, esc(languages[key]), *cells))
    head = ("Task", "Instruction", *(run.name for run in shown))
    return table(head, rows, numeric=range(2, len(head)), anchor="tasks-table")


def _count(row: SuccessRow | None) -> str:
    if row is None or row.rate is None:
        return '<span class="soft">&ndash;</span>'
    return f"{row.successes}/{row.scored}"


def _finding(pair: RunPair) -> str:
    assert pair.paired is not None
    if pair.p_holm > 0.05:
        return "no difference shown"
    better, worse = (pair.a, pair.b) if pair.paired.difference > 0 else (pair.b, pair.a)
    return f"{better} is better than {worse}"


def _lines(trained: Sequence[tuple[int, ShownRun]], field: str, over: str) -> list[Series]:
    lines = []
    for index, run in trained:
        rows = run.run.rows("train")
        scale = 60.0 if over == "wall_s" else 1.0
        points = [(float(r[over]) / scale, float(r[field])) for r in rows if over in r]
        points = smooth(points, max(1, len(points) // 40))
        lines.append(Series(name=run.name, points=points, color=color_of(index)))
    return lines


def _evaluations(trained: Sequence[tuple[int, ShownRun]]) -> list[Series]:
    return [
        Series(name=run.name, points=_rates(run.run.rows("eval")), color=color_of(index))
        for index, run in trained
    ]


def _rates(rows: Sequence[Row]) -> list[Point]:
    return [
        (float(row["step"]), row["successes"] / row["episodes"])
        for row in rows
        if row.get("episodes")
    ]


def _training_table(shown: Sequence[ShownRun]) -> str:
    rows = [(esc(run.name), *map(esc, _training_cells(run.run))) for run in shown]
    head = ("Run", "Steps", "Last loss", "Samples/s", "Time")
    return table(head, rows, numeric=range(1, 5), anchor="training-table")


def _training_cells(run: RunFolder) -> tuple[str, str, str, str]:
    rows = run.rows("train")
    if not rows:
        return "", "", "", ""
    last = rows[-1]
    rates = [float(row["samples_per_s"]) for row in rows if "samples_per_s" in row]
    speed = f"{sum(rates) / len(rates):.1f}" if rates else ""
    time = clock(float(last["wall_s"])) if "wall_s" in last else ""
    return str(last["step"]), f"{float(last['loss']):.4g}", speed, time
